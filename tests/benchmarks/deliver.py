"""How many structured reports a second reach a PACS: `python -m tests.benchmarks.deliver [REPORTS] [ROUNDS]`.

One film goes through the whole pipeline; its report is copied under new UIDs, a study each, and so put into
the outbox. Then Redis, `hilum scheduler` and `hilum worker --queue deliver` run as at a site, on SQLite with
fsync, into dcmtk's storescp without Nagle's algorithm, which answers no queries. Timed is from the first to
the last `delivered_at`, so that no start counts; CPU time is that of worker, scheduler and storescp.
"""

import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid
from sqlalchemy import func, insert, select

from service.core.ledger import now
from service.core.states import DeliveryState
from service.core.tables import Event, Instance, Outbox, Report, Study, Subject
from tests import pipeline
from tests.servers import Gateway, Redis, Server, eventually
from worker.context import Context

_REPORTS = 1_000
_ROUNDS = 5


class Sink(Server):
    """dcmtk's storescp as fast as it gets: a process an association, no Nagle, long PDUs, nothing parsed."""

    name = "storescp"

    def command(self) -> list[str]:
        received = self.folder / "received"
        received.mkdir(exist_ok=True)
        options = ["--fork", "+B", "-pdu", "131072", "+xa", "-aet", "PACS", "-od", str(received)]
        return ["/usr/bin/storescp", *options, str(self.port)]

    def environment(self) -> dict[str, str]:
        return os.environ | {"TCP_NODELAY": "1"}

    def ready(self) -> bool:
        return any(
            connection.laddr.port == self.port
            for connection in psutil.Process(self.process.pid).net_connections("tcp")  # type: ignore[union-attr]
        )


class Role(Gateway):
    """One role as a process of its own; it is ready when it is alive."""

    def ready(self) -> bool:
        return self.process is not None and self.process.poll() is None


def fill(context: Context, reports: int) -> None:
    """Put so many studies with a report that waits for `PACS` into a ledger that has none."""
    with pytest.MonkeyPatch.context() as patch:
        pipeline.says(patch, 0.9)
        pipeline.receive(context, pipeline.film())
        pipeline.work(context)
    built = next(item for item in pipeline.reports(context) if item.kind == "sr")
    dataset = dcmread(context.spool.absolute(built.path))
    with context.ledger.read() as session:
        one = {
            table: _values(session.scalars(select(table).where(where)).first())
            for table, where in (
                (Study, Study.id == built.study_id),
                (Subject, Subject.study_id == built.study_id),
                (Instance, Instance.study_id == built.study_id),
                (Report, Report.id == built.id),
                (Outbox, Outbox.report_id == built.id),
            )
        }
    rows: dict[Any, list[dict[str, Any]]] = {table: [] for table in (*one, Event)}
    for number in range(1_000, 1_000 + reports):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.StudyInstanceUID = generate_uid()
        path = context.spool.write("reports", ".dcm", dataset.save_as)
        changed: dict[Any, dict[str, Any]] = {
            Study: {"study_instance_uid": dataset.StudyInstanceUID},
            Subject: {"study_id": number},
            Instance: {"study_id": number, "subject_id": number, "sop_instance_uid": generate_uid()},
            Report: {"study_id": number, "sop_instance_uid": dataset.SOPInstanceUID, "path": path},
            Outbox: {"report_id": number},
        }
        for table, values in changed.items():
            rows[table].append(one[table] | {"id": number} | values)
        for kind in ("received", "decoded", "analysed", "concluded", "reported"):
            rows[Event].append({"study_id": number, "at": now(), "kind": kind, "detail": ""})
    with context.ledger.write() as session:
        for table, made in rows.items():
            session.execute(insert(table), made)


def measure(reports: int) -> tuple[float, dict[str, float]]:
    """Return reports a second, and CPU milliseconds a report by role."""
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        sink, broker = running.enter_context(Sink()), running.enter_context(Redis(appendonly=False))
        settings: dict[str, Any] = {"destinations": f"PACS=dicom://PACS@127.0.0.1:{sink.port}"}
        context = pipeline.opened_at(folder, **settings)
        fill(context, reports)
        settings |= {"data_dir": folder / "data", "broker_url": broker.url}
        roles = {
            name: running.enter_context(Role(command=command, **settings))
            for name, command in (("worker", ("worker", "--queue", "deliver")), ("scheduler", ("scheduler",)))
        }

        def waits() -> int:
            query = select(func.count()).where(Outbox.state == DeliveryState.PENDING)
            with context.ledger.read() as session:
                return session.scalar(query) or 0

        eventually(lambda: waits() < reports, 60, "the first delivery")
        eventually(lambda: not waits(), 300, "the last delivery", 0.5)
        with context.ledger.read() as session:
            first, last, count = session.execute(
                select(func.min(Outbox.delivered_at), func.max(Outbox.delivered_at), func.count()).where(
                    Outbox.delivered_at.is_not(None)
                )
            ).one()
        arrived = len(list((sink.folder / "received").iterdir()))
        assert arrived == count, f"{arrived} in the PACS, {count} delivered"
        processor = {name: _processor_seconds(item) for name, item in {**roles, "storescp": sink}.items()}
        context.ledger.close()
    return (count - 1) / (last - first).total_seconds(), {
        name: 1000 * seconds / count for name, seconds in processor.items()
    }


def _values(row: Any) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in row.__mapper__.column_attrs}


def _processor_seconds(server: Server) -> float:
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    times = [process.cpu_times(), *(child.cpu_times() for child in process.children(recursive=True))]
    return sum(item.user + item.system + item.children_user + item.children_system for item in times)


def main() -> None:
    reports, rounds = (int(item) for item in (sys.argv[1:] + [_REPORTS, _ROUNDS][len(sys.argv) - 1 :]))
    found = [measure(reports) for _ in range(rounds)]
    rates = sorted(rate for rate, _ in found)
    print(f"{reports} reports, {rounds} rounds, load average {os.getloadavg()[0]:.1f}")
    print(f"reports a second: median {statistics.median(rates):.0f} ({rates[0]:.0f} to {rates[-1]:.0f})")
    for name in found[0][1]:
        print(f"{name}: {statistics.median(each[name] for _, each in found):.1f} ms of CPU a report")


if __name__ == "__main__":
    sys.exit(main())
