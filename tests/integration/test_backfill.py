"""Back-fills from a real Orthanc: found, fetched behind what is sent, resumed after a kill, never sent."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from sqlalchemy import func, select, update

from service.core import backfill
from service.core.backfill import Query
from service.core.completion import conclude_due_studies
from service.core.ledger import now
from service.core.settings import load
from service.core.states import BackfillState, FetchState, StudyState
from service.core.tables import Backfill, BackfillStudy, Outbox, Report, Study
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
