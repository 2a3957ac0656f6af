"""Processes that die between any two steps: nothing is lost, nothing doubled, nothing half is analysed."""

import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from pydicom import Dataset
from pydicom.uid import ComprehensiveSRStorage, SecondaryCaptureImageStorage
from sqlalchemy import delete, func, select, update

from service.core.ledger import Ledger, now
from service.core.receive import Intake
from service.core.repair import STALE_SECONDS, Repair, differences
from service.core.settings import load
from service.core.spool import Spool, data_set_digest
from service.core.tables import (
    Analysis,
    Confirmation,
    Event,
    Instance,
    Outbox,
    Refusal,
    Report,
    Revision,
    Study,
)
from tests import factories
from tests.servers import ROOT, Gateway, Orthanc, StoreScp, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.long]
# What happens to studies long after: tests/integration/test_retention.py, test_purge.py, test_backup.py,
# test_notices.py, test_feedback.py.
_LATER = {"retention", "purge", "backup", "restore", "notices", "assess", "backfill"}
_SOURCE = [path for folder in ("service", "worker") for path in (ROOT / folder).rglob("*.py")]
_FAILPOINTS = sorted(
    name for path in _SOURCE for name in re.findall(r'failpoint\("([\w.]+)"\)', path.read_text("utf-8"))
)
# Where the sender is still owed an answer.
_RECEIVING = tuple(name for name in _FAILPOINTS if name.split(".")[0] in {"incoming", "receive", "keep"})
_PATIENCE = 90.0


@dataclass
class Site:
    """A gateway with two destinations, of which one takes no Comprehensive 3D SR."""

    gateway: Gateway
    pacs: Orthanc
    old: StoreScp
    failpoint: Path

    def arm(self, name: str) -> None:
        """Let the next process that comes by this place die there."""
        part = self.failpoint.with_suffix(".part")
        part.write_text(name, encoding="utf-8")
        part.rename(self.failpoint)

    def wait_for_death(self) -> None:
        """Wait for it, and let the leases of the dead end as half a minute would."""
        eventually(lambda: not self.failpoint.exists(), _PATIENCE, "a process at the failpoint")
        time.sleep(0.2)
        with self.ledger() as ledger, ledger.write() as session:
            for table in (Instance, Analysis, Revision, Outbox, Confirmation):
                session.execute(
                    update(table)
                    .where(table.lease_until.is_not(None))
                    .values(lease_until=now() - timedelta(seconds=1))
                )

    def send(self, path: Path) -> bool:
        return self.gateway.send(path).returncode == 0

    def resend(self, path: Path) -> None:
        """Send again and again, as a router does."""
        eventually(lambda: self.send(path), _PATIENCE, "success", interval=0.5)

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        ledger = Ledger(f"sqlite:///{self.gateway.data_dir / 'ledger.sqlite3'}")
        try:
            yield ledger
        finally:
            ledger.close()

    @property
    def spool(self) -> Spool:
        return Spool(self.gateway.data_dir)

    def left(self) -> set[str]:
        """Return every file that no row names, and every path of a row whose file is gone."""
        with self.ledger() as ledger:
            return {path for both in differences(ledger, self.spool) for paths in both for path in paths}

    def repair(self) -> None:
        """Do what the scheduler does, an hour later."""
        for path in self.left():
            os.utime(self.spool.absolute(path), (time.time() - STALE_SECONDS - 60,) * 2)
        with self.ledger() as ledger:
            intake = Intake(ledger, self.spool, load(data_dir=self.gateway.data_dir))
            Repair(ledger, self.spool, intake).round(threading.Event())

    def assert_whole(self, film: Dataset, path: Path) -> None:
        """Hold that the film was received, analysed and reported once, and that nothing else is left."""
        with self.ledger() as ledger, ledger.read() as session:
            (row,) = session.scalars(
                select(Instance).where(Instance.sop_instance_uid == film.SOPInstanceUID)
            ).all()
            assert (
                row.digest
                == data_set_digest(path)
                == data_set_digest(self.spool.absolute(str(row.spool_path)))
            )
            analysed = select(func.count()).where(Event.study_id == row.study_id, Event.kind == "analysed")
            assert session.scalar(analysed) == 1
            reports = session.scalars(select(Report).where(Report.study_id == row.study_id)).all()
            assert session.get_one(Study, row.study_id).revision == 1
            assert len({(report.kind, report.part) for report in reports}) == len(reports)
            at_pacs = {item.sop_instance_uid for item in self.pacs.instances(film.StudyInstanceUID)}
            sent = {report.sop_instance_uid for report in reports if report.kind != "comprehensive-sr"}
            assert at_pacs == sent
            assert Counter(report.kind for report in reports)["sr"] == 1
            assert Counter(report.kind for report in reports)["comprehensive-sr"] == 1
        assert not self.left()
        eventually(lambda: not list(self.spool.incoming.iterdir()), 10, "nothing in incoming/")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as running:
        pacs = running.enter_context(Orthanc(DicomAlwaysAllowFind=True))
        old = running.enter_context(StoreScp(ComprehensiveSRStorage, SecondaryCaptureImageStorage))
        gateway = Gateway(destinations=f"PACS={pacs.destination},OLD={old.destination}")
        gateway.settings["failpoint"] = str(gateway.folder / "failpoint")
        made = Site(running.enter_context(gateway), pacs, old, gateway.folder / "failpoint")
        yield made


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def written(folder: Path, seed: str) -> tuple[Dataset, Path]:
    film = factories.chest_film(seed, rows=489, columns=460)
    return film, factories.write(film, folder)


def finished(site: Site, film: Dataset) -> None:
    site.gateway.wait_for_state(film.StudyInstanceUID, "delivered", _PATIENCE)


@pytest.fixture(autouse=True)
def _disarmed(site: Site) -> Iterator[None]:
    """Let no test die at the place of another one."""
    yield
    site.failpoint.unlink(missing_ok=True)


@pytest.mark.fault(2)
@pytest.mark.parametrize(
    "name", [name for name in _FAILPOINTS if name != "adopt.recorded" and name.split(".")[0] not in _LATER]
)
def test_a_process_that_dies_between_two_steps_loses_and_doubles_nothing(
    site: Site, tmp_path: Path, name: str
) -> None:
    film, path = written(tmp_path, name)
    with site.ledger() as ledger, ledger.write() as session:
        session.execute(delete(Refusal))  # so that the other form is made anew
    site.arm(name)
    answered = site.send(path)
    site.wait_for_death()
    assert answered == (name not in _RECEIVING)
    if not answered:
        site.resend(path)
    finished(site, film)
    site.repair()
    site.assert_whole(film, path)


def test_a_sender_that_does_not_come_again_has_its_film_adopted_at_the_next_start(
    site: Site, tmp_path: Path
) -> None:
    film, path = written(tmp_path, "adopted")
    site.arm("receive.kept")
    assert not site.send(path)
    site.gateway.kill()
    site.gateway.restart()
    finished(site, film)
    site.repair()  # what others were making when they were killed waits for its hour otherwise
    site.assert_whole(film, path)


def test_a_scheduler_that_dies_while_it_adopts_removes_the_double_the_next_time(
    site: Site, tmp_path: Path
) -> None:
    film, path = written(tmp_path, "doubled")
    assert site.send(path)
    site.arm("receive.recorded")  # a double now: its file is kept and about to be removed
    assert not site.send(path)
    site.wait_for_death()

    def doubles() -> list[str]:
        return [path for path in site.left() if path.startswith("spool/")]

    # What is being made of the film just now has no row yet either, and after the kill waits for its hour.
    assert len(doubles()) == 1
    site.arm("adopt.recorded")
    site.gateway.kill()
    site.gateway.restart()
    site.wait_for_death()
    eventually(lambda: not doubles(), _PATIENCE, "the double removed")
    finished(site, film)
    site.repair()
    site.assert_whole(film, path)


def test_a_gateway_that_is_killed_starts_again_at_once_and_finishes_its_work(
    site: Site, tmp_path: Path
) -> None:
    films = [written(tmp_path, f"killed{number}") for number in range(4)]
    for _, path in films:
        assert site.send(path)
    process = site.gateway.process
    assert process is not None
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    site.gateway.restart()
    # A process lets go of the lock a moment before it is gone.
    eventually(lambda: not any(map(_lives, children)), 5, "nothing left of the killed gateway")
    # All of them first: a report that is being written is a file without its row too.
    for film, _ in films:
        finished(site, film)
    site.repair()
    for film, path in films:
        site.assert_whole(film, path)


def test_a_gateway_that_is_stopped_in_the_middle_of_its_work_finishes_it_later(
    site: Site, tmp_path: Path
) -> None:
    films = [written(tmp_path, f"stopped{number}") for number in range(4)]
    for _, path in films:
        assert site.send(path)
    process = site.gateway.process
    assert process is not None
    time.sleep(1.2)  # longer than the quiet time: films and reports are under way
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    with site.ledger() as ledger, ledger.read() as session:
        for table in (Instance, Analysis, Revision, Outbox, Confirmation):
            leased = session.scalars(select(table).where(table.lease_until.is_not(None))).all()
            assert not leased, table
    site.gateway.restart()
    # All of them first: a report that is being written is a file without its row too.
    for film, _ in films:
        finished(site, film)
    site.repair()
    for film, path in films:
        site.assert_whole(film, path)


def test_every_failpoint_has_a_name_of_its_own() -> None:
    assert len(set(_FAILPOINTS)) == len(_FAILPOINTS) > 20
