"""A study is erased: nothing of it is left but its UIDs, and nothing brings it back."""

import json
import os
import pty
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from sqlalchemy import func, select, update

from service.commands.purge import let_in_again, purge_study
from service.commands.status import status
from service.core import purge as purging
from service.core import repair
from service.core.claims import claim
from service.core.leases import DELIVER
from service.core.ledger import now
from service.core.purge import finish_erasures, lift, look, purge
from service.core.receive import Arrival, Intake, Outcome
from service.core.repair import Repair
from service.core.states import DeliveryState, StudyState
from service.core.tables import Base, Event, Outbox, Report, Study, Subject, Tombstone, TombstoneInstance
from service.core.tombstones import Erasure, ErasureFile
from tests import audit_trail, factories
from tests.integration.test_commands import hilum
from tests.pipeline import film, instances, opened_at, receive, says, study, work
from worker.context import Context
from worker.tasks import batch, decode, deliver, infer, report

both = pytest.mark.parametrize("context", ["sqlite", "postgresql"], indirect=True)
_NAME = "CANARY^PATIENT"
_OF_NOBODY = {"installation", "model", "model_change", "heartbeat", "scheduler_lease"}
_OF_NOBODY |= {"tombstone", "tombstone_instance"}


@pytest.fixture
def context(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Context]:
    chosen = getattr(request, "param", "sqlite")
    url = None if chosen == "sqlite" else request.getfixturevalue("postgresql")
    opened = opened_at(tmp_path, database_url=url, destinations="PACS=dicom://PACS@127.0.0.1:9")
    says(monkeypatch, 0.9)
    monkeypatch.setattr(repair, "_PAUSE_SECONDS", 0.0)
    yield opened
    opened.ledger.close()


def small(seed: int = 0, **options: Any) -> Dataset:
    return factories.phantom_chest(
        seed, rows=64, columns=64, PatientName=_NAME, PatientID="CANARY-4711", **options
    )


def uid(context: Context) -> str:
    return study(context).study_instance_uid


def erase(context: Context, study_instance_uid: str | None = None) -> None:
    purge(
        context.ledger, context.spool, context.audit, study_instance_uid or uid(context), "admin", "ticket 12"
    )


def files(context: Context) -> list[Path]:
    folders = ("spool", "films", "reports")
    return [path for name in folders for path in (context.spool.root / name).rglob("*") if path.is_file()]


def rows(context: Context) -> dict[str, int]:
    """Return how many rows there are of studies, by table."""
    with context.ledger.read() as session:
        return {
            table.name: count
            for table in Base.metadata.sorted_tables
            if table.name not in _OF_NOBODY
            and (count := session.scalar(select(func.count()).select_from(table)))
        }


def arrive(context: Context, one: Dataset) -> Outcome:
    path = factories.write(one, context.spool.incoming)
    return Intake(context.ledger, context.spool, context.settings).receive(Arrival(path, "TEST"))


def mend(context: Context) -> None:
    intake = Intake(context.ledger, context.spool, context.settings)
    Repair(context.ledger, context.spool, intake).round(threading.Event())


@both
def test_everything_of_an_erased_study_is_gone_but_its_uids(context: Context) -> None:
    one = film(PatientName=_NAME, PatientID="CANARY-4711")
    receive(context, one)
    work(context)
    assert claim(context.ledger, DELIVER, 1)
    receive(context, factories.key_object_note(one))
    assert {"subject", "report", "outbox", "rejection"} <= set(rows(context))
    erase(context)
    assert (rows(context), files(context)) == ({}, [])
    with context.ledger.read() as session:
        (stone,) = session.scalars(select(Tombstone)).all()
        named = session.scalars(select(TombstoneInstance.sop_instance_uid)).all()
    assert (stone.study_instance_uid, stone.by, stone.reason) == (one.StudyInstanceUID, "admin", "ticket 12")
    assert one.SOPInstanceUID in named
    erasures = context.spool.root / "erased.jsonl"
    assert stat.S_IMODE(erasures.stat().st_mode) == 0o600
    kept = list(context.spool.root.glob("*"))
    assert b"CANARY" not in b"".join(path.read_bytes() for path in kept if path.is_file())


@both
def test_an_erased_study_that_is_sent_again_is_answered_and_not_taken_in_until_that_is_lifted(
    context: Context,
) -> None:
    one, other = small(1, study="s"), small(2, study="s")
    receive(context, one)
    erase(context)
    assert arrive(context, one) is Outcome.ERASED
    assert arrive(context, other) is Outcome.ERASED  # a later image of the study
    moved = small(1, study="s")
    moved.StudyInstanceUID = "1.2.3.4"
    assert arrive(context, moved) is Outcome.ERASED  # the same image under another study
    assert (rows(context), files(context)) == ({}, [])
    with context.ledger.read() as session:
        assert session.scalars(select(Tombstone.ignored)).one() == 3
    assert lift(context.ledger, context.spool, one.StudyInstanceUID, "admin", "")
    assert arrive(context, one) is Outcome.STORED
    assert finish_erasures(context.ledger, context.spool, context.audit) == 0
    assert rows(context)["instance"] == 1


def test_an_erasure_is_told_in_the_audit_trail_with_who_asked_for_it(context: Context) -> None:
    one, other = small(1, study="s"), small(2, study="s")
    receive(context, one, other)
    erase(context)
    (message,) = audit_trail.of(context.settings.data_dir, "110105")
    assert audit_trail.event(message) == ("110105", "", "0")
    assert audit_trail.objects(message, "110180") == [one.StudyInstanceUID]
    assert audit_trail.objects(message, "2") == ["CANARY-4711^^^HILUM-TEST"]
    assert audit_trail.instances(message) == {one.SOPClassUID: 2}
    (requestor,) = message.xpath("ActiveParticipant[@UserIsRequestor='true']")
    assert requestor.get("UserID") == "admin"


def test_an_erased_study_leaves_the_others_alone(context: Context) -> None:
    receive(context, small(1), small(2))
    first, _ = instances(context)
    erase(context)
    assert [item.id for item in instances(context)] == [first.id]
    assert len(files(context)) == 1


@both
@pytest.mark.parametrize(
    "place", ["purge.written", "purge.marked", "purge.files_removed", "purge.told", "first file"]
)
def test_a_kill_in_the_middle_of_an_erasure_is_gone_on_from_at_the_next_start(
    context: Context, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    class Killed(BaseException):
        pass

    def failpoint(name: str) -> None:
        if name == place:
            raise Killed

    def remove(relative: str) -> None:
        context.spool.absolute(relative).unlink()
        raise Killed

    one = small()
    receive(context, one)
    with monkeypatch.context() as killed:
        killed.setattr(purging, "failpoint", failpoint)
        if place == "first file":
            killed.setattr(context.spool, "remove", remove)
        with pytest.raises(Killed):
            erase(context)
    if place != "purge.written":
        assert arrive(context, one) is Outcome.ERASED
    mend(context)
    finish_erasures(context.ledger, context.spool, context.audit)
    assert (rows(context), files(context)) == ({}, [])
    assert arrive(context, one) is Outcome.ERASED
    told = audit_trail.of(context.settings.data_dir, "110105")
    assert len(told) == (2 if place == "purge.told" else 1)
    assert [audit_trail.objects(item, "2") for item in told] == [["CANARY-4711^^^HILUM-TEST"]] * len(told)


def test_what_a_crash_left_of_an_erased_study_is_not_adopted(context: Context) -> None:
    one = small()
    receive(context, one)
    erase(context)
    context.spool.keep(factories.write(one, context.spool.incoming))
    mend(context)
    assert (rows(context), files(context)) == ({}, [])


@pytest.mark.parametrize("stage", ["decode", "infer", "report"])
@both
def test_work_under_way_on_an_erased_study_fails_harmlessly_and_removes_what_it_wrote(
    context: Context, monkeypatch: pytest.MonkeyPatch, stage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    receive(context, film())
    context.model()  # its weights are in the data folder before any film is worked on
    write = context.spool.write
    monkeypatch.setattr({"decode": decode, "infer": infer, "report": report}[stage], "run", _paused)
    if stage != "decode":
        work(context)
    monkeypatch.undo()
    says(monkeypatch, 0.9)

    def erased_meanwhile(*arguments: Any) -> str:
        path = write(*arguments)
        if rows(context):
            erase(context)
        return path

    monkeypatch.setattr(context.spool, "write", erased_meanwhile)
    work(context)
    assert (rows(context), files(context)) == ({}, [])
    said = "".join(capfd.readouterr())
    assert f"{stage}.lease_lost" in said
    assert "Traceback" not in said


def _paused(_: Context) -> None:
    """Do nothing."""


@both
def test_a_delivery_under_way_of_an_erased_study_fails_harmlessly_and_others_go_on(
    context: Context, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2):
        receive(context, film(seed))
    for _ in range(2):
        work(context)
    with context.ledger.read() as session:
        first = session.scalars(select(Study).order_by(Study.id)).first()
        assert first is not None
        waiting = session.scalars(select(Outbox.id).join(Report).where(Report.study_id != first.id)).all()
    read = batch.read

    def erased_meanwhile(*claimed: Any) -> Any:
        erase(context, first.study_instance_uid)
        return read(*claimed)

    monkeypatch.setattr(batch, "read", erased_meanwhile)
    deliver.run(context)  # to a port where nobody listens
    with context.ledger.read() as session:
        left = session.scalars(select(Outbox)).all()
    assert sorted(item.id for item in left) == sorted(waiting)
    assert all(item.state == DeliveryState.PENDING and "cannot be" in str(item.last_error) for item in left)
    assert "deliver.lease_lost" in "".join(capfd.readouterr())


def test_a_ledger_that_forgot_an_erasure_does_it_again(context: Context) -> None:
    """As after a restore from a backup that was made before."""
    one = small()
    receive(context, one)
    file = ErasureFile(context.spool)
    file.append(Erasure(one.StudyInstanceUID, [one.SOPInstanceUID], now().isoformat(), "admin", "ticket"))
    assert finish_erasures(context.ledger, context.spool, context.audit) == 1
    assert (rows(context), files(context)) == ({}, [])
    assert finish_erasures(context.ledger, context.spool, context.audit) == 0


def test_a_torn_line_in_the_file_of_erasures_hides_no_other(context: Context) -> None:
    file = ErasureFile(context.spool)
    file.append(Erasure("1.2.3", [], now().isoformat(), "admin", "ticket"))
    with (context.spool.root / "erased.jsonl").open("a") as stream:
        stream.write('{"study_instance_uid": "1.2')
    file.append(Erasure("1.2.4", [], now().isoformat(), "admin", "ticket"))
    assert set(file.newest()) == {"1.2.3", "1.2.4"}


def test_the_command_asks_and_says_what_remains_elsewhere(
    context: Context, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    receive(context, small())
    found = uid(context)
    with context.ledger.write() as session:
        report = Report(
            **dict.fromkeys(("sop_class_uid", "series_instance_uid", "transfer_syntax_uid"), "1.2"),
            **dict.fromkeys(("path", "digest"), ""),
            **dict.fromkeys(("study_id", "revision", "part", "size"), 1),
            kind="sr",
            sop_instance_uid="1.2.3",
            created_at=now(),
        )
        session.add(report)
        session.flush()
        session.add(
            Outbox(destination="PACS", report_id=report.id, required=True, state="delivered", ready_at=now())
        )
    settings = context.settings

    def ask(**options: Any) -> int:
        given = {"reason": "ticket 12", "yes": False, "dry_run": False, "as_json": False, **options}
        return purge_study(settings, found, given.pop("reason"), **given)

    capsys.readouterr()
    assert ask() == 2
    assert capsys.readouterr().err == "hilum: nobody is here to agree: add --yes\n"
    assert ask(yes=True, reason=" ") == 2
    assert "--reason" in capsys.readouterr().err
    assert ask(dry_run=True, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 1
    with on_a_terminal(monkeypatch, "n"):
        assert ask() == 1
    assert look(context.ledger, context.spool, found) is not None
    assert "This can't be undone" in capsys.readouterr().err
    with on_a_terminal(monkeypatch, "y"):
        assert ask() == 0
    screen = capsys.readouterr().out
    assert f"{found}: erased, 1 instance(s), 1 file(s)" in screen
    assert "1 report(s) at PACS: delete them there" in screen
    assert "backups made before" in screen
    assert ask(yes=True) == 0
    assert "was erased on" in capsys.readouterr().out
    assert status(settings, found, 1, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "erased"
    assert let_in_again(settings, found, "", as_json=False) == 0
    assert let_in_again(settings, found, "", as_json=False) == 1
    assert ask(yes=True) == 1


@contextmanager
def on_a_terminal(monkeypatch: pytest.MonkeyPatch, answer: str) -> Iterator[None]:
    """Let somebody sit there who types `answer`."""
    screen, terminal = pty.openpty()
    os.write(screen, f"{answer}\n".encode())
    with open(terminal) as stdin, monkeypatch.context() as changed:  # noqa: PTH123
        changed.setattr(sys, "stdin", stdin)
        yield
    os.close(screen)


@pytest.mark.parametrize(
    ("place", "arguments"),
    [
        ("purge.files_removed", "study"),
        ("purge.rows_deleted", "study"),
        ("retention.files_removed", "expired"),
        ("purge.lift_written", "lift"),
    ],
)
def test_a_command_that_is_killed_is_gone_on_with(
    context: Context, tmp_path: Path, place: str, arguments: str
) -> None:
    one = small()
    receive(context, one)
    given = {"data_dir": str(context.settings.data_dir), "min_free_bytes": "0", "failpoint": place}
    command = {
        "study": ["--study", uid(context), "--reason", "t", "--yes"],
        "lift": ["--study", uid(context), "--lift"],
        "expired": ["--expired"],
    }[arguments]
    if arguments == "lift":
        erase(context)
    with context.ledger.write() as session:
        session.execute(update(Study).values(received_at=now().replace(year=2020), state=StudyState.REPORTED))
        session.execute(update(Event).values(at=now().replace(year=2020)))
    assert hilum(tmp_path, "purge", *command, **given).returncode == 137
    finish_erasures(context.ledger, context.spool, context.audit)
    if arguments == "expired":
        assert hilum(tmp_path, "purge", *command, **{**given, "failpoint": ""}).returncode == 0
        with context.ledger.read() as session:
            assert "CANARY" not in session.scalars(select(Subject.patient_id)).one()
    else:
        assert rows(context) == {}
    assert files(context) == []
    assert (
        arrive(context, one)
        is {
            "study": Outcome.ERASED,
            "lift": Outcome.STORED,
            "expired": Outcome.STORED,  # it was given up: it is taken in anew
        }[arguments]
    )
