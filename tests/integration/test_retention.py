"""How long files are kept, what goes first, and what is left of a study without its files."""

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from sqlalchemy import select, update

from service.commands.purge import purge_expired
from service.commands.status import retry, status
from service.core import removal, repair, retention
from service.core.checks import Check, examine
from service.core.errors import OutOfResources
from service.core.ledger import now, register_model
from service.core.live import Live
from service.core.receive import Arrival, Intake, Outcome
from service.core.repair import Repair, Repaired, differences
from service.core.retention import Cause, Retention
from service.core.retry import retry_study
from service.core.settings import load
from service.core.settlement import settle
from service.core.states import DELIVERED_STATES, DeliveryState, InstanceState, StudyState
from service.core.tables import (
    Analysis,
    Confirmation,
    Event,
    Instance,
    Outbox,
    Refusal,
    Report,
    Study,
    Subject,
)
from service.core.tombstones import Erasure, ErasureFile
from service.scheduler.notices import Notices
from service.scheduler.scheduler import Scheduler
from tests import audit_trail, factories
from tests.pipeline import film, instances, opened_at, receive, reports, says, study, work
from worker.context import Context
from worker.tasks import decode, report

both = pytest.mark.parametrize("context", ["sqlite", "postgresql"], indirect=True)
_NAME = "CANARY^PATIENT"
_ID = "CANARY-4711"
_MADE = (("films", ".npy"), ("films", ".activation.npy"), ("reports", ".dcm"))


@pytest.fixture
def context(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Context]:
    """Ledger and data folder, without destinations; every film is positive. SQLite unless the test says."""
    chosen = getattr(request, "param", "sqlite")
    url = None if chosen == "sqlite" else request.getfixturevalue("postgresql")
    opened = opened_at(tmp_path, database_url=url)
    says(monkeypatch, 0.9)
    monkeypatch.setattr(repair, "_PAUSE_SECONDS", 0.0)
    yield opened
    opened.ledger.close()


def keeping(context: Context, **changed: Any) -> Retention:
    return Retention(context.ledger, context.spool, context.settings.model_copy(update=changed))


def removed(context: Context, **changed: Any) -> int:
    """Do a round and return how many files went."""
    return keeping(context, **changed).round(threading.Event()).files


def older(context: Context, days: float) -> None:
    """Let everything have happened so much earlier."""
    earlier = timedelta(days=days)
    with context.ledger.write() as session:
        for item in session.scalars(select(Study)):
            item.received_at -= earlier
        for event in session.scalars(select(Event)):
            event.at -= earlier


def files(context: Context) -> list[str]:
    return sorted(
        str(path.relative_to(context.spool.root))
        for folder in ("spool", "films", "reports")
        for path in (context.spool.root / folder).rglob("*")
        if path.is_file()
    )


def done(context: Context, seed: int = 0, **options: Any) -> Dataset:
    """Put a study that is reported into ledger and data folder, without the work; return its film."""
    one = factories.phantom_chest(
        seed, rows=64, columns=64, PatientName=_NAME, PatientID=_ID, IssuerOfPatientID="", **options
    )
    receive(context, one)
    made = [context.spool.write(*where, lambda stream: stream.write(b"x")) for where in _MADE]
    with context.ledger.write() as session:
        model_id = register_model(session, "test", "1", "f" * 64, "none")
        found = session.scalars(select(Study).order_by(Study.id.desc()).limit(1)).one()
        (image,) = found.instances
        image.state, image.film_path, image.pixel_digest = InstanceState.ANALYSED, made[0], "1"
        analysis = Analysis(instance_id=image.id, model_id=model_id, state="done", ready_at=now())
        analysis.activation_path, analysis.finding, analysis.probability = made[1], "present", 0.9
        session.add(analysis)
        uids = dict.fromkeys(("sop_class_uid", "series_instance_uid", "transfer_syntax_uid"), "1.2.3")
        session.add(
            Report(
                **uids,
                study_id=found.id,
                kind="sr",
                revision=1,
                part=1,
                sop_instance_uid=f"1.2.3.{found.id}",
                path=made[2],
                digest="",
                size=1,
                created_at=now(),
            )
        )
        found.state, found.revision, found.due_at = StudyState.REPORTED, 1, None
        found.finding, found.probability = "present", 0.9
    return one


def reported(context: Context, *films: Dataset) -> None:
    receive(context, *films)
    work(context)
    assert study(context).state == StudyState.REPORTED


def events(context: Context) -> list[str]:
    with context.ledger.read() as session:
        return list(session.scalars(select(Event.kind).order_by(Event.id)))


def whole(context: Context) -> bool:
    """Return whether ledger and data folder agree."""
    return not any(paths for both in differences(context.ledger, context.spool) for paths in both)


def outbox(context: Context, state: DeliveryState, *, required: bool = True) -> None:
    """Let the newest study's reports stand so at a destination."""
    with context.ledger.write() as session:
        found = session.scalars(select(Study).order_by(Study.id.desc()).limit(1)).one()
        for row in session.scalars(select(Report).where(Report.study_id == found.id)):
            session.add(
                Outbox(
                    destination="PACS" if required else "OTHER",
                    report_id=row.id,
                    required=required,
                    state=state,
                    ready_at=now(),
                    last_error="cannot be reached" if state == DeliveryState.PENDING else None,
                )
            )
        if state in DELIVERED_STATES:
            found.state = StudyState(state)


def refused(context: Context) -> None:
    """Let the newest study be delivered in its second form, so that a retry has something to try again."""
    outbox(context, DeliveryState.DELIVERED)
    with context.ledger.write() as session:
        session.add(Refusal(destination="PACS", kind="sr", url="", at=now()))


@both
def test_a_study_that_is_done_loses_its_files_after_its_time_and_keeps_its_result(context: Context) -> None:
    done(context)
    assert {path.split("/")[0] for path in files(context)} == {"spool", "films", "reports"}
    older(context, 29)
    assert removed(context) == 0
    older(context, 2)
    kept = len(files(context))
    assert removed(context) == kept == 4
    assert files(context) == []
    found = study(context)
    assert (found.state, found.finding, found.probability) == ("reported", "present", pytest.approx(0.9))
    assert (found.attention, found.removing) == (None, None)
    assert found.expired_at is not None
    assert [item.path for item in reports(context)] == [""] * len(reports(context))
    assert all(item.sop_instance_uid for item in reports(context))
    assert events(context)[-1] == "expired"
    assert Repair(context.ledger, context.spool, intake(context)).round(threading.Event()) == Repaired()
    assert removed(context) == 0


@both
def test_nothing_names_the_patient_once_the_files_are_gone(context: Context) -> None:
    done(context)
    older(context, 31)
    removed(context)
    with context.ledger.read() as session:
        (row,) = session.scalars(select(Subject)).all()
        said = json.dumps(
            {column.name: str(getattr(row, column.name)) for column in Subject.__table__.columns}
        )
    assert "CANARY" not in said
    assert row.patient_id == pseudonym_of(context)
    if context.settings.database_url is None:
        context.ledger.overwrite_deleted()
        stored = b"".join(path.read_bytes() for path in context.spool.root.glob("ledger.sqlite3*"))
        assert b"CANARY" not in stored


def pseudonym_of(context: Context) -> str:
    with context.ledger.read() as session:
        return removal.pseudonym(session, _ID, "")


@pytest.mark.parametrize(
    ("state", "goes"),
    [
        (DeliveryState.PENDING, False),
        (DeliveryState.DELIVERED, True),
        (DeliveryState.CONFIRMED, True),
        (DeliveryState.PARKED, False),
        (DeliveryState.WITHDRAWN, True),
    ],
)
def test_files_stay_until_every_required_destination_has_the_report(
    context: Context, state: DeliveryState, goes: bool
) -> None:
    """`delivered` without a confirmation is what a destination with confirm = "none" has."""
    done(context)
    outbox(context, state)
    older(context, 31)
    assert bool(removed(context)) == goes


def test_files_stay_while_a_confirmation_is_waited_for(context: Context) -> None:
    done(context)
    outbox(context, DeliveryState.DELIVERED)
    with context.ledger.write() as session:
        for row in session.scalars(select(Outbox)):
            session.add(
                Confirmation(
                    outbox_id=row.id, destination="PACS", state="waiting", until=now(), ready_at=now()
                )
            )
    older(context, 31)
    assert removed(context) == 0
    with context.ledger.write() as session:
        session.execute(update(Confirmation).values(state="given_up"))  # it has no way to confirm
    assert removed(context) > 0


@both
def test_being_sent_again_unchanged_keeps_no_files_and_a_person_s_retry_does(context: Context) -> None:
    one = done(context)
    refused(context)
    older(context, 31)
    receive(context, one)
    assert events(context)[-1] == "duplicate"
    assert keeping(context).due(1)
    with context.ledger.write() as session:
        assert retry_study(session, session.scalars(select(Study)).one()) is None
    assert not keeping(context).due(1)


@both
def test_under_the_watermark_the_oldest_finished_studies_go_first_and_no_more_than_needed(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        done(context, seed)
    with context.ledger.write() as session:
        first, _, unfinished = session.scalars(select(Study).order_by(Study.id)).all()
        first.received_at, unfinished.state = now(), StudyState.FAILED
        unfinished.reason = "broken"
        unfinished.received_at -= timedelta(days=80)
    free = [100]
    monkeypatch.setattr(context.spool, "free_bytes", lambda: free[0])
    due = keeping(context, retain_free_bytes=101).due(5)
    assert [(item.study_id, item.cause) for item in due] == [(2, Cause.DISK)]
    assert [item.study_id for item in keeping(context, retain_free_bytes=10**9).due(5)] == [2, 1]
    removing = keeping(context, retain_free_bytes=101)
    taken = removing.remove

    def remove(item: retention.Due) -> removal.Removed:
        free[0] = 200
        return taken(item)

    monkeypatch.setattr(removing, "remove", remove)
    removing.round(threading.Event())
    with context.ledger.read() as session:
        gone = session.scalars(select(Study.id).where(Study.expired_at.is_not(None))).all()
    assert gone == [2]


def test_removal_begins_before_objects_are_refused() -> None:
    settings = load(data_dir="x")
    assert settings.free_bytes_to_keep == 5 * settings.min_free_bytes
    with pytest.raises(Exception, match="HILUM_RETAIN_FREE_BYTES is less than HILUM_MIN_FREE_BYTES"):
        load(data_dir="x", retain_free_bytes=1, min_free_bytes=2)
    with pytest.raises(Exception, match="HILUM_RETAIN_UNFINISHED_DAYS is shorter"):
        load(data_dir="x", retain_days=2, retain_unfinished_days=1)


@both
def test_a_report_that_cannot_be_delivered_is_given_up_at_the_hard_limit_and_said(
    context: Context, capfd: pytest.CaptureFixture[str]
) -> None:
    done(context)
    outbox(context, DeliveryState.PENDING)
    older(context, 89)
    assert removed(context) == 0
    older(context, 2)
    assert removed(context) > 0
    found = study(context)
    assert found.state == StudyState.REPORTED  # it never was delivered
    assert "sr not delivered to PACS (cannot be reached)" in str(found.attention)
    assert "given_up" in events(context)
    assert "retention.given_up" in "".join(capfd.readouterr())
    with context.ledger.read() as session:
        assert set(session.scalars(select(Outbox.state))) == {DeliveryState.WITHDRAWN}


def test_a_study_that_was_given_up_at_one_destination_is_never_said_to_be_confirmed(context: Context) -> None:
    done(context)
    outbox(context, DeliveryState.PENDING)
    with context.ledger.write() as session:
        (row,) = session.scalars(select(Outbox)).all()
        other = Outbox(destination="ARCHIVE", report_id=row.report_id, required=True, ready_at=now())
        other.state = DeliveryState.CONFIRMED
        session.add(other)
    older(context, 91)
    assert removed(context) > 0
    with context.ledger.write() as session:
        settle(session, session.scalars(select(Study)).one())
    assert study(context).state == StudyState.REPORTED


def test_a_study_that_something_happened_to_meanwhile_keeps_its_files(context: Context) -> None:
    done(context)
    refused(context)
    older(context, 31)
    (due,) = keeping(context).due(1)
    with context.ledger.write() as session:
        retry_study(session, session.scalars(select(Study)).one())
    assert keeping(context).remove(due).files == 0
    assert len(files(context)) == 4


@pytest.mark.parametrize("state", [StudyState.HELD, StudyState.FAILED])
def test_a_study_that_needs_a_person_is_given_up_at_the_hard_limit_and_said(
    context: Context, state: StudyState
) -> None:
    receive(context, factories.phantom_chest(rows=64, columns=64))
    with context.ledger.write() as session:
        session.execute(update(Study).values(state=state, reason="because", due_at=None))
        session.execute(update(Instance).values(state=InstanceState.FAILED))
    older(context, 91)
    assert removed(context) == 1
    assert (study(context).state, files(context)) == (state, [])
    assert "given up" in str(study(context).attention)
    assert "because" in str(study(context).attention)


def test_films_that_were_never_analysed_are_given_up_and_work_under_way_removes_what_it_wrote(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(context, film())
    older(context, 91)
    prepare = decode.prepare

    def removed_meanwhile(*arguments: Any) -> Any:
        made = prepare(*arguments)
        assert removed(context) == 1
        return made

    monkeypatch.setattr(decode, "prepare", removed_meanwhile)
    decode.run(context)
    assert files(context) == []
    assert study(context).state == StudyState.FAILED
    assert "1 image(s) not analysed" in str(study(context).attention)
    assert [item.state for item in instances(context)] == [InstanceState.FAILED]


def test_pixels_in_quarantine_go_at_the_hard_limit(context: Context) -> None:
    one = film(1)
    reported(context, one)
    other = film(2, study="s")
    other.StudyInstanceUID, other.SOPInstanceUID = one.StudyInstanceUID, one.SOPInstanceUID
    receive(context, other)
    work(context)
    assert InstanceState.QUARANTINED in [item.state for item in instances(context)]
    older(context, 31)
    assert removed(context) == 0
    older(context, 60)
    assert removed(context) > 0
    assert files(context) == []


def test_the_same_object_after_its_files_are_gone_is_answered_and_changes_nothing(context: Context) -> None:
    one = done(context)
    older(context, 31)
    removed(context)
    before = [(item.id, item.state) for item in instances(context)]
    path = factories.write(one, context.spool.incoming)
    assert intake(context).receive(Arrival(path, "TEST")) is Outcome.DUPLICATE
    work(context)
    assert [(item.id, item.state) for item in instances(context)] == before
    assert (study(context).revision, files(context), study(context).attention) == (1, [], None)


def intake(context: Context) -> Intake:
    return Intake(context.ledger, context.spool, context.settings)


def test_a_retry_says_that_the_files_are_gone_and_the_study_is_taken_in_anew_when_it_is_sent_again(
    context: Context,
) -> None:
    one = film()
    reported(context, one)
    older(context, 31)
    removed(context)
    with context.ledger.write() as session:
        why = retry_study(session, session.scalars(select(Study)).one())
    assert "its files were removed on" in str(why)
    assert "send the study again" in str(study(context).attention)
    receive(context, one)
    work(context)
    assert (study(context).revision, study(context).attention) == (2, None)
    assert study(context).expired_at is None
    assert whole(context)


def test_a_study_that_was_given_up_is_analysed_when_it_is_sent_again(context: Context) -> None:
    one, two = film(1, study="s"), film(2, study="s")
    receive(context, one, two)
    older(context, 91)
    removed(context)
    assert study(context).state == StudyState.FAILED
    receive(context, one, two)
    work(context)
    assert (study(context).state, study(context).finding) == (StudyState.REPORTED, "present")
    assert study(context).attention is None
    assert [item.state for item in instances(context)] == [InstanceState.ANALYSED] * 2


def test_a_late_image_is_reported_beside_what_stands_and_replaces_nothing(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported(context, film(1, study="s"))
    older(context, 31)
    removed(context)
    says(monkeypatch, 0.1)
    late = film(2, study="s")
    receive(context, late)
    work(context)
    found = study(context)
    assert (found.revision, found.finding, found.expired_at) == (2, "absent", None)
    assert "revision 1 stands" in " ".join(found.flags)
    made = [item for item in reports(context) if item.revision == 2 and item.kind == "sr"]
    document = dcmread(context.spool.absolute(made[0].path))
    assert "PredecessorDocumentsSequence" not in document
    assert "Revision 2, of later images only, beside revision 1." in document.to_json()
    assert late.SOPInstanceUID in document.to_json()
    older(context, 31)
    assert removed(context) > 0
    assert files(context) == []


def test_a_late_image_of_another_patient_holds_the_study_though_the_first_one_s_name_is_gone(
    context: Context,
) -> None:
    reported(context, film(1, study="s", PatientID="A"))
    older(context, 31)
    removed(context)
    receive(context, film(2, study="s", PatientID="B"))
    work(context)
    assert study(context).state == StudyState.HELD


def test_a_corrected_header_after_the_files_are_gone_is_a_whole_report_that_replaces_the_first(
    context: Context,
) -> None:
    reported(context, film(1, PatientID="A"))
    older(context, 31)
    removed(context)
    receive(context, film(1, PatientID="B"))
    work(context)
    work(context)
    assert [item.state for item in instances(context)] == [InstanceState.SUPERSEDED, InstanceState.ANALYSED]
    second = [item for item in reports(context) if item.revision == 2]
    assert {"sr", "heatmap"} <= {item.kind for item in second}
    (document,) = [dcmread(context.spool.absolute(item.path)) for item in second if item.kind == "sr"]
    assert document.PatientID == "B"
    assert "Revision 2, replaces revision 1." in document.to_json()
    assert "PredecessorDocumentsSequence" in document


def test_a_late_lateral_leaves_the_result_as_it_is(context: Context) -> None:
    reported(context, film(1, study="s"))
    older(context, 31)
    removed(context)
    receive(context, factories.lateral_film(2, study="s", rows=64, columns=64))
    work(context)
    found = study(context)
    assert (found.state, found.finding, found.revision) == (StudyState.REPORTED, "present", 1)
    assert found.attention is None


def test_an_image_that_is_rejected_after_its_files_are_gone_asks_for_a_person(context: Context) -> None:
    good, bad = film(1, study="s"), film(2, study="s")
    reported(context, good, bad)
    older(context, 31)
    removed(context)
    receive(context, factories.key_object_note(bad, code="113001"))
    work(context)
    assert "speaks of an image that the archive rejected" in str(study(context).attention)
    assert study(context).revision == 1


@both
def test_what_comes_while_files_are_being_removed_is_sent_again_later(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(context, 1, study="s")
    older(context, 31)
    remove_files = removal.remove_files

    def arriving(*arguments: Any) -> removal.Removed:
        path = factories.write(film(2, study="s"), context.spool.incoming)
        with pytest.raises(OutOfResources, match="being removed"):
            intake(context).receive(Arrival(path, "TEST"))
        return remove_files(*arguments)

    monkeypatch.setattr(retention, "remove_files", arriving)
    removed(context)
    assert files(context) == []
    receive(context, film(2, study="s"))
    assert len(files(context)) == 1


class Killed(BaseException):
    """A kill at a failpoint."""


@both
@pytest.mark.parametrize(
    "place", ["retention.marked", "retention.files_removed", "retention.forgotten", "first file"]
)
def test_a_kill_in_the_middle_is_gone_on_from_and_repair_adopts_and_misses_nothing(
    context: Context, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    done(context)
    older(context, 31)

    def failpoint(name: str) -> None:
        if name == place:
            raise Killed

    with monkeypatch.context() as killed:
        killed.setattr(retention, "failpoint", failpoint)
        if place == "first file":

            def remove(relative: str) -> None:
                context.spool.absolute(relative).unlink()
                raise Killed

            killed.setattr(context.spool, "remove", remove)
        with pytest.raises(Killed):
            removed(context)
    Repair(context.ledger, context.spool, intake(context)).round(threading.Event())
    assert study(context).attention is None
    removed(context)
    assert (files(context), study(context).removing, study(context).attention) == ([], None, None)
    assert study(context).expired_at is not None
    assert whole(context)
    assert len(instances(context)) == 1


def test_a_file_that_came_back_after_a_power_cut_is_not_taken_in_again(context: Context) -> None:
    one = done(context)
    older(context, 31)
    removed(context)
    context.spool.keep(factories.write(one, context.spool.incoming))
    Repair(context.ledger, context.spool, intake(context)).round(threading.Event())
    assert (files(context), len(instances(context))) == ([], 1)


def test_a_report_that_is_being_built_when_its_study_is_given_up_leaves_nothing(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(context, film())
    monkeypatch.setattr(report, "run", lambda _: None)
    work(context)
    monkeypatch.undo()
    older(context, 91)
    written = report._written

    def removed_meanwhile(*arguments: Any) -> Any:
        removed(context)
        return written(*arguments)

    monkeypatch.setattr(report, "_written", removed_meanwhile)
    report.run(context)
    assert files(context) == []
    assert study(context).state == StudyState.FAILED


def test_what_retention_removes_is_told_in_the_audit_trail_under_the_patient_s_own_id(
    context: Context,
) -> None:
    one = done(context)
    older(context, 31)
    assert removed(context)
    (message,) = audit_trail.of(context.settings.data_dir, "110105")
    assert audit_trail.objects(message, "110180") == [one.StudyInstanceUID]
    assert audit_trail.objects(message, "2") == [_ID]
    assert audit_trail.instances(message) == {one.SOPClassUID: 1}
    (process,) = message.xpath("ActiveParticipant")
    assert (process.get("UserIsRequestor"), process.get("UserName")) == ("true", "hilum retention")


def test_the_scheduler_removes_files_and_finishes_erasures_beside_its_ticks(context: Context) -> None:
    done(context, 1)
    older(context, 31)
    done(context, 2)
    erased = study(context).study_instance_uid
    ErasureFile(context.spool).append(Erasure(erased, [], now().isoformat(), "admin", "killed here"))
    scheduler = Scheduler(
        context.ledger,
        context.spool,
        "redis://127.0.0.1:9/0",
        Repair(context.ledger, context.spool, intake(context)),
        keeping(context),
        context.audit,
        Notices(context.ledger, context.settings),
        Live(context.settings),
    )
    scheduler.tick()
    for work_ in scheduler._beside:
        work_.join()
    assert files(context) == []
    with context.ledger.read() as session:
        (left,) = session.scalars(select(Study)).all()
    assert left.expired_at is not None


def test_the_doctor_says_what_is_kept_until_when_and_warns_when_it_goes_earlier(context: Context) -> None:
    done(context)
    older(context, 10)

    def check(**changed: Any) -> Check:
        settings = context.settings.model_copy(update=changed)
        (found,) = [item for item in examine(settings) if item.name == "retention"]
        return found

    said = check()
    assert said.right
    assert not said.warns
    day = f"{now() + timedelta(days=20):%Y-%m-%d}"
    assert "30 days after a study is done, 90 days after anything else, less below 0.0 MB free" in said.seen
    assert said.seen.endswith(f": not before {day}")
    assert check(retain_free_bytes=1 << 60).warns


def test_purge_expired_shows_and_removes_what_is_due(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    done(context, 1)
    older(context, 31)
    done(context, 2)
    capsys.readouterr()
    assert purge_expired(context.settings, dry_run=True, as_json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["files"], len(shown["studies"]), shown["studies"][0]["cause"]) == (4, 1, "age")
    assert len(files(context)) == 8
    assert purge_expired(context.settings, dry_run=True, as_json=False) == 0
    assert "would go: 4 file(s)" in capsys.readouterr().out
    assert purge_expired(context.settings, dry_run=False, as_json=False) == 0
    assert "removed: 4 file(s)" in capsys.readouterr().out
    assert len(files(context)) == 4
    assert retry(context.settings, [first(context)]) == 1
    assert "no other try" in capsys.readouterr().err


@both
def test_a_study_of_which_nothing_failed_is_not_said_to_get_another_try(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    done(context)
    outbox(context, DeliveryState.CONFIRMED)
    before = events(context)
    assert retry(context.settings, [first(context)]) == 1
    said = capsys.readouterr()
    assert f"no other try of {first(context)}: nothing of it failed or is parked" in said.err
    assert "another try" not in said.out
    assert events(context) == before
    outbox(context, DeliveryState.PARKED, required=False)
    assert retry(context.settings, [first(context)]) == 0
    assert events(context) == [*before, "retried"]


def test_a_finding_on_the_screen_is_for_research_use_only(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    reported(context, film())
    capsys.readouterr()
    assert status(context.settings, first(context), 1, as_json=False) == 0
    said = capsys.readouterr().out
    assert "present; 90.0 %" in said
    assert "Research use only, not for diagnosis." in said


def first(context: Context) -> str:
    with context.ledger.read() as session:
        return session.scalars(select(Study.study_instance_uid).order_by(Study.id).limit(1)).one()
