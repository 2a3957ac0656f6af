"""Who is told of what, by real receivers: a web server, and a mail server that asks for TLS."""

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from standardwebhooks import Webhook, WebhookVerificationError

from service.commands.notices import test as send_test_notice
from service.core import purge as purging
from service.core.errors import ConfigurationError
from service.core.ledger import Ledger, now, record_event
from service.core.notice_checks import examine_notices
from service.core.settings import Settings, load
from service.core.states import NoticeState, StudyState
from service.core.tables import Circuit, Notice, Occurrence, Study
from service.scheduler import notices as module
from service.scheduler import webhook as posting
from service.scheduler.beside import Beside
from service.scheduler.notices import MOST_ATTEMPTS, Notices
from tests import pipeline
from tests.certificates import Authority
from tests.ledgers import migrated
from tests.receivers import MailBox, WebHook, mailbox, webhook

SECRET = base64.b64encode(bytes(range(32))).decode()
MAIL = {"from": "hilum@hospital.example", "to": ["team@hospital.example"]}


class Office:
    """A ledger with whoever is told of it."""

    def __init__(self, folder: Path, url: str | None = None, **settings: Any) -> None:
        self.settings: Settings = load(
            data_dir=folder / "data", database_url=url, min_free_bytes=0, **settings
        )
        migrated(self.settings.sqlalchemy_url)
        self.ledger = Ledger(self.settings.sqlalchemy_url)

    def happens(
        self, kind: str, detail: str = "why", study_instance_uid: str = "1.2.3", **values: Any
    ) -> None:
        with self.ledger.write() as session:
            study = session.scalars(
                select(Study).where(Study.study_instance_uid == study_instance_uid)
            ).one_or_none()
            if study is None:
                study = Study(
                    study_instance_uid=study_instance_uid, state=StudyState.REPORTED, received_at=now()
                )
                session.add(study)
            for name, value in values.items():
                setattr(study, name, value)
            session.flush()
            record_event(session, study, kind, detail)

    def tell(self, stopped: threading.Event | None = None) -> None:
        Notices(self.ledger, self.settings).round(stopped or threading.Event())

    def later(self) -> None:
        """Let what waits be due, as after its pause."""
        with self.ledger.write() as session:
            ago = now() - timedelta(hours=2)
            session.execute(update(Notice).values(ready_at=ago))

    @property
    def notices(self) -> list[Notice]:
        with self.ledger.read() as session:
            return list(session.scalars(select(Notice).order_by(Notice.id)))


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Callable[..., Office]]:
    with ExitStack() as stack:

        def open_(channel: dict[str, Any] | None = None, **settings: Any) -> Office:
            found = Office(tmp_path, notices=[channel] if channel else [], **settings)
            stack.callback(found.ledger.close)
            return found

        yield open_


@pytest.fixture
def hook() -> Iterator[WebHook]:
    with webhook() as receiver:
        yield receiver


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text(f"whsec_{SECRET}\n", encoding="utf-8")
    return file


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text("open sesame\n", encoding="utf-8")
    return file


def mail_to(box: MailBox, authority: Authority, scheme: str = "smtp", **more: Any) -> dict[str, Any]:
    return {
        "name": "MAIL",
        "url": f"{scheme}://localhost:{box.port}",
        "ca_file": authority.file,
        **MAIL,
        **more,
    }


def test_a_webhook_gets_json_whose_signature_a_library_of_others_believes(
    office: Callable[..., Office], authority: Authority, secret_file: Path
) -> None:
    with webhook(authority.issue("localhost")) as hook:
        channel = {"name": "A", "url": hook.url, "ca_file": authority.file, "secret_file": secret_file}
        site = office(channel)
        site.happens("failed", "the report could not be built", probability=0.25, finding="absent")
        site.tell()
    (posted,) = hook.posted
    told = Webhook(f"whsec_{SECRET}").verify(posted.body, posted.headers)
    assert told == posted.json
    assert told["type"] == "failed"
    assert told["data"] == {
        "detail": "the report could not be built",
        "study_instance_uid": "1.2.3",
        "finding": "absent",
        "probability": 0.25,
    }
    assert posted.path == "/hook?room=1"
    with pytest.raises(WebhookVerificationError):
        Webhook(f"whsec_{SECRET}").verify(posted.body.replace(b"absent", b"present"), posted.headers)


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ("failed", "failed"),
        ("instance_failed", "failed"),
        ("held", "held"),
        ("parked", "parked"),
        ("given_up", "given_up"),
        ("quarantined", "quarantined"),
        ("unconfirmed", "unconfirmed"),
    ],
)
def test_every_trouble_of_a_study_is_told(
    event: str, kind: str, office: Callable[..., Office], hook: WebHook
) -> None:
    site = office({"name": "A", "url": hook.url})
    site.happens(event)
    site.happens("duplicate")
    site.tell()
    assert [posted.json["type"] for posted in hook.posted] == [kind]


def test_a_positive_is_told_once_and_a_negative_never_and_only_to_who_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: WebHook
) -> None:
    channel = {"name": "A", "url": hook.url, "events": ["positive"]}
    other = {"name": "B", "url": hook.url}
    context = pipeline.opened_at(tmp_path, notices=[channel, other], population="flag")
    notices = Notices(context.ledger, context.settings)
    for probability, seed in ((0.9, 1), (0.1, 2)):
        pipeline.says(monkeypatch, probability)
        name = f"Canary^{seed}"
        pipeline.receive(context, pipeline.film(seed, PatientName=name, PatientID="CANARY"))
        pipeline.work(context)
    notices.round(threading.Event())
    # Built anew with a corrected header, it is positive as before.
    pipeline.says(monkeypatch, 0.9)
    pipeline.receive(context, pipeline.film(1, PatientName="Canary^Corrected", PatientID="CANARY"))
    pipeline.work(context)
    notices.round(threading.Event())
    with context.ledger.read() as session:
        assert session.scalar(select(Study.revision).where(Study.finding == "present")) == 2
    (posted,) = hook.posted
    assert posted.json["type"] == "positive"
    assert posted.json["data"]["probability"] == pytest.approx(0.9)
    assert "canary" not in posted.body.decode().lower()
    context.ledger.close()


def test_what_is_parked_at_the_same_moment_is_one_notice(
    office: Callable[..., Office], hook: WebHook
) -> None:
    site = office({"name": "A", "url": hook.url})
    site.happens("parked", "sr for PACS: cannot understand")
    site.happens("parked", "heatmap for PACS: cannot understand")
    site.happens("parked", "sr for PACS: cannot understand", study_instance_uid="1.2.4")
    site.tell()
    assert [posted.json["data"]["study_instance_uid"] for posted in hook.posted] == ["1.2.3", "1.2.4"]
    assert "heatmap" in hook.posted[0].json["data"]["detail"]


def test_a_receiver_that_fails_gets_it_later_under_the_same_id(
    office: Callable[..., Office], hook: WebHook, secret_file: Path
) -> None:
    site = office({"name": "A", "url": hook.url, "secret_file": secret_file})
    hook.answers = [503, 302]
    site.happens("failed")
    site.tell()
    site.tell()
    assert len(hook.posted) == 1, "not again before its pause"
    for _ in range(3):
        site.later()
        site.tell()
    assert [posted.path for posted in hook.posted] == ["/hook?room=1"] * 3, "and a redirect is no success"
    assert len({posted.headers["webhook-id"] for posted in hook.posted}) == 1
    (row,) = site.notices
    assert (row.state, row.attempts, row.last_error) == (NoticeState.SENT, 3, None)


def test_tries_are_bounded_and_the_doctor_says_what_was_given_up(
    office: Callable[..., Office], hook: WebHook
) -> None:
    site = office({"name": "A", "url": hook.url})
    hook.answers = [500] * (MOST_ATTEMPTS + 5)
    site.happens("failed")
    site.tell()
    (check,) = examine_notices(site.settings)
    assert check.right
    assert check.warns
    assert "1 wait" in check.seen
    assert "it answered 500" in check.seen
    with site.ledger.write() as session:
        session.execute(update(Notice).values(attempts=MOST_ATTEMPTS - 1))
    for _ in range(2):
        site.later()
        site.tell()
    assert len(hook.posted) == 2
    assert site.notices[0].state == NoticeState.GIVEN_UP
    (check,) = examine_notices(site.settings)
    assert "1 of the last month were given up" in check.seen


class Killed(BaseException):
    """A kill at a failpoint."""


def test_a_kill_loses_none_and_makes_none_that_looks_new(
    office: Callable[..., Office], hook: WebHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = office({"name": "A", "url": hook.url})

    def failpoint(_name: str) -> None:
        raise Killed

    site.happens("failed")
    site.happens("held", study_instance_uid="1.2.4")
    with monkeypatch.context() as killed:
        killed.setattr(module, "failpoint", failpoint)
        with pytest.raises(Killed):
            site.tell()
    site.tell()
    # The first one may have been taken: whoever finds it waits for the time that a try takes at most.
    assert [posted.json["type"] for posted in hook.posted] == ["failed", "held"]
    site.later()
    site.tell()
    site.tell()
    assert [posted.json["type"] for posted in hook.posted] == ["failed", "held", "failed"]
    ids = [posted.headers["webhook-id"] for posted in hook.posted]
    assert ids[0] == ids[2] != ids[1]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_several_schedulers_make_and_send_each_notice_once(
    database: str, tmp_path: Path, hook: WebHook, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("postgresql") if database == "postgresql" else None
    site = Office(tmp_path, url, notices=[{"name": "A", "url": hook.url}])
    for number in range(12):
        site.happens("failed", study_instance_uid=f"1.2.{number}")
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(site.tell) for _ in range(4)]:
            done.result()
    site.tell()
    told = [posted.json["data"]["study_instance_uid"] for posted in hook.posted]
    assert sorted(told) == sorted(f"1.2.{number}" for number in range(12))
    with site.ledger.read() as session:
        assert session.scalars(select(Occurrence)).all() == []
    site.ledger.close()


def test_a_destination_that_stays_away_is_told_once_an_outage(
    office: Callable[..., Office], hook: WebHook
) -> None:
    site = office(
        {"name": "A", "url": hook.url, "destination_down_after": "20m"}, working_hours="Sun 00:00-00:01"
    )

    def away(minutes: float) -> None:
        with site.ledger.write() as session:
            moment = now()
            session.merge(
                Circuit(
                    destination="PACS",
                    since=moment - timedelta(minutes=minutes),
                    failures=3,
                    open_until=moment,
                    last_error="cannot be reached",
                )
            )

    away(19)
    site.tell()
    assert hook.posted == []
    away(21)
    site.tell()
    site.tell()
    (posted,) = hook.posted
    assert posted.json["type"] == "destination_down"
    assert posted.json["data"]["detail"].startswith("PACS, since ")
    away(25)
    site.tell()
    assert len(hook.posted) == 2, "another outage"


def test_silence_in_working_time_is_told_once_and_again_after_the_next_study(
    office: Callable[..., Office], hook: WebHook
) -> None:
    site = office({"name": "A", "url": hook.url, "silence_after": "3h"}, working_hours="Mon-Sun 00:00-24:00")
    site.tell()
    assert hook.posted == [], "the installation is new"

    def newest(hours: float, uid: str) -> None:
        site.happens("received", study_instance_uid=uid, received_at=now() - timedelta(hours=hours))

    newest(2.9, "1.2.3")
    site.tell()
    assert hook.posted == []
    newest(3.1, "1.2.3")
    site.tell()
    site.tell()
    (posted,) = hook.posted
    assert posted.json["type"] == "silence"
    assert "no study for 3 h" in posted.json["data"]["detail"]
    newest(3.05, "1.2.4")
    site.tell()
    assert len(hook.posted) == 2


def test_mails_go_over_starttls_with_a_password(
    office: Callable[..., Office], authority: Authority, password_file: Path
) -> None:
    with mailbox(authority.issue("localhost"), user="hilum", password="open sesame") as box:
        channel = mail_to(box, authority, user="hilum", password_file=password_file)
        site = office(channel, timezone="Europe/Berlin")
        site.happens("held", "images of two patients under one Study Instance UID")
        site.tell()
        (mail,) = box.mails
        assert mail["Subject"] == "Hilum: a study is held"
        assert (mail["From"], mail["To"]) == (MAIL["from"], MAIL["to"][0])
        assert mail["Auto-Submitted"] == "auto-generated"
        assert site.notices[0].message_id in mail["Message-ID"]
        text = mail.get_content()
        assert "images of two patients under one Study Instance UID" in text
        assert "study 1.2.3" in text
        assert "CET" in text or "CEST" in text
        assert box.tls[0] in ("TLSv1.2", "TLSv1.3")
        assert box.users == ["hilum"]
        password_file.write_text("wrong", encoding="utf-8")
        site.happens("failed")
        with site.ledger.write() as session:
            session.execute(update(Notice).values(ready_at=now() - timedelta(minutes=6)))
        site.tell()
        assert "refuses user or password" in (site.notices[-1].last_error or "")
        assert len(box.mails) == 1


def test_a_positive_a_failure_and_silence_are_mailed(
    office: Callable[..., Office], authority: Authority
) -> None:
    with mailbox(authority.issue("localhost")) as box:
        channel = mail_to(box, authority, events=["positive", "failed", "silence"], silence_after="3h")
        site = office(channel, working_hours="Mon-Sun 00:00-24:00")
        ago = now() - timedelta(hours=3.1)
        site.happens("reported", finding="present", probability=0.91, received_at=ago)
        site.happens("failed", "the report could not be built", "1.2.4", received_at=ago)
        site.tell()
        text = "\n".join(mail.get_content() for mail in box.mails)
        for said in (
            "91.0 %",
            "study 1.2.3",
            "the report could not be built",
            "study 1.2.4",
            "no study for 3 h",
        ):
            assert said in text, text


def test_mails_go_over_tls_from_the_first_byte(office: Callable[..., Office], authority: Authority) -> None:
    with mailbox(authority.issue("localhost"), implicit=True) as box:
        site = office(mail_to(box, authority, "smtps"))
        site.happens("failed")
        site.tell()
        assert [mail["Subject"] for mail in box.mails] == ["Hilum: a study or film failed"]


def test_a_mail_server_without_tls_or_of_another_ca_gets_nothing(
    office: Callable[..., Office], authority: Authority, tmp_path: Path
) -> None:
    with mailbox(None) as plain:
        site = office(mail_to(plain, authority))
        site.happens("failed")
        site.tell()
        assert plain.mails == []
        assert "offers no STARTTLS" in (site.notices[0].last_error or "")
    with mailbox(Authority(tmp_path, "Another authority").issue("localhost")) as foreign:
        settings = load(data_dir=tmp_path / "data", notices=[mail_to(foreign, authority)])
        site.later()
        Notices(site.ledger, settings).round(threading.Event())
        assert foreign.mails == []
        assert "signed by a CA that is not in ca_file" in (site.notices[0].last_error or "")


def test_many_notices_are_one_mail_and_the_next_one_waits_a_while(
    office: Callable[..., Office], authority: Authority
) -> None:
    with mailbox(authority.issue("localhost")) as box:
        site = office(mail_to(box, authority))
        for number in range(9):
            site.happens("parked", study_instance_uid=f"1.2.{number}")
        site.tell()
        (mail,) = box.mails
        assert mail["Subject"] == "Hilum: 9 notices: a report is parked"
        assert all(f"  study 1.2.{number}" in mail.get_content().splitlines() for number in range(9))
        site.happens("failed")
        site.happens("held")
        site.tell()
        assert len(box.mails) == 1
        with site.ledger.write() as session:
            session.execute(update(Notice).values(ready_at=now() - timedelta(minutes=6)))
        site.tell()
        assert box.mails[1]["Subject"] == "Hilum: 2 notices: a study or film failed; a study is held"


def test_a_busy_mail_server_is_asked_again(office: Callable[..., Office], authority: Authority) -> None:
    with mailbox(authority.issue("localhost")) as box:
        site = office(mail_to(box, authority))
        box.refuses = 1
        site.happens("failed")
        site.tell()
        assert "451" in (site.notices[0].last_error or "")
        site.later()
        site.tell()
        assert len(box.mails) == 1


def test_a_receiver_that_says_nothing_holds_up_neither_the_ticks_nor_the_others(
    tmp_path: Path, hook: WebHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting, "_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        site = Office(tmp_path, notices=[{"name": "A", "url": url}, {"name": "B", "url": hook.url}])
        for number in range(5):
            site.happens("failed", study_instance_uid=f"1.2.{number}")
        beside = Beside("notices", site.tell, 5)
        began = time.monotonic()
        beside.tick(began)
        assert time.monotonic() - began < 0.5
        beside.join()
        # One try for the silent one, not one for each notice.
        assert time.monotonic() - began < 4
    assert len(hook.posted) == 5
    site.ledger.close()


def test_without_channels_nothing_piles_up_and_a_channel_that_is_gone_leaves_nothing_waiting(
    tmp_path: Path, hook: WebHook
) -> None:
    hook.answers = [500]
    site = Office(tmp_path, notices=[{"name": "A", "url": hook.url}])
    site.happens("failed")
    site.tell()
    site.settings = load(data_dir=tmp_path / "data", notices=[])
    site.happens("held")
    site.tell()
    with site.ledger.read() as session:
        assert session.scalars(select(Occurrence)).all() == []
    (row,) = site.notices
    assert row.state == NoticeState.GIVEN_UP
    with site.ledger.write() as session:
        session.execute(update(Notice).values(ready_at=now() - timedelta(days=31)))
    site.tell()
    assert site.notices == []
    site.ledger.close()


def test_an_erased_study_takes_its_notices_with_it(tmp_path: Path, hook: WebHook) -> None:
    context = pipeline.opened_at(tmp_path, notices=[{"name": "A", "url": hook.url}])
    pipeline.receive(context, pipeline.film(1))
    uid = pipeline.study(context).study_instance_uid
    hook.answers = [500]
    for kind in ("failed", "held"):
        with context.ledger.write() as session:
            record_event(session, session.scalars(select(Study)).one(), kind, "why")
        if kind == "failed":
            Notices(context.ledger, context.settings).round(threading.Event())
    purging.purge(context.ledger, context.spool, context.audit, uid, "admin", "asked")
    with context.ledger.read() as session:
        for table in (Notice, Occurrence):
            assert session.scalars(select(table)).all() == []
    context.ledger.close()


def test_the_command_sends_a_test_and_says_why_not(
    office: Callable[..., Office], hook: WebHook, capsys: pytest.CaptureFixture[str]
) -> None:
    site = office({"name": "A", "url": hook.url})
    assert send_test_notice(site.settings, "A") == 0
    assert hook.posted[0].json["type"] == "test"
    hook.answers = [404]
    assert send_test_notice(site.settings, "A") == 1
    assert "it answered 404" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match="known: A"):
        send_test_notice(site.settings, "B")


def test_the_doctor_warns_when_nobody_is_told_or_anybody_could_be_lied_to(
    office: Callable[..., Office], hook: WebHook
) -> None:
    (check,) = examine_notices(load())
    assert check.warns
    (check,) = examine_notices(office({"name": "A", "url": hook.url}).settings)
    assert check.warns
    assert "secret_file" in check.mend
    assert "https://" in check.mend
    (check,) = examine_notices(load(notices="A=https://127.0.0.1:1/"))
    assert not check.right


def test_a_study_s_moment_is_that_of_what_happened(office: Callable[..., Office], hook: WebHook) -> None:
    site = office({"name": "A", "url": hook.url})
    before = datetime.now(UTC)
    site.happens("failed")
    site.tell()
    told = datetime.fromisoformat(hook.posted[0].json["timestamp"])
    assert abs((told - before).total_seconds()) < 5
