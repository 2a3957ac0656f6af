"""A running gateway, its ledger from the inside, and the means to hit a process just while it works."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from pydicom import Dataset
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from service.core.leases import Stage
from service.core.ledger import Ledger, now, open_engine
from service.core.settings import load
from service.core.states import UNFINISHED_INSTANCES
from service.core.tables import Instance, Study
from tests import factories
from tests.servers import Gateway, ServerError, eventually

# Two cores decode, analyse and report while other tests run beside this one.
PATIENCE = 90.0
ENDED = ("reported", "failed")


@dataclass
class Victim:
    """A gateway and its ledger; `folder` is the test's own."""

    gateway: Gateway
    ledger: Ledger
    folder: Path

    def push(self, *films: Dataset) -> None:
        """Send films, which must all be answered with success."""
        sent = self.gateway.send(*[factories.write(film, self.folder / "sent") for film in films])
        assert sent.returncode == 0, sent.stdout + sent.stderr

    def wait(self, *films: Dataset, states: str | Sequence[str] = "reported") -> list[dict[str, Any]]:
        """Return what the API says of the films' studies once they are in one of `states`."""
        return [self.gateway.wait_for_state(film.StudyInstanceUID, states, PATIENCE) for film in films]

    def wait_for_one_result(self, film: Dataset) -> dict[str, Any]:
        """Return the study once it is reported: analysed once, reported once."""
        (study,) = self.wait(film)
        kinds = [event["kind"] for event in study["events"]]
        assert (study["revision"], kinds.count("analysed"), kinds.count("reported")) == (1, 1, 1)
        assert study["result"]["probability"] is not None
        return study

    def pools(self, queue: str) -> list[psutil.Process]:
        """Return the processes of one worker pool, its parent first."""
        return [psutil.Process(pid) for pid in self.gateway.pids().get(f"worker-{queue}", [])]

    def leased(self, stage: Stage, film: Dataset | None = None) -> list[tuple[int, int, psutil.Process]]:
        """Return row, token and process of each lease of `stage`, or of those of one film's study."""
        table: Any = stage.table
        query = select(table.id, table.lease_token, table.lease_owner).where(
            table.state == stage.waiting, table.lease_until > now()
        )
        if film is not None:
            if table is not Instance:
                query = query.join(Instance)
            query = query.join(Study).where(Study.study_instance_uid == film.StudyInstanceUID)
        with self.ledger.read() as session:
            rows = session.execute(query).all()
        found = []
        for row_id, token, owner in rows:
            with suppress(psutil.NoSuchProcess):
                found.append((row_id, token, psutil.Process(int(owner.rsplit(":", 1)[1]))))
        return found

    def caught(
        self, stage: Stage, film: Dataset | None = None, *, after: int = 0
    ) -> tuple[int, int, psutil.Process]:
        """Return row, token and process of work of `stage` once it is begun, by a later token if asked."""

        def begun() -> list[tuple[int, int, psutil.Process]]:
            return [lease for lease in self.leased(stage, film) if lease[1] > after]

        return eventually(begun, PATIENCE, f"{stage.queue} at work", 0.002)[0]

    def holds(self, stage: Stage, row_id: int, token: int) -> bool:
        """Return whether work that was caught has neither ended nor begun again."""
        with self.ledger.read() as session:
            row: Any = session.get_one(stage.table, row_id)
            return bool(row.state == stage.waiting and row.lease_token == token)

    def unfinished(self, *films: Dataset) -> int:
        """Return how many objects of the films' studies wait for decoding or inference."""
        query = (
            select(func.count())
            .select_from(Instance)
            .join(Study)
            .where(
                Study.study_instance_uid.in_([str(film.StudyInstanceUID) for film in films]),
                Instance.state.in_(UNFINISHED_INSTANCES),
            )
        )
        with self.ledger.read() as session:
            return session.scalars(query).one()

    def locked(self) -> bool:
        """Return whether somebody holds the ledger's write lock for longer than a transaction takes."""
        engine = open_engine(ledger_url(self.gateway))
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA busy_timeout = 1000")
                connection.exec_driver_sql("COMMIT")
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                connection.exec_driver_sql("ROLLBACK")
                connection.exec_driver_sql("BEGIN")
        except OperationalError:
            return True
        finally:
            engine.dispose()
        return False

    @contextmanager
    def stopped(self, processes: Sequence[psutil.Process]) -> Iterator[None]:
        """Hold processes with SIGSTOP, not inside a transaction: on SQLite that would stop all the others."""
        try:
            for _ in range(20):
                for process in processes:
                    process.suspend()
                if not self.locked():
                    break
                resume(processes)
                time.sleep(0.1)
            else:
                raise ServerError("every time it was stopped it held the ledger's lock")
            yield
        finally:
            resume(processes)


def resume(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.resume()


def kill(process: psutil.Process) -> None:
    """Kill a process that may have ended already."""
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)


def small_film(seed: int | str, **options: Any) -> Dataset:
    """Return a chest film of a quarter of its size, which is through in a second."""
    return factories.chest_film(seed, rows=489, columns=460, **options)


def ledger_url(gateway: Gateway) -> str:
    return load(data_dir=gateway.data_dir, database_url=gateway.settings.get("database_url")).sqlalchemy_url


def ledger_of(gateway: Gateway) -> Ledger:
    return Ledger(ledger_url(gateway))
