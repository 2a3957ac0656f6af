"""The ledger locked, or its server stopped: a bounded wait, A700, and everything goes on afterwards."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest
from pydicom import Dataset
from sqlalchemy import select

from service.core.tables import Heartbeat
from tests import factories
from tests.faults import peers
from tests.faults.peers import Peer
from tests.faults.victim import PATIENCE, Victim, kill, ledger_of, resume, small_film
from tests.servers import HTTP, Gateway, PostgreSQL, Redis, eventually

# Twice what they take where other tests run beside them.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
# The dimse_timeout of pynetdicom, the shortest in use: it must get our status, not give up before.
_LONGEST_SECONDS = 30.0


def stored(gateway: Gateway, film: Dataset, folder: Path) -> tuple[int, float]:
    """Return the status of a C-STORE and how long it took."""
    content = peers.data_set(factories.write(film, folder))
    with Peer(gateway.dimse_port) as peer:
        peer.associate()
        began = time.monotonic()
        peer.send(peers.p_data(peers.store_rq(film.SOPClassUID, film.SOPInstanceUID), command=True))
        peer.send(peers.data_pdus(content))
        return peer.status(60), time.monotonic() - began


@contextmanager
def locked(victim: Victim) -> Iterator[None]:
    database = victim.gateway.data_dir / "ledger.sqlite3"
    with closing(sqlite3.connect(database, timeout=20, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@pytest.mark.fault(16)
@pytest.mark.parametrize("seconds", [0, pytest.param(60, marks=[pytest.mark.long])])
def test_a_locked_ledger_is_out_of_resources_in_time_and_everything_goes_on(
    victim: Victim, seconds: int
) -> None:
    before, during = small_film(f"before lock {seconds}"), small_film(f"during lock {seconds}")
    victim.push(before)
    with locked(victim):
        began = time.monotonic()
        status, took = stored(victim.gateway, during, victim.folder)
        assert status == 0xA700
        assert took < _LONGEST_SECONDS
        # What reads is not held up.
        assert HTTP.get(f"{victim.gateway.http_url}/healthz").status_code == 200
        assert victim.gateway.study(before.StudyInstanceUID) is not None
        time.sleep(max(0.0, began + seconds - time.monotonic()))
    print(f"answered A700 after {took:.1f} s")
    status, _ = stored(victim.gateway, during, victim.folder)
    assert status == 0x0000
    for film in (before, during):
        victim.wait_for_one_result(film)
    ready = f"{victim.gateway.http_url}/readyz"
    eventually(lambda: HTTP.get(ready).status_code == 200, PATIENCE, "every role back")


@pytest.mark.fault(16)
def test_a_pool_child_that_starts_while_the_ledger_is_locked_works_and_is_heard_of(victim: Victim) -> None:
    parent, *children = victim.pools("decode")
    said = victim.gateway.log().count("pool.started_without_ledger")
    with locked(victim):
        kill(children[0])
        eventually(
            lambda: victim.gateway.log().count("pool.started_without_ledger") > said,
            90,  # two waits of ten seconds, and a start
            "the new child goes on without the ledger",
        )
    film = small_film("started in the dark")
    victim.push(film)
    victim.wait_for_one_result(film)
    (young,) = [child for child in parent.children() if child not in children]

    def heard_of() -> bool:
        with victim.ledger.read() as session:
            beats = session.scalars(select(Heartbeat.process).where(Heartbeat.role == "decode"))
            return any(process.endswith(f":{young.pid}") for process in beats)

    eventually(heard_of, 20, "a sign of life of the new child")


@pytest.mark.long
@pytest.mark.fault(16)
def test_a_stopped_postgresql_is_out_of_resources_in_time_and_everything_goes_on(
    postgresql_server: PostgreSQL, postgresql: str, broker: Redis, tmp_path: Path
) -> None:
    with (
        Gateway(database_url=postgresql, broker_url=f"{broker.url[:-1]}1", min_free_bytes=0) as gateway,
        closing(ledger_of(gateway)) as ledger,
    ):
        victim = Victim(gateway, ledger, tmp_path)
        before, during = small_film("before stop"), small_film("during stop")
        victim.push(before)
        assert postgresql_server.process is not None
        server = psutil.Process(postgresql_server.process.pid)
        processes = [server, *server.children(recursive=True)]
        try:
            for process in processes:
                process.suspend()
            status, took = stored(gateway, during, tmp_path)
        finally:
            resume(processes)
        assert status == 0xA700
        assert took < _LONGEST_SECONDS
        print(f"answered A700 after {took:.1f} s")
        status, _ = stored(gateway, during, tmp_path)
        assert status == 0x0000
        for film in (before, during):
            victim.wait_for_one_result(film)
