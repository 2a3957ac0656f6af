"""Who gets which work, and when what a dead process held comes back."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update

from service.core import leases
from service.core.claims import claim, claim_in_turn
from service.core.errors import LeaseLost
from service.core.leases import (
    DECODE,
    free_left_behind,
    held,
    owner,
    release,
)
from service.core.ledger import Ledger, now
from service.core.settings import load
from service.core.tables import Instance
from tests.ledgers import migrated
from tests.pipeline import film, receive
from worker.context import Context


@pytest.fixture(params=["sqlite", "postgresql"])
def context(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Context]:
    """A worker's context with five films that wait."""
    url = None if request.param == "sqlite" else request.getfixturevalue("postgresql")
    settings = load(data_dir=tmp_path, min_free_bytes=0, database_url=url)
    migrated(settings.sqlalchemy_url)
    opened = Context.open(settings)
    receive(opened, *[film(number) for number in range(5)])
    yield opened
    opened.ledger.close()


def ids(ledger: Ledger) -> list[int]:
    with ledger.read() as session:
        return list(session.scalars(select(Instance.id).order_by(Instance.id)))


def set_row(ledger: Ledger, row_id: int, **values: object) -> None:
    with ledger.write() as session:
        session.execute(update(Instance).where(Instance.id == row_id).values(**values))


def test_work_that_failed_goes_alone_and_when_its_turn_comes(context: Context) -> None:
    first, second, *rest = ids(context.ledger)
    set_row(context.ledger, second, attempts=1)
    # Its time has not come: the first is older.
    assert [lease.row_id for lease in claim_in_turn(context.ledger, DECODE, 2)] == [first, rest[0]]
    # Now nothing is older, however much is fresh.
    assert [lease.row_id for lease in claim_in_turn(context.ledger, DECODE, 2)] == [second]
    assert [lease.row_id for lease in claim_in_turn(context.ledger, DECODE, 9)] == rest[1:]
    assert claim_in_turn(context.ledger, DECODE, 9) == []


def test_a_long_backlog_does_not_put_off_what_failed_once(context: Context) -> None:
    failed = ids(context.ledger)[2]
    set_row(context.ledger, failed, attempts=1, ready_at=now() - timedelta(minutes=1))
    assert [lease.row_id for lease in claim_in_turn(context.ledger, DECODE, 4)] == [failed]


def test_what_a_dead_process_of_this_worker_held_comes_back_at_once(context: Context) -> None:
    mine, dead, elsewhere, finished, _ = claim(context.ledger, DECODE, 5)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        gone = owner().replace(f":{os.getpid()}", f":{ended.pid}")
    set_row(context.ledger, dead.row_id, lease_owner=gone)
    set_row(context.ledger, elsewhere.row_id, lease_owner=gone.replace(leases._FAMILY, "another"))
    set_row(context.ledger, finished.row_id, lease_owner=gone, state="decoded")
    assert free_left_behind(context.ledger, DECODE) == 1
    with context.ledger.read() as session:
        rows = {row.id: row for row in session.scalars(select(Instance))}
    assert rows[dead.row_id].lease_until is None
    assert rows[dead.row_id].last_error == "its process died"
    assert rows[dead.row_id].attempts == 1
    assert rows[dead.row_id].ready_at > now(), "what kills its process does not do so without a pause"
    for kept in (mine, elsewhere, finished):
        assert rows[kept.row_id].lease_until is not None


def row(ledger: Ledger, row_id: int) -> Instance:
    with ledger.read() as session:
        return session.get_one(Instance, row_id)


def test_a_result_that_is_not_committed_keeps_its_lease(context: Context) -> None:
    (lease,) = claim(context.ledger, DECODE, 1)
    with suppress(ZeroDivisionError), context.ledger.write() as session:
        held(session, lease)[0].state = "decoded"
        session.flush()
        raise ZeroDivisionError
    kept = row(context.ledger, lease.row_id)
    assert kept.state == "received"
    assert kept.lease_until is not None
    with context.ledger.write() as session:
        held(session, lease)[0].state = "decoded"
    assert row(context.ledger, lease.row_id).lease_until is None


def test_work_that_has_ended_or_is_another_s_is_not_given_back(context: Context) -> None:
    ended, taken, gone = claim(context.ledger, DECODE, 3)
    with context.ledger.write() as session:
        held(session, ended)[0].state = "decoded"
        session.execute(delete(Instance).where(Instance.id == gone.row_id))
    set_row(context.ledger, taken.row_id, lease_token=taken.token + 1)
    for lease in (ended, taken, gone):
        release(context.ledger, lease, "too late", 60)
        with pytest.raises(LeaseLost), context.ledger.write() as session:
            held(session, lease)
    assert row(context.ledger, ended.row_id).last_error is None
    assert row(context.ledger, taken.row_id).last_error is None
    assert row(context.ledger, taken.row_id).lease_until is not None
