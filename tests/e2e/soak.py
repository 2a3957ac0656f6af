"""Studies pushed while everything is killed at random; then each is looked for in the PACS.

``python -m tests.e2e.soak`` is the long form: 1,000 studies, 8 senders, ten minutes of kills.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from pydicom import Dataset
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from service.core.ledger import Ledger
from service.core.receive import Intake
from service.core.repair import STALE_SECONDS, Repair, differences
from service.core.settings import load
from service.core.spool import Spool
from service.core.states import StudyState
from service.core.tables import Instance, Report, Study
from tests import factories
from tests.pipeline import film
from tests.servers import Gateway, Orthanc, PostgreSQL, Redis, ServerError, eventually

_ROLES = (
    *("listener", "scheduler", "api", "worker"),
    *("worker-decode", "worker-infer", "worker-report", "worker-deliver"),
)
# One study in so many gets a second image after its first: it may be worth a second revision.
_WITH_A_LATE_IMAGE = 10
# Does harm, and says whether there was anything to do it to.
Deed = Callable[[random.Random], bool]
_DONE = (StudyState.DELIVERED, StudyState.CONFIRMED)


@dataclass(frozen=True)
class Plan:
    """How much is pushed, how long it is disturbed, and what the rest may take."""

    studies: int = 1000
    senders: int = 8
    seconds: float = 600
    drain_seconds: float = 1800
    postgresql: bool = True
    seed: int = 20261125


@dataclass
class Verdict:
    """What came of it: `lost` and `doubled` are Study Instance UIDs with what is wrong."""

    stored: int = 0
    lost: dict[str, str] = field(default_factory=dict)
    doubled: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    refused: int = 0
    revised: int = 0
    repaired: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    pushed_seconds: float = 0
    drained_seconds: float = 0
    log: str = ""

    @property
    def right(self) -> bool:
        return not (self.lost or self.doubled or self.files)

    def __str__(self) -> str:
        lines = [
            f"{self.stored} studies answered with success, {self.refused} pushes that failed and came again",
            f"loss {len(self.lost)}, duplicates {len(self.doubled)}, files astray {len(self.files)}",
            f"{self.revised} studies with a second revision; {self.repaired} files left by crashes, repaired",
            f"disturbed for {self.pushed_seconds:.0f} s, drained in {self.drained_seconds:.0f} s more",
            "killed: " + ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items())),
        ]
        for title, found in (("lost", self.lost), ("doubled", self.doubled)):
            lines += [f"{title}: {uid}: {why}" for uid, why in found.items()]
        return "\n".join([*lines, *(f"astray: {path}" for path in self.files)])


class Restarted(Gateway):
    """`hilum up` as a service manager runs it: started again whenever it ends, ready or not."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self._waits = True

    def wait_ready(self, deadline: float | None = None) -> None:
        if self._waits:
            super().wait_ready(deadline)
            self._waits = False

    def keep_running(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            self._launch()

    def kill_alone(self) -> bool:
        """Kill `hilum up` itself and none of its children."""
        if self.process is None:
            return False
        self.process.kill()
        self.process.wait()
        return True


class Soak:
    """One run: servers, senders, and what disturbs them."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.verdict = Verdict()
        self.stored: dict[str, list[Dataset]] = {}
        self._lock = threading.Lock()
        self._calm, self._ended = threading.Event(), threading.Event()
        self._calmed = threading.Semaphore(0)
        self._said = 0.0
        self._running = ExitStack()

    def run(self) -> Verdict:
        """Push, disturb, drain and judge."""
        with self._running:
            self._start_servers()
            began = time.monotonic()
            senders = [
                threading.Thread(target=self._send, args=(number,), daemon=True)
                for number in range(self.plan.senders)
            ]
            disturbers = [
                threading.Thread(target=self._disturb, args=(number, *kind), daemon=True)
                for number, kind in enumerate(
                    # Seldom enough for work to get under way in between: a role needs seconds to start.
                    [(self._roles(), 2.0, 8.0), (self._servers(), 4.0, 15.0), (self._up(), 120.0, 240.0)]
                )
            ]
            for thread in (*senders, *disturbers):
                thread.start()
            self._watch(began + self.plan.seconds)
            self._calm.set()
            for _ in disturbers:
                self._calmed.acquire()
            self.verdict.pushed_seconds = time.monotonic() - began
            self._drain(senders)
            self.verdict.drained_seconds = time.monotonic() - began - self.verdict.pushed_seconds
            self._judge()
            self.verdict.log = self.gateway.log()
        return self.verdict

    def _start_servers(self) -> None:
        self.pacs = self._running.enter_context(Orthanc())
        settings: dict[str, Any] = {"destinations": f"PACS={self.pacs.destination}"}
        self.redis: Redis | None = None
        self.database: PostgreSQL | None = None
        if self.plan.postgresql:
            self.redis = self._running.enter_context(Redis())
            self.database = self._running.enter_context(PostgreSQL(durable=True))
            settings |= {"broker_url": self.redis.url, "database_url": self.database.fresh_url()}
        self.gateway = self._running.enter_context(Restarted(**settings))
        self.url = settings.get("database_url") or f"sqlite:///{self.gateway.data_dir / 'ledger.sqlite3'}"
        self._running.callback(self._ended.set)
        # Last in, first out: what may be stopped goes on before it is closed.
        self._running.callback(self._resume)

    # --- senders --------------------------------------------------------------------------------------------

    def _send(self, sender: int) -> None:
        """Push every n-th study at its time, each until it is answered with success, as a router does."""
        chance = random.Random(f"{self.plan.seed} {sender}")
        began = time.monotonic()
        late: list[Dataset] = []
        for number in range(sender, self.plan.studies, self.plan.senders):
            at = began + self.plan.seconds * number / self.plan.studies
            time.sleep(max(0.0, at - time.monotonic()))
            images = [film(f"soak{number}", study=f"soak{number}")]
            for image in (*late, *images):
                self._push(image, chance)
            late = []
            if number % _WITH_A_LATE_IMAGE == 0:
                late = [film(f"soak{number} late", study=f"soak{number}")]
        for image in late:
            self._push(image, chance)

    def _push(self, image: Dataset, chance: random.Random) -> None:
        path = factories.write(image, self.folder)
        while self.gateway.send(path).returncode:
            with self._lock:
                self.verdict.refused += 1
            time.sleep(chance.uniform(0.5, 2))
        path.unlink()
        with self._lock:
            self.stored.setdefault(str(image.StudyInstanceUID), []).append(image)

    # --- disturbance ----------------------------------------------------------------------------------------

    def _disturb(self, number: int, deeds: dict[str, Deed], shortest: float, longest: float) -> None:
        """Do one of `deeds` after the other at random moments until all is to be calm."""
        chance = random.Random(f"{self.plan.seed} disturber {number}")
        while not self._calm.wait(chance.uniform(shortest, longest)):
            name = chance.choice(sorted(deeds))
            try:
                self.verdict.kills[name] += deeds[name](chance)
            except (psutil.Error, ServerError, OSError) as fault:
                print(f"{name}: {fault}", flush=True)
        self._calmed.release()
        # A server dies with the thread that started it (prctl(2), PR_SET_PDEATHSIG).
        self._ended.wait()

    def _roles(self) -> dict[str, Deed]:
        def kill(role: str) -> Deed:
            def deed(chance: random.Random) -> bool:
                running = self.gateway.pids().get(role)
                if not running:
                    return False  # it waits to be started again
                psutil.Process(chance.choice(running)).kill()
                return True

            return deed

        roles = _ROLES if self.plan.postgresql else (*_ROLES, "redis")
        return {role: kill(role) for role in roles}

    def _servers(self) -> dict[str, Deed]:
        def restart(server: Orthanc | Redis | PostgreSQL, longest: float) -> Deed:
            def deed(chance: random.Random) -> bool:
                server.kill()
                time.sleep(chance.uniform(0, longest))
                server.restart()
                return True

            return deed

        def suspend(chance: random.Random) -> bool:
            os.kill(self._pid(self.pacs), signal.SIGSTOP)
            time.sleep(chance.uniform(2, 8))
            self._resume()
            return True

        deeds = {"PACS": restart(self.pacs, 5), "PACS suspended": suspend}
        if self.redis is not None and self.database is not None:
            redis = self.redis

            def flush(chance: random.Random) -> bool:
                return bool(redis.client.flushall())

            deeds |= {
                "Redis": restart(redis, 3),
                "Redis emptied": flush,
                "database": restart(self.database, 3),
            }
        return deeds

    def _up(self) -> dict[str, Deed]:
        return {"hilum up": lambda _: self.gateway.kill_alone()}

    def _resume(self) -> None:
        with suppress(OSError, ServerError):
            os.kill(self._pid(self.pacs), signal.SIGCONT)

    @staticmethod
    def _pid(server: Orthanc) -> int:
        if server.process is None:
            raise ServerError("the PACS does not run")
        return server.process.pid

    # --- the end --------------------------------------------------------------------------------------------

    def _watch(self, until: float) -> None:
        """Keep the gateway running and say how far it is, until then."""
        while time.monotonic() < until:
            self.gateway.keep_running()
            if time.monotonic() > self._said + 30:
                self._said = time.monotonic()
                print(self._progress(), flush=True)
            time.sleep(0.5)

    def _progress(self) -> str:
        try:
            with self._ledger() as ledger, ledger.read() as session:
                states = dict(session.execute(select(Study.state, func.count()).group_by(Study.state)).all())
        except SQLAlchemyError as fault:
            states = {type(fault).__name__: 0}
        return f"{time.strftime('%X')} pushed {len(self.stored)}, in the ledger {states}"

    def _drain(self, senders: list[threading.Thread]) -> None:
        deadline = time.monotonic() + self.plan.drain_seconds
        while time.monotonic() < deadline:
            self._watch(min(deadline, time.monotonic() + 5))
            if not any(sender.is_alive() for sender in senders) and not self._unfinished():
                return
        print(f"not drained within {self.plan.drain_seconds:.0f} s", flush=True)

    def _unfinished(self) -> dict[str, str]:
        """Return what keeps each stored study from being finished."""
        with self._ledger() as ledger, ledger.read() as session:
            rows = session.execute(
                select(Study.study_instance_uid, Study.state, Study.reason, Study.due_at, Study.attention)
            )
            found = {row[0]: row for row in rows}
        unfinished = {}
        for study_instance_uid in self.stored:
            row = found.get(study_instance_uid)
            if row is None:
                unfinished[study_instance_uid] = "not in the ledger"
            elif row.state not in _DONE or row.due_at is not None:
                unfinished[study_instance_uid] = f"{row.state} ({row.reason or row.attention})"
        return unfinished

    def _judge(self) -> None:
        verdict = self.verdict
        verdict.stored = len(self.stored)
        verdict.lost |= self._unfinished()
        with self._ledger() as ledger:
            for study_instance_uid, images in self.stored.items():
                if study_instance_uid not in verdict.lost:
                    self._judge_study(ledger, study_instance_uid, images)
            self._judge_files(ledger)

    def _judge_study(self, ledger: Ledger, study_instance_uid: str, images: list[Dataset]) -> None:
        """Hold the reports in the PACS against the ledger's, and both against what was sent."""
        with ledger.read() as session:
            study = session.scalars(select(Study).where(Study.study_instance_uid == study_instance_uid)).one()
            received = Counter(
                session.scalars(select(Instance.sop_instance_uid).where(Instance.study_id == study.id))
            )
            made = dict(
                session.execute(
                    select(Report.sop_instance_uid, Report.revision).where(
                        Report.study_id == study.id, Report.kind == "sr"
                    )
                ).all()
            )
            newest = study.revision
        there = [
            Dataset.from_json(item)
            for item in self.pacs.dicomweb_metadata(study_instance_uid)
            if item["00080060"]["Value"] == ["SR"]
        ]
        current = [item for item in there if made.get(str(item.SOPInstanceUID)) == newest]
        if not current:
            self.verdict.lost[study_instance_uid] = f"revision {newest} is not in the PACS"
        elif {image.SOPInstanceUID for image in images} - _evidence(current[0]):
            self.verdict.lost[study_instance_uid] = "the report does not name every image"
        wrong = []
        if len(there) != len(made) or {str(item.SOPInstanceUID) for item in there} != set(made):
            wrong.append(f"{len(there)} reports in the PACS, {len(made)} in the ledger")
        if sorted(made.values()) != list(range(1, newest + 1)) or newest > len(images):
            wrong.append(f"revisions {sorted(made.values())} of {len(images)} images")
        if any(count > 1 for count in received.values()):
            wrong.append("an image has two rows")
        if wrong:
            self.verdict.doubled[study_instance_uid] = "; ".join(wrong)
        self.verdict.revised += newest > 1

    def _judge_files(self, ledger: Ledger) -> None:
        """Let what crashes left be repaired as an hour later, then look for files that are astray."""
        spool = Spool(self.gateway.data_dir)
        for orphans, _ in differences(ledger, spool):
            for path in orphans:
                os.utime(spool.absolute(path), (time.time() - STALE_SECONDS - 60,) * 2)
                self.verdict.repaired += 1
        settings = load(data_dir=self.gateway.data_dir, database_url=self.url)
        Repair(ledger, spool, Intake(ledger, spool, settings)).round(threading.Event())
        for orphans, missing in differences(ledger, spool):
            self.verdict.files += [*orphans, *(f"{path} is gone" for path in missing)]
        with suppress(ServerError):
            eventually(lambda: not list(spool.incoming.iterdir()), 30)
        self.verdict.files += [str(path) for path in spool.incoming.iterdir()]

    @contextmanager
    def _ledger(self) -> Iterator[Ledger]:
        ledger = Ledger(self.url)
        try:
            yield ledger
        finally:
            ledger.close()


def _evidence(report: Dataset) -> set[str]:
    """Return the SOP Instance UIDs that an SR names as its evidence."""
    return {
        item.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }


def soak(plan: Plan) -> Verdict:
    """Run the plan and return what came of it."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        return Soak(plan, Path(folder)).run()


def main() -> int:
    """Run the form that the arguments describe; 0 when nothing was lost, doubled or astray."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=Plan.studies)
    parser.add_argument("--senders", type=int, default=Plan.senders)
    parser.add_argument("--seconds", type=float, default=Plan.seconds)
    parser.add_argument(
        "--sqlite", action="store_true", help="the defaults of `hilum up` in place of servers"
    )
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--log", type=Path, help="where the gateway's log is kept")
    given = parser.parse_args()
    verdict = soak(
        Plan(
            studies=given.studies,
            senders=given.senders,
            seconds=given.seconds,
            postgresql=not given.sqlite,
            seed=given.seed,
        )
    )
    print(verdict)
    if given.log is not None:
        given.log.write_text(verdict.log, encoding="utf-8")
    return 0 if verdict.right else 1


if __name__ == "__main__":
    sys.exit(main())
