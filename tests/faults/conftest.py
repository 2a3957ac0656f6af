"""The gateway that the faults of queue, worker and ledger are caused to: it lives through all of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.core.ledger import Ledger
from tests.faults.victim import Victim, ledger_of
from tests.servers import Gateway, Redis


@pytest.fixture(scope="session")
def broker() -> Iterator[Redis]:
    """A Redis that forgets everything when it is killed."""
    with Redis(appendonly=False) as server:
        yield server


@pytest.fixture(scope="session")
def _started(broker: Redis) -> Iterator[Victim]:
    with Gateway(broker_url=broker.url, min_free_bytes=0) as gateway:
        ledger = ledger_of(gateway)
        yield Victim(gateway, ledger, Path())
        ledger.close()


@pytest.fixture
def victim(_started: Victim, broker: Redis, tmp_path: Path) -> Victim:
    """One gateway on SQLite for all tests of a process, without destinations: studies end as reported."""
    assert broker.ready(), "a test before this one left Redis down"
    return Victim(_started.gateway, _started.ledger, tmp_path)


@pytest.fixture
def ledger(victim: Victim) -> Ledger:
    return victim.ledger
