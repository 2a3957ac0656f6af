"""Two listeners, three workers, a scheduler, Redis and PostgreSQL, each on a host of its own.

They share a folder, as hosts share a POSIX volume; the PACS and the routers are on this machine.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pydicom.uid import Comprehensive3DSRStorage
from sqlalchemy import func, select

from service.core.ledger import Ledger, migrate
from service.core.states import StudyState
from service.core.tables import Heartbeat, Study
from tests import factories
from tests.hosts import HostPostgreSQL, HostRedis, HostRole, Network
from tests.servers import Orthanc, eventually, storescu

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(1200)]
_SECONDS = 300
_WORKERS = ("worker-1", "worker-2", "worker-3")
_LISTENERS = ("listener-1", "listener-2")


class Region:
    """The hosts, and what runs on them, by name."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        self.network = running.enter_context(Network())
        names = ("postgresql", "redis", "scheduler", *_LISTENERS, *_WORKERS)
        self.hosts = {name: self.network.host(name) for name in names}
        database = running.enter_context(HostPostgreSQL(self.hosts["postgresql"]))
        redis = running.enter_context(HostRedis(self.hosts["redis"]))
        self.pacs = running.enter_context(Orthanc())
        settings = {
            "data_dir": folder / "data",
            "database_url": database.fresh_url(),
            "broker_url": redis.url,
            "destinations": f"PACS=dicom://{self.pacs.aet}@{self.network.address}:{self.pacs.dicom_port}",
            "calling_ae_titles": "ROUTER",
            "dimse_host": "0.0.0.0",
            "study_quiet_seconds": 1,
        }
        migrate(str(settings["database_url"]))
        self.ledger = Ledger(str(settings["database_url"]))
        running.callback(self.ledger.close)
        commands = {"scheduler": "scheduler"} | dict.fromkeys(_LISTENERS, "listen")
        commands |= dict.fromkeys(_WORKERS, "worker")
        self.roles = {
            name: running.enter_context(HostRole(self.hosts[name], command, **settings))
            for name, command in commands.items()
        }
        eventually(lambda: self.alive() >= set(commands), _SECONDS, "a sign of life from every host", 0.5)

    def alive(self) -> set[str]:
        """Return the hosts that have given a sign of life."""
        with self.ledger.read() as session:
            return {name.split(":")[1] for name in session.scalars(select(Heartbeat.process))}

    def push(self, listener: str, *films: Path) -> int:
        role = self.roles[listener]
        address = self.hosts[listener].address
        sent = storescu(films, role.ae_title, role.dimse_port, calling_aet="ROUTER", address=address)
        return sent.returncode

    def done(self) -> int:
        with self.ledger.read() as session:
            query = select(func.count()).where(Study.state.in_((StudyState.DELIVERED, StudyState.CONFIRMED)))
            return session.scalar(query) or 0

    def wait_for(self, count: int) -> None:
        def said() -> str:
            return "\n".join(f"--- {name}\n{role.log()[-3000:]}" for name, role in self.roles.items())

        try:
            eventually(lambda: self.done() == count, _SECONDS, f"{count} delivered studies", 0.5)
        except Exception as late:
            raise AssertionError(f"{late}\n{said()}") from None


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    with ExitStack() as running:
        yield Region(tmp_path, running)


def test_what_is_cut_off_on_the_way_neither_loses_nor_doubles_a_report(
    region: Region, tmp_path: Path
) -> None:
    films = [factories.chest_film(f"host {number}") for number in range(12)]
    paths = [factories.write(film, tmp_path / "films") for film in films]
    # Each listener takes its share.
    for listener, share in zip(_LISTENERS, (paths[:2], paths[2:4]), strict=True):
        assert region.push(listener, *share) == 0
    region.wait_for(4)
    # A worker that can't reach anything any more, with work in its hands.
    region.push("listener-1", *paths[4:8])
    region.hosts["worker-1"].cut()
    region.wait_for(8)
    region.hosts["worker-1"].join()
    # A worker that dies with work in its hands, and a listener off the network: the router takes the other.
    region.push("listener-1", *paths[8:10])
    region.roles["worker-2"].kill()
    region.hosts["listener-1"].cut()
    assert region.push("listener-1", *paths[10:]) != 0
    assert region.push("listener-2", *paths[10:]) == 0
    region.wait_for(12)
    for film in films:
        stored = region.pacs.instances(str(film.StudyInstanceUID))
        reports = [item for item in stored if item.sop_class_uid == Comprehensive3DSRStorage]
        assert len(reports) == 1, film.StudyInstanceUID
