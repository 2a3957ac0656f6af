"""The ledger saved while everything runs, and put back: what came since is found, what went stays gone."""

import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from sqlalchemy import select, text

from service.commands.roles import serve_api
from service.core import backup, heartbeat, repair
from service.core.backup import after_restore, back_up, restore
from service.core.errors import ConfigurationError
from service.core.heartbeat import beat
from service.core.ledger import (
    _alembic_config,
    check_migrated,
    migrate,
    now,
    open_engine,
    record_event,
)
from service.core.purge import purge
from service.core.receive import Intake
from service.core.repair import Repair, differences
from service.core.retention import Retention
from service.core.states import StudyState
from service.core.tables import Event, Heartbeat, Study
from tests import audit_trail, factories
from tests.pipeline import film, hurry, instances, opened_at, receive, reports, says, send_all, study, work
from tests.servers import ROOT, Orthanc, eventually
from worker.context import Context

both = pytest.mark.parametrize("context", ["sqlite", "postgresql"], indirect=True)
Opener = Callable[..., Context]


@pytest.fixture
def opener(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Opener]:
    """Open a data folder and ledger, with settings of the test's choice."""
    opened: list[Context] = []
    monkeypatch.setattr(repair, "_PAUSE_SECONDS", 0.0)
    says(monkeypatch, 0.9)

    def open_(**given: Any) -> Context:
        opened.append(opened_at(tmp_path, **given))
        return opened[-1]

    yield open_
    for context in opened:
        context.ledger.close()


@pytest.fixture
def context(request: pytest.FixtureRequest, opener: Opener) -> Context:
    chosen = getattr(request, "param", "sqlite")
    return opener(database_url=None if chosen == "sqlite" else request.getfixturevalue("postgresql"))


def small(seed: int = 0) -> Any:
    return factories.phantom_chest(seed, rows=64, columns=64)


def studies(context: Context) -> set[str]:
    with context.ledger.read() as session:
        return set(session.scalars(select(Study.study_instance_uid)))


def mend(context: Context) -> None:
    intake = Intake(context.ledger, context.spool, context.settings)
    Repair(context.ledger, context.spool, intake).round(threading.Event())


@both
def test_a_ledger_that_was_saved_is_put_back_as_it_was(context: Context, tmp_path: Path) -> None:
    receive(context, small(1))
    saved, identity = studies(context), context.ledger.installation()
    file = tmp_path / "ledger.backup"
    assert back_up(context.settings, file) == file.stat().st_size > 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.glob("ledger.backup*")] == [file.name]
    receive(context, small(2))
    restore(context.settings, file, "admin")
    assert (studies(context), context.ledger.installation()) == (saved, identity)
    assert check_migrated(context.settings.sqlalchemy_url)
    mend(context)
    assert len(studies(context)) == 2  # its image was on disk


@both
def test_a_backup_is_one_moment_of_a_ledger_that_is_written_meanwhile(
    context: Context, tmp_path: Path
) -> None:
    receive(context, small())
    stopped = threading.Event()
    written = [0]

    def write() -> None:
        while not stopped.is_set():
            with context.ledger.write() as session:
                found = session.scalars(select(Study)).one()
                found.build += 1
                record_event(session, found, "retried", "x" * 2000)
            written[0] += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        eventually(lambda: written[0], 10, "the first write")
        for number in range(5):
            before = written[0]
            back_up(context.settings, tmp_path / f"backup{number}")
            eventually(lambda before=before: written[0] > before, 10, "the next write")
    finally:
        stopped.set()
        thread.join()
    for number in range(5):
        restore(context.settings, tmp_path / f"backup{number}", "admin")
        with context.ledger.read() as session:
            builds = session.scalars(select(Study.build)).one()
            told = len(session.scalars(select(Event.id).where(Event.kind == "retried")).all())
        assert builds == told


@both
def test_what_cannot_be_restored_leaves_the_ledger_as_it_is(context: Context, tmp_path: Path) -> None:
    receive(context, small())
    saved = studies(context)
    good, junk = tmp_path / "good", tmp_path / "junk"
    junk.write_bytes(b"SQLite format 3\0" + bytes(5000))
    back_up(context.settings, good)
    with pytest.raises(ConfigurationError, match="is there already"):
        back_up(context.settings, good)
    with pytest.raises(ConfigurationError, match="is no ledger that `hilum backup` made"):
        restore(context.settings, junk, "admin")
    with pytest.raises(ConfigurationError, match="does not exist"):
        restore(context.settings, tmp_path / "nothing", "admin")
    with context.ledger.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    newer = tmp_path / "newer"
    back_up(context.settings, newer)
    with context.ledger.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0005'"))
    with pytest.raises(ConfigurationError, match="made by a newer version"):
        restore(context.settings, newer, "admin")
    assert studies(context) == saved


@both
def test_a_restore_is_refused_while_a_role_runs_and_not_just_after_it_ended(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "BEAT_SECONDS", 0.3)
    file = tmp_path / "file"
    back_up(context.settings, file)
    stopped = threading.Event()

    def live() -> None:
        while not stopped.wait(0.1):
            beat(context.ledger, "decode")

    thread = threading.Thread(target=live)
    thread.start()
    try:
        eventually(lambda: newest_heartbeat(context), 10, "a heartbeat")
        with pytest.raises(ConfigurationError, match="stop every role first"):
            restore(context.settings, file, "admin")
    finally:
        stopped.set()
        thread.join()
    beat(context.ledger, "decode")
    restore(context.settings, file, "admin")
    with context.ledger.read() as session:
        assert not session.scalars(select(Heartbeat)).all()


def test_a_restore_is_refused_while_the_api_alone_runs(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(context.settings, tmp_path / "file")
    said: list[str] = []

    def served(*_: object) -> None:
        eventually(lambda: newest_heartbeat(context), 10, "a heartbeat")
        with pytest.raises(ConfigurationError, match="stop every role first") as refusal:
            restore(context.settings, tmp_path / "file", "admin")
        said.append(str(refusal.value))

    monkeypatch.setattr("service.api.server.serve", served)
    monkeypatch.setattr("service.core.logs.configure", lambda *_: None)
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.1)
    serve_api(context.settings)
    assert said


def test_a_restore_is_told_in_the_audit_trail_with_who_asked_for_it(context: Context, tmp_path: Path) -> None:
    back_up(context.settings, tmp_path / "file")
    restore(context.settings, tmp_path / "file", "admin")
    (alert,) = audit_trail.of(context.settings.data_dir, "110113")
    assert audit_trail.event(alert) == ("110113", "110132", "0")
    assert audit_trail.alert(alert) == "the ledger was replaced by an earlier one"
    (requestor,) = alert.xpath("ActiveParticipant[@UserIsRequestor='true']")
    assert requestor.get("UserID") == "admin"


def newest_heartbeat(context: Context) -> list[Heartbeat]:
    with context.ledger.read() as session:
        return list(session.scalars(select(Heartbeat)))


def test_an_older_ledger_is_brought_to_this_version_when_it_is_restored(
    context: Context, tmp_path: Path
) -> None:
    receive(context, small())
    saved = studies(context)
    engine = open_engine(context.settings.sqlalchemy_url)
    config = _alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0004")
    engine.dispose()
    back_up(context.settings, tmp_path / "old")
    migrate(context.settings.sqlalchemy_url)
    assert restore(context.settings, tmp_path / "old", "admin") == check_migrated(
        context.settings.sqlalchemy_url
    )
    assert studies(context) == saved


@both
def test_what_was_erased_after_the_backup_is_erased_again_by_the_restore(
    context: Context, tmp_path: Path
) -> None:
    receive(context, small(1), small(2))
    file = tmp_path / "file"
    back_up(context.settings, file)
    gone = study(context).study_instance_uid
    purge(context.ledger, context.spool, context.audit, gone, "admin", "ticket 12")
    restore(context.settings, file, "admin")
    assert len(studies(context)) == 1
    assert gone not in studies(context)
    erased, again = audit_trail.of(context.settings.data_dir, "110105")
    assert audit_trail.objects(erased, "110180") == audit_trail.objects(again, "110180") == [gone]
    receive(context, small(2))
    mend(context)
    assert gone not in studies(context)


@both
def test_what_retention_removed_after_the_backup_is_not_missed(context: Context, tmp_path: Path) -> None:
    """Also when PostgreSQL's own programs, or a snapshot, put the ledger back."""
    receive(context, small(1), small(2))
    with context.ledger.write() as session:
        for item in session.scalars(select(Study)):
            item.state, item.due_at = StudyState.REPORTED, None
            item.received_at -= timedelta(days=40)
            for image in item.instances:
                image.state = "not_analysed"
            for event in item.events:
                event.at = now() - timedelta(days=40)
    back_up(context.settings, tmp_path / "file")
    assert Retention(context.ledger, context.spool, context.settings).round(threading.Event()).files == 2
    restore(context.settings, tmp_path / "file", "admin")
    after_restore(context.settings, "admin")
    mend(context)
    with context.ledger.read() as session:
        found = session.scalars(select(Study)).all()
    assert [(item.attention, item.expired_at is None) for item in found] == [(None, False)] * 2
    assert not any(paths for both_ in differences(context.ledger, context.spool) for paths in both_)


def test_a_restored_ledger_finds_what_came_since_and_makes_no_second_report_of_it(
    opener: Opener, tmp_path: Path
) -> None:
    with Orthanc(DicomAlwaysAllowFind=True) as pacs:
        context = opener(destinations=f"PACS={pacs.destination}")
        before, since = film(1), film(2)
        receive(context, before)
        work(context)
        back_up(context.settings, tmp_path / "file")  # reported, and not sent yet
        receive(context, since)
        work(context)
        send_all(context)
        made = {report.sop_instance_uid for report in reports(context)}
        there = {pacs.download(item) for uid in studies(context) for item in pacs.instances(uid)}
        assert len(there) == len(made) == 4

        restore(context.settings, tmp_path / "file", "admin")
        assert len(instances(context)) == 1
        mend(context)
        assert len(instances(context)) == 2
        hurry(context)
        work(context)
        send_all(context)
        assert {report.sop_instance_uid for report in reports(context)} == made
        held = {item.sop_instance_uid for uid in studies(context) for item in pacs.instances(uid)}
        assert held == made
        assert {item.state for item in all_studies(context)} <= {StudyState.DELIVERED, StudyState.CONFIRMED}


def all_studies(context: Context) -> list[Study]:
    with context.ledger.read() as session:
        return list(session.scalars(select(Study)))


def test_the_password_of_the_database_is_on_no_command_line(
    opener: Opener, postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = opener(database_url=postgresql.replace("hilum@", "hilum:secret-word@"))
    seen: list[tuple[tuple[str, ...], str | None]] = []
    run = backup._run

    def spy(program: str, *arguments: str, password: str | None = None) -> str:
        seen.append((arguments, password))
        return run(program, *arguments, password=password)

    monkeypatch.setattr(backup, "_run", spy)
    back_up(context.settings, tmp_path / "file")
    restore(context.settings, tmp_path / "file", "admin")
    assert {password for _, password in seen} == {"secret-word", None}
    assert "secret-word" not in str([arguments for arguments, _ in seen])
    url = context.settings.sqlalchemy_url.replace("+psycopg", "")
    with closing(psycopg.connect(url)) as connection:
        assert connection.execute("SELECT count(*) FROM installation").fetchone() == (1,)


def test_postgresql_s_own_programs_save_and_put_back_as_the_runbook_says(
    opener: Opener, postgresql: str, tmp_path: Path
) -> None:
    context = opener(database_url=postgresql)
    receive(context, small(1))
    gone = study(context).study_instance_uid
    file = tmp_path / "dump"
    connection = f"--dbname={postgresql.replace('+psycopg', '')}"
    runbook = (ROOT / "deploy/runbook.md").read_text(encoding="utf-8")
    save = ("--format=custom", "--no-owner")
    put_back = ("--clean", "--if-exists", "--no-owner", "--single-transaction")
    assert f"pg_dump -U hilum {' '.join(save)}" in runbook
    assert f"pg_restore -U hilum {' '.join(put_back)}" in runbook
    backup._run("pg_dump", *save, f"--file={file}", connection)
    purge(context.ledger, context.spool, context.audit, gone, "admin", "ticket 12")
    receive(context, small(2))
    backup._run("pg_restore", *put_back, connection, str(file))
    assert studies(context) == {gone}
    after_restore(context.settings, "admin")
    mend(context)
    assert studies(context) == {small(2).StudyInstanceUID}
