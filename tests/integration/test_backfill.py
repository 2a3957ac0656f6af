"""Back-fills from a real Orthanc: found, fetched behind what is sent, resumed after a kill, never sent."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydicom import Dataset
from sqlalchemy import func, select, update

from service.api.app import create_app
from service.core import backfill, tally
from service.core.backfill import Query
from service.core.claims import claim_in_turn, claim_live_first, moments
from service.core.completion import conclude_due_studies
from service.core.enqueue import _READY
from service.core.leases import (
    DECODE,
    INFER,
    REPORT,
    STAGES,
    Stage,
    count_ready,
    release,
)
from service.core.ledger import now
from service.core.quality import quality
from service.core.receive import Arrival, Intake
from service.core.retention import Retention
from service.core.settings import load
from service.core.states import BackfillState, FetchState, StudyState
from service.core.tables import (
    Backfill,
    BackfillStudy,
    Event,
    Instance,
    Occurrence,
    Outbox,
    Report,
    Revision,
    Study,
)
from service.core.tombstones import Erasure, add_tombstone
from service.listener.scp import Listener
from tests import factories, pipeline
from tests.ledgers import migrated
from tests.servers import Orthanc, free_port
from worker.context import Context
from worker.tasks import backfill as task
from worker.tasks import decode, infer, report

_WHOLE = Query("20260114", "20260116", ("CR", "DX"), "CHEST")
Opened = Callable[..., Context]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An Orthanc with six chest films of one day, a knee of the same, a CT, and a chest of another month."""
    listener_port = free_port()
    with Orthanc(
        DicomAlwaysAllowFind=True,
        DicomAlwaysAllowGet=True,
        DicomAlwaysAllowMove=True,
        DicomModalities={"us": ["HILUM", "127.0.0.1", listener_port]},
    ) as server:
        server.listener_port = listener_port  # type: ignore[attr-defined]
        folder = tmp_path_factory.mktemp("films")
        films = [past(number) for number in range(6)]
        films += [
            past("knee", BodyPartExamined="KNEE"),
            past("old", StudyDate="20251201"),
            factories.ct_slice("ct", StudyDate="20260115"),
        ]
        for film in films:
            server.store(factories.write(film, folder))
        yield server


@pytest.fixture
def opened(tmp_path: Path, archive: Orthanc, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """Open a worker's context whose one destination is the archive; `url` is another way to it."""
    pipeline.says(monkeypatch, 0.9)
    contexts: list[Context] = []

    def at(url: str = "", **given: Any) -> Context:
        options = given.pop("options", {})
        settings = load(
            data_dir=tmp_path / "data",
            study_quiet_seconds=30,
            min_free_bytes=0,
            dimse_port=archive.listener_port,  # type: ignore[attr-defined]
            destinations=[{"name": "PACS", "url": url or archive.destination, **options}],
            **given,
        )
        migrated(settings.sqlalchemy_url)
        contexts.append(Context.open(settings))
        return contexts[-1]

    yield at
    for context in contexts:
        context.ledger.close()


def past(seed: int | str, **options: Any) -> Dataset:
    return factories.phantom_chest(seed, study=f"past-{seed}", **options)


def begin(context: Context, query: Query = _WHOLE, **options: Any) -> None:
    given: dict[str, Any] = {"delivers": False, "way": "auto", "rate": None, "hours": None, **options}
    with context.ledger.write() as session:
        backfill.start(session, "2026", "PACS", query, "test", **given)


def turn(context: Context) -> None:
    """Take the next turn now."""
    with context.ledger.write() as session:
        session.execute(update(Backfill).values(ready_at=now()))
        session.execute(update(BackfillStudy).values(ready_at=now()))
    task.run(context)


def work(context: Context) -> None:
    """Do what queues and scheduler do, until nothing is left."""
    for _ in range(20):
        decode.run(context)
        infer.run(context)
        conclude_due_studies(context.ledger)
        report.run(context)


def run_through(context: Context, turns: int = 6) -> None:
    for _ in range(turns):
        turn(context)
        work(context)


def states(context: Context) -> dict[str, int]:
    with context.ledger.read() as session:
        rows = session.execute(select(BackfillStudy.state, func.count()).group_by(BackfillStudy.state)).all()
    return dict(iter(rows))


def the_run(context: Context) -> Backfill:
    with context.ledger.read() as session:
        return session.scalars(select(Backfill)).one()


def studies(context: Context) -> list[Study]:
    with context.ledger.read() as session:
        return list(session.scalars(select(Study).order_by(Study.id)))


def count(context: Context, table: Any) -> int:
    with context.ledger.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


@pytest.mark.parametrize("way", ["get", "move", "web"])
def test_chest_films_of_a_time_are_found_fetched_and_analysed_and_nothing_is_sent(
    archive: Orthanc, opened: Opened, way: str
) -> None:
    before = len(archive.stored())
    context = opened(archive.dicomweb_url if way == "web" else "")
    listener = Listener(context.settings, context.spool, context.ledger)
    listener.start()
    try:
        begin(context, way="auto" if way == "web" else way)
        run_through(context)
    finally:
        listener.stop()
    assert states(context) == {FetchState.FETCHED: 6, FetchState.SKIPPED: 1}
    run = the_run(context)
    assert (run.state, run.cursor, run.last_error) == (BackfillState.DONE, None, None)
    found = studies(context)
    assert {(study.state, study.finding, study.backfill_id) for study in found} == {
        (StudyState.REPORTED, "present", run.id)
    }
    assert (count(context, Outbox), count(context, Report)) == (0, 0)
    assert len(archive.stored()) == before
    with context.ledger.read() as session:
        said = backfill.progress(session, run)
    assert (said.found, said.fetched, said.analysed, said.in_work) == (7, 6, 6, 0)


def live_film(seed: int | str = "live", **options: Any) -> Dataset:
    return factories.phantom_chest(seed, study=options.pop("study", f"live-{seed}"), **options)


def send(context: Context, *films: Dataset, originator: str = "") -> None:
    """Send films as a modality does; `originator` is who asked for them by C-MOVE."""
    intake = Intake(context.ledger, context.spool, context.settings)
    for film in films:
        path = factories.write(film, context.spool.incoming)
        intake.receive(Arrival(path, "CT", film.SOPClassUID, film.SOPInstanceUID, move_originator=originator))


def hints(context: Context, stage: Stage) -> int:
    queries = [query for item, query in zip(STAGES, _READY, strict=True) if item is stage]
    with context.ledger.read() as session:
        return len(session.scalars(queries[0][1], moments()).all())


def test_what_is_sent_overtakes_what_is_fetched_at_every_stage(opened: Opened) -> None:
    context = opened()
    begin(context)
    turn(context)
    first = sent_now(context, "first")
    assert_alone(context, DECODE, first)
    decode.run(context)
    assert hints(context, DECODE) == 0, "the live film is not reported yet"
    infer.run(context)
    for left in (5, 4, 3, 2, 1, 0):
        decode.run(context)
        assert hints(context, DECODE) == left, "what was fetched is taken one by one"
    second = sent_now(context, "second")
    decode.run(context)
    assert_alone(context, INFER, second)
    infer.run(context)
    for left in (5, 4, 3, 2, 1, 0):
        infer.run(context)
        assert hints(context, INFER) == left
    with context.ledger.write() as session:
        session.execute(update(Study).values(due_at=now()))
    conclude_due_studies(context.ledger)
    for expected in {first, second}:
        with context.ledger.write() as session:
            session.execute(
                update(Revision).where(Revision.study_id == expected).values(ready_at=now() + timedelta(1))
            )
    with context.ledger.write() as session:
        session.execute(update(Revision).where(Revision.study_id == second).values(ready_at=now()))
    assert_alone(context, REPORT, second)
    report.run(context)
    with context.ledger.read() as session:
        assert session.get_one(Study, second).state == StudyState.REPORTED
    assert hints(context, REPORT) == 6


def sent_now(context: Context, seed: str) -> int:
    """Send a film; return the row of its study."""
    film = live_film(seed)
    send(context, film)
    (found,) = [item.id for item in studies(context) if item.study_instance_uid == film.StudyInstanceUID]
    return found


def assert_alone(context: Context, stage: Stage, study_id: int) -> None:
    """Check that of all that waits the work on this study alone is hinted at, counted and claimed."""
    assert (hints(context, stage), count_ready_of(context, stage)) == (1, 1), stage
    (lease,) = claim_live_first(context.ledger, stage, 8)
    with context.ledger.read() as session:
        row: Any = session.get_one(stage.table, lease.row_id)
        instance = session.get_one(Instance, row.instance_id) if stage is INFER else row
        assert instance.study_id == study_id, stage
    # Nothing of the back-fill is begun while somebody works on it.
    assert claim_live_first(context.ledger, stage, 8) == []
    assert claim_in_turn(context.ledger, stage, 8) == []
    release(context.ledger, lease, "", 0.0, attempts=0)


def count_ready_of(context: Context, stage: Stage) -> int:
    with context.ledger.read() as session:
        return count_ready(session, stage)


def test_nothing_is_fetched_while_what_was_sent_waits_or_enough_is_in_flight(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "IN_FLIGHT", 2)
    context = opened()
    send(context, live_film())
    begin(context)
    turn(context)
    assert states(context) == {}
    work(context)
    turn(context)
    assert len(studies(context)) == 3
    turn(context)
    assert len(studies(context)) == 3
    work(context)
    turn(context)
    assert len(studies(context)) == 5


@pytest.mark.parametrize("moment", ["on its way", "reported", "expired"])
def test_study_that_is_sent_after_a_backfill_had_it_is_reported_and_delivered(
    opened: Opened, moment: str
) -> None:
    context = opened()
    begin(context)
    turn(context)
    film = past(0)
    if moment != "on its way":
        run_through(context)
    if moment == "expired":
        with context.ledger.write() as session:
            long_ago = now() - timedelta(days=60)
            session.execute(update(Study).values(received_at=long_ago))
            session.execute(update(Event).values(at=long_ago))
        assert Retention(context.ledger, context.spool, context.settings).all_due().files
    send(context, film)
    with context.ledger.write() as session:
        study = session.scalars(select(Study).where(Study.study_instance_uid == film.StudyInstanceUID)).one()
        assert study.backfill_id is None
        assert now() - study.received_at < timedelta(seconds=60)
        assert study.due_at is not None
        study.due_at = now()
    work(context)
    with context.ledger.read() as session:
        study = session.scalars(select(Study).where(Study.study_instance_uid == film.StudyInstanceUID)).one()
        assert (study.state, study.revision, study.finding) == (StudyState.REPORTED, 1, "present")
        kinds = session.execute(
            select(Report.kind, Outbox.destination).join(Outbox).where(Report.study_id == study.id)
        ).all()
        assert {tuple(row) for row in kinds} == {("sr", "PACS"), ("heatmap", "PACS")}
        assert session.scalar(select(func.count()).select_from(Outbox)) == 2
        told = session.scalars(select(Occurrence.study_id).where(Occurrence.kind == "positive")).all()
        assert told == [study.id]


def test_study_that_is_here_already_is_neither_fetched_nor_touched(opened: Opened) -> None:
    context = opened()
    send(context, past(0))
    with context.ledger.write() as session:
        session.execute(update(Study).values(due_at=now()))
    work(context)
    before = [(row.id, row.revision, row.reported_at, row.header_revision) for row in studies(context)]
    begin(context)
    run_through(context)
    assert states(context) == {FetchState.FETCHED: 5, FetchState.KNOWN: 1, FetchState.SKIPPED: 1}
    after = [(row.id, row.revision, row.reported_at, row.header_revision) for row in studies(context)]
    assert after[0] == before[0]
    assert studies(context)[0].backfill_id is None
    assert count(context, Outbox) == 2


def test_study_that_was_erased_here_is_not_said_to_be_missing_from_the_archive(opened: Opened) -> None:
    context, film = opened(), past(0)
    with context.ledger.write() as session:
        erased = Erasure(
            film.StudyInstanceUID, [film.SOPInstanceUID], now().isoformat(), "somebody", "ticket 7"
        )
        add_tombstone(session, erased)
    begin(context)
    run_through(context)
    with context.ledger.read() as session:
        row = session.scalars(
            select(BackfillStudy).where(BackfillStudy.study_instance_uid == film.StudyInstanceUID)
        ).one()
    assert row.state == FetchState.MISSING
    assert "it was erased here; `hilum purge --lift" in str(row.reason)


@pytest.mark.parametrize(("originator", "is_ours"), [("HILUM", True), ("", True), ("ELSEWHERE", False)])
def test_object_of_a_study_that_is_moved_here_is_the_backfills_when_we_asked_for_it(
    opened: Opened, originator: str, is_ours: bool
) -> None:
    context = opened()
    begin(context, way="move")
    film = past(0)
    with context.ledger.write() as session:
        backfill.add_found(session, 1, [backfill.Found(film.StudyInstanceUID, "20260115")])
        session.flush()
        session.execute(update(BackfillStudy).values(state=FetchState.MOVING))
    send(context, film, originator=originator)
    assert [study.backfill_id for study in studies(context)] == [1 if is_ours else None]


def test_move_that_was_asked_for_long_ago_claims_nothing_that_is_sent(opened: Opened) -> None:
    context = opened()
    begin(context, way="move")
    film = past(0)
    with context.ledger.write() as session:
        backfill.add_found(session, 1, [backfill.Found(film.StudyInstanceUID, "20260115")])
        session.flush()
        long_ago = now() - timedelta(hours=2)
        session.execute(update(BackfillStudy).values(state=FetchState.MOVING, at=long_ago))
    send(context, film)
    assert [study.backfill_id for study in studies(context)] == [None]


def test_backfill_delivers_when_it_is_told_to_and_nobody_is_told_of_its_positives(
    archive: Orthanc, opened: Opened
) -> None:
    context = opened()
    begin(context, Query("20260115", "20260115", ("DX",), "KNEE"), delivers=True)
    run_through(context, 3)
    assert states(context)[FetchState.FETCHED] == 1
    assert count(context, Outbox) == 2
    begin_another(context, delivers=True)
    run_through(context)
    assert count(context, Outbox) == 14
    assert count(context, Occurrence) == 0


def begin_another(context: Context, **options: Any) -> None:
    given: dict[str, Any] = {"delivers": False, "way": "auto", "rate": None, "hours": None, **options}
    with context.ledger.write() as session:
        backfill.start(session, "another", "PACS", _WHOLE, "test", **given)


def test_hours_rate_and_room_are_kept(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    context = opened(timezone="UTC")
    later = "-".join(f"{now() + timedelta(hours=hour):%H:%M}" for hour in (2, 3))
    begin(context, hours=later)
    turn(context)
    assert states(context) == {}
    assert "waits for its hours" in (the_run(context).last_error or "")

    with context.ledger.write() as session:
        backfill.start(
            session, "2026", "PACS", _WHOLE, "test", delivers=False, way="auto", rate=30, hours=None
        )
    before = now()
    turn(context)
    assert states(context) == {FetchState.FETCHED: 1, FetchState.FOUND: 6}
    a_thirtieth_of_a_minute = timedelta(seconds=2)
    assert before + a_thirtieth_of_a_minute <= the_run(context).ready_at <= now() + a_thirtieth_of_a_minute

    monkeypatch.setattr(type(context.spool), "free_bytes", lambda _: 0)
    context.settings = context.settings.model_copy(update={"retain_free_bytes": 1})
    turn(context)
    assert "waits for room" in (the_run(context).last_error or "")


def test_source_has_hours_of_its_own(opened: Opened) -> None:
    later = "-".join(f"{now() + timedelta(hours=hour):%H:%M}" for hour in (2, 3))
    context = opened(timezone="UTC", options={"hours": later})
    begin(context)
    turn(context)
    assert (states(context), the_run(context).state) == ({}, BackfillState.RUNNING)


def test_archive_that_is_away_costs_no_tries_and_is_waited_for(archive: Orthanc, opened: Opened) -> None:
    context = opened()
    begin(context)
    turn(context)
    with context.ledger.write() as session:
        session.execute(update(BackfillStudy).values(state=FetchState.FOUND, attempts=0))
        session.execute(update(Backfill).values(state=BackfillState.RUNNING))
    away = context.settings.destinations[0].model_copy(
        update={"url": f"dicom://NOBODY@127.0.0.1:{free_port()}"}
    )
    there = context.settings
    context.settings = there.model_copy(update={"destinations": (away,)})
    for _ in range(4):
        turn(context)
    assert "cannot be reached" in (the_run(context).last_error or "")
    assert states(context) == {FetchState.FOUND: 7}
    context.settings = there.model_copy(update={"destinations": ()})
    turn(context)
    assert "no destination PACS" in (the_run(context).last_error or "")
    context.settings = there
    run_through(context)
    assert the_run(context).state == BackfillState.DONE


def test_study_that_kills_its_process_each_time_is_given_up_and_keeps_no_other_back(opened: Opened) -> None:
    context = opened()
    begin(context)
    with context.ledger.write() as session:
        backfill.add_found(session, 1, [backfill.Found("1.2.3", "20260101")])
        session.flush()
        session.execute(update(BackfillStudy).values(state=FetchState.FETCHING, attempts=3))
        session.execute(update(Backfill).values(attempts=7, lease_until=now() - timedelta(seconds=1)))
    run_through(context)
    assert states(context) == {FetchState.FETCHED: 6, FetchState.SKIPPED: 1, FetchState.FAILED: 1}
    with context.ledger.write() as session:
        backfill.resume(session, session.scalars(select(Backfill)).one())
    assert states(context)[FetchState.FOUND] == 1
    turn(context)
    assert states(context)[FetchState.SKIPPED] == 2, "the archive knows no series of it"


def test_file_that_a_killed_process_left_is_adopted_as_the_backfills(opened: Opened) -> None:
    context = opened()
    begin(context)
    film = past(0)
    with context.ledger.write() as session:
        backfill.add_found(session, 1, [backfill.Found(film.StudyInstanceUID, "20260115")])
        session.flush()
        session.execute(update(BackfillStudy).values(state=FetchState.FETCHING))
    kept = context.spool.keep(factories.write(film, context.spool.incoming))
    Intake(context.ledger, context.spool, context.settings).adopt(kept)
    assert [study.backfill_id for study in studies(context)] == [1]
    run_through(context)
    assert states(context)[FetchState.FETCHED] == 6
    late = context.spool.keep(factories.write(film, context.spool.incoming))
    Intake(context.ledger, context.spool, context.settings).adopt(late)
    assert {study.backfill_id for study in studies(context)} == {1}
    assert count(context, Outbox) == 0


def test_archive_that_tells_no_more_than_so_many_loses_nothing(opened: Opened, tmp_path: Path) -> None:
    with Orthanc(
        DicomAlwaysAllowFind=True, DicomAlwaysAllowGet=True, LimitFindResults=10, LimitFindInstances=10
    ) as server:
        for number in range(34):
            film = past(
                f"many-{number}",
                StudyTime=f"{8 + number // 4:02}{15 * (number % 4):02}00",
                rows=64,
                columns=56,
            )
            server.store(factories.write(film, tmp_path / "many"))
        context = opened(server.destination)
        begin(context, rate=1)
        turn(context)
        assert sum(states(context).values()) == 34
        assert the_run(context).note is None


def test_patients_of_another_age_are_not_fetched(opened: Opened) -> None:
    context = opened()
    begin(context, Query("20260115", "20260115", ("DX",), "CHEST", (4, 17)))
    run_through(context, 2)
    assert (states(context), the_run(context).state) == ({}, BackfillState.DONE)


def test_past_studies_are_in_no_measure_of_what_is_sent(opened: Opened) -> None:
    context = opened()
    tally.discard()
    begin(context)
    run_through(context)
    end = now() + timedelta(seconds=1)
    with context.ledger.read() as session:
        found = quality(session, end - timedelta(days=1), end)
    assert (found.studies, {change.current_studies for change in found.drift}) == (0, {0})
    tally.flush(context.ledger)
    with context.ledger.read() as session:
        sums = tally.read(session)
    assert not {"hilum_stage_seconds", "hilum_study_seconds", "hilum_results"} & {
        name for name, rows in sums.items() if rows
    }


def test_whole_way_on_postgresql(archive: Orthanc, postgresql: str, opened: Opened) -> None:
    context = opened(database_url=postgresql)
    begin(context)
    turn(context)
    send(context, live_film())
    (lease,) = claim_in_turn(context.ledger, DECODE, 8)
    release(context.ledger, lease, "", 0.0, attempts=0)
    run_through(context)
    assert states(context) == {FetchState.FETCHED: 6, FetchState.SKIPPED: 1}
    send(context, past(1))
    with context.ledger.write() as session:
        session.execute(update(Study).where(Study.backfill_id.is_(None)).values(due_at=now()))
    work(context)
    assert count(context, Outbox) == 4


def test_api_and_pages_keep_past_studies_apart(opened: Opened) -> None:
    context = opened()
    begin(context)
    run_through(context)
    send(context, live_film())
    api = TestClient(create_app(context.settings, context.ledger), base_url="http://127.0.0.1")
    (said,) = api.get("/api/backfills").json()
    assert (said["name"], said["state"], said["found"], said["analysed"]) == ("2026", "done", 7, 6)

    def listed(**query: str) -> int:
        return len(api.get("/api/studies", params=query).json()["studies"])

    assert (listed(), listed(backfilled="true"), listed(backfilled="false")) == (7, 6, 1)
    assert api.get("/").text.count("<tr data-uid") == 1
    assert api.get("/?backfilled=true").text.count("<tr data-uid") == 6
    page = api.get("/system").text
    assert "20260114 to 20260116" in page
    assert 'href="/?backfilled=true"' in page
    metrics = api.get("/metrics").text
    assert 'hilum_studies{state="receiving"} 1.0' in metrics
    assert "hilum_backfill_in_flight 0.0" in metrics
    with context.ledger.write() as session:
        session.execute(update(Backfill).values(state=BackfillState.PAUSED))
    assert 'hilum_backfill_studies{state="fetched"} 6.0' in api.get("/metrics").text
