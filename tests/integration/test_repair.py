"""What a crash leaves: files without a row, and rows without a file."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset
from sqlalchemy import select

from service.core import repair
from service.core.checks import examine
from service.core.completion import conclude_due_studies
from service.core.incoming import IncomingFile
from service.core.leases import FILE_GONE
from service.core.receive import Arrival, Intake, Outcome
from service.core.repair import STALE_SECONDS, Repair, Repaired
from service.core.settings import load
from service.core.states import InstanceState, StudyState
from service.core.tables import Event
from service.scheduler.scheduler import give_up_exhausted
from tests import factories
from tests.ledgers import migrated
from tests.pipeline import hurry, instances, receive, study, work
from worker.context import Context
from worker.tasks import decode


@pytest.fixture(params=["sqlite", "postgresql"])
def context(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Context]:
    """Ledger and data folder, on each database."""
    url = None if request.param == "sqlite" else request.getfixturevalue("postgresql")
    settings = load(data_dir=tmp_path / "data", study_quiet_seconds=0, min_free_bytes=0, database_url=url)
    migrated(settings.sqlalchemy_url)
    opened = Context.open(settings)
    yield opened
    opened.ledger.close()


def intake(context: Context) -> Intake:
    return Intake(context.ledger, context.spool, context.settings)


def mend(context: Context) -> Repaired:
    return Repair(context.ledger, context.spool, intake(context)).round(threading.Event())


def keep(context: Context, film: Dataset) -> str:
    """Keep a film as a listener does that dies before it writes the row."""
    return context.spool.keep(factories.write(film, context.spool.incoming))


def kept(context: Context) -> list[str]:
    return [str(path.relative_to(context.spool.root)) for path in context.spool.root.glob("spool/*/*")]


def age(path: Path, seconds: float = STALE_SECONDS + 60) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def small(seed: int = 0, **options: object) -> Dataset:
    return factories.phantom_chest(seed, rows=64, columns=64, **options)


def test_a_kept_film_without_a_row_is_adopted_and_analysed(context: Context) -> None:
    path = keep(context, factories.phantom_chest())
    assert mend(context) == Repaired(adopted=1)
    (row,) = instances(context)
    assert (row.spool_path, row.state) == (path, InstanceState.RECEIVED)
    work(context)
    assert study(context).state == StudyState.REPORTED
    assert mend(context) == Repaired()


def test_a_film_that_came_again_before_it_was_adopted_is_kept_once(context: Context) -> None:
    keep(context, small())
    receive(context, small())
    assert mend(context) == Repaired(adopted=1)
    (row,) = instances(context)
    assert kept(context) == [row.spool_path]


def test_what_cannot_be_read_is_removed_and_said(context: Context, capfd: pytest.CaptureFixture[str]) -> None:
    cut = factories.write(small(), context.spool.incoming)
    cut.write_bytes(cut.read_bytes()[:300])
    context.spool.keep(cut)
    assert mend(context) == Repaired(removed=1)
    assert not kept(context)
    assert not instances(context)
    assert "repair.unreadable" in "".join(capfd.readouterr())


def test_a_film_whose_listener_still_waits_for_the_ledger_is_left_to_it(context: Context) -> None:
    film = small()
    arriving = IncomingFile(context.spool.incoming, 1_000_000)
    arriving.write(factories.write(film, context.spool.root / "elsewhere").read_bytes())
    path = context.spool.keep(arriving.path)
    assert mend(context) == Repaired()
    assert kept(context) == [path]
    arriving.close()
    assert mend(context) == Repaired(adopted=1)


def test_adopting_beside_a_living_listener_leaves_one_row_and_its_file(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system that does not tell one host of the locks of another."""
    listener, other = intake(context), intake(context)
    keep_ = context.spool.keep

    def adopted_meanwhile(path: Path) -> str:
        relative = keep_(path)
        assert other.adopt(relative) == Outcome.STORED
        return relative

    monkeypatch.setattr(context.spool, "keep", adopted_meanwhile)
    arrived = factories.write(small(), context.spool.incoming)
    assert listener.receive(Arrival(arrived, "TEST")) == Outcome.STORED
    assert [row.spool_path for row in instances(context)] == kept(context)


def test_what_was_made_is_removed_once_it_is_old_and_nothing_else_is(context: Context) -> None:
    receive(context, factories.phantom_chest())
    work(context)
    named = {path for path in context.spool.root.glob("[fr]*/*/*") if path.is_file()}
    assert named
    left = [
        context.spool.absolute(context.spool.write(folder, suffix, lambda stream: stream.write(b"x")))
        for folder, suffix in (("films", ".npy"), ("films", ".activation.npy"), ("reports", ".dcm"))
    ]
    part = left[0].with_suffix(".part")
    foreign = left[0].with_name("lost+found")
    for path in (part, foreign):
        path.write_bytes(b"x")
    assert mend(context) == Repaired()
    for path in (*left, *named, part, foreign):
        age(path)
    assert mend(context) == Repaired(removed=4)
    assert not any(path.exists() for path in (*left, part))
    assert all(path.exists() for path in (*named, foreign))


def test_a_lost_film_asks_for_attention_until_it_is_sent_again(context: Context) -> None:
    film = factories.phantom_chest()
    receive(context, film)
    (row,) = instances(context)
    lost = context.spool.absolute(str(row.spool_path))
    lost.unlink()
    assert mend(context) == Repaired(missing=1)
    for _ in range(3):
        decode.run(context)
        hurry(context)
    give_up_exhausted(context.ledger)
    conclude_due_studies(context.ledger)
    assert study(context).state == StudyState.FAILED
    assert FILE_GONE in str(study(context).reason)
    assert "send the study again" in str(study(context).attention)
    (check,) = [item for item in examine(context.settings) if item.name == "files"]
    assert (check.right, check.seen) == (False, "1 that the ledger names are gone")

    receive(context, film)
    work(context)
    assert study(context).state == StudyState.REPORTED
    assert study(context).attention is None
    assert mend(context) == Repaired()


def test_a_data_folder_that_was_not_mounted_leaves_no_complaint(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "_MOST_MISSING", 2)
    receive(context, *[small(seed, study="one") for seed in range(3)])
    hidden = context.spool.root / "hidden"
    (context.spool.root / "spool").rename(hidden)
    context.spool.make()
    for _ in range(2):
        assert mend(context) == Repaired(missing=3)
    assert [row.last_error for row in instances(context)].count(FILE_GONE) >= 2
    assert "send the study again" in str(study(context).attention)
    hidden.rename(context.spool.root / "spool2")
    for folder in (context.spool.root / "spool").iterdir():
        folder.rmdir()
    (context.spool.root / "spool2").rename(context.spool.root / "spool")
    assert mend(context) == Repaired()
    assert study(context).attention is None
    with context.ledger.read() as session:
        kinds = list(session.scalars(select(Event.kind)))
    assert kinds.count("found") == kinds.count("missing")


def test_the_doctor_counts_what_a_crash_left(context: Context) -> None:
    keep(context, small())
    (check,) = [item for item in examine(context.settings) if item.name == "files"]
    assert check.right
    assert "1 that a crash left" in check.seen
