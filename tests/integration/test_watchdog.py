"""A pool that does not consume is told from one that is busy, starved, or cut off."""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from redis import Redis as Client
from sqlalchemy import select, update

from service.commands.watchdog import Watchdog
from service.core import leases
from service.core.claims import claim
from service.core.leases import (
    DECODE,
    REPORT,
)
from service.core.ledger import now, open_engine
from service.core.settings import load
from service.core.states import RevisionState
from service.core.tables import Instance, Revision, Study
from tests.ledgers import migrated
from tests.pipeline import film, receive
from tests.servers import Redis, eventually
from worker.context import Context


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    with Redis(appendonly=False) as running:
        yield running


@pytest.fixture
def context(tmp_path: Path, server: Redis) -> Iterator[Context]:
    """A worker's context with three films that wait, and hints for them in Redis."""
    settings = load(data_dir=tmp_path, min_free_bytes=0)
    migrated(settings.sqlalchemy_url)
    opened = Context.open(settings)
    receive(opened, *[film(number) for number in range(3)])
    server.client.flushall()
    server.client.rpush("decode", "hint")
    yield opened
    opened.ledger.close()


def watchdog(context: Context, server: Redis, family: str = leases._FAMILY, **options: float) -> Watchdog:
    return Watchdog(context.ledger, server.url, {"decode": family}, **options)  # type: ignore[arg-type]


def test_a_pool_that_takes_nothing_while_work_waits_is_found(context: Context, server: Redis) -> None:
    dog = watchdog(context, server, silent_seconds=0.2)
    assert not dog.look()
    why = eventually(dog.look, 5, "the pool found")["decode"]
    assert why.startswith("3 piece(s) of work are ready, and it has taken none")
    # It is replaced: the next one has its time to start, and twice as much.
    assert not dog.look()
    began = time.monotonic()
    eventually(dog.look, 5, "the next pool found")
    assert time.monotonic() - began > 0.4


def test_a_stage_without_work_hides_no_other_one_of_its_queue(context: Context, server: Redis) -> None:
    with context.ledger.write() as session:
        study = session.scalars(select(Study).limit(1)).one()
        revision = {"number": 1, "header_revision": 0, "build": 0, "instance_ids": []}
        waits = {"state": RevisionState.PENDING, "created_at": now(), "ready_at": now(), "lease_token": 0}
        session.add(Revision(study_id=study.id, **revision, **waits))
    server.client.rpush("report", "hint")
    dog = Watchdog(context.ledger, server.url, {"report": leases._FAMILY}, silent_seconds=0)
    assert not dog.look()
    assert "1 piece(s)" in dog.look()["report"]
    claim(context.ledger, REPORT, 1)
    # Nor is a pool silent that works on another stage of it.
    assert not dog.look()
    assert not dog.look()


def test_a_long_queue_that_is_worked_on_is_no_alarm(context: Context, server: Redis) -> None:
    dog = watchdog(context, server, silent_seconds=0)
    dog.look()
    claim(context.ledger, DECODE, 1)
    assert not dog.look()
    assert not dog.look()


def test_what_another_worker_leases_says_nothing_of_this_one(context: Context, server: Redis) -> None:
    claim(context.ledger, DECODE, 1)
    dog = watchdog(context, server, "another", silent_seconds=0)
    assert not dog.look()
    assert "2 piece(s)" in dog.look()["decode"]


def test_work_without_hints_is_not_the_pool_s_fault(context: Context, server: Redis) -> None:
    Client.from_url(server.url).flushall()
    dog = watchdog(context, server, silent_seconds=0)
    assert not dog.look()
    assert not dog.look()


def test_a_ledger_that_nobody_can_write_is_not_the_pool_s_fault(
    context: Context, server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.core.ledger._BUSY_SECONDS", 0.1)
    other = Context.open(context.settings)
    dog = watchdog(other, server, silent_seconds=0)
    assert not dog.look()
    with open_engine(context.settings.sqlalchemy_url).connect() as holder:
        holder.execution_options(hilum_writes=True).exec_driver_sql("SELECT 1")
        assert not dog.look()
        assert not dog.look()
    assert not dog.look()
    assert dog.look()


def test_a_redis_that_is_away_is_not_the_pool_s_fault(context: Context, server: Redis) -> None:
    dog = Watchdog(context.ledger, "redis://127.0.0.1:9/0", {"decode": leases._FAMILY}, silent_seconds=0)
    assert not dog.look()
    assert not dog.look()


def test_work_that_is_held_longer_than_any_work_takes_is_found(context: Context, server: Redis) -> None:
    dog = Watchdog(context.ledger, server.url, {"decode": leases._FAMILY}, longest_seconds={"decode": 0.2})
    claim(context.ledger, DECODE, 1)
    assert not dog.look()
    assert "worked on the same" in eventually(dog.look, 5, "the pool found")["decode"]
    # A lease that changes hands begins anew.
    with context.ledger.write() as session:
        session.execute(update(Instance).values(lease_until=now() - timedelta(seconds=1)))
    assert not dog.look()
