"""Whether a film costs more when the ledger is full.

    python -m tests.benchmarks.flat [STUDIES] [FILMS] [SQLite|PostgreSQL]

`hilum bench` with 1,000 and with 1,000,000 finished studies in the ledger, SQLite and PostgreSQL: films a
second, seconds of single films, and milliseconds of CPU a film, PostgreSQL's own too. With a name that one
alone.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from rich.progress import Progress
from sqlalchemy import text, update

from service.commands.bench.run import Load, measure
from service.core.ledger import migrate, open_engine
from service.core.tables import Report, Study
from tests.benchmarks.dashboard import fill
from tests.servers import PostgreSQL

_FEW = 1_000


@contextmanager
def _databases() -> Iterator[list[tuple[str, str, psutil.Process | None]]]:
    with tempfile.TemporaryDirectory() as folder, PostgreSQL(durable=True) as server:
        assert server.process is not None
        process = psutil.Process(server.process.pid)
        yield [
            ("SQLite", f"sqlite:///{Path(folder) / 'few.sqlite3'}", None),
            ("SQLite", f"sqlite:///{Path(folder) / 'many.sqlite3'}", None),
            ("PostgreSQL", server.fresh_url(), process),
            ("PostgreSQL", server.fresh_url(), process),
        ]


def _let_expire(url: str) -> None:
    """Leave nothing for retention to remove: it would be measured too."""
    engine = open_engine(url, bounded=False)
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(update(Study).values(expired_at=Study.received_at))
        connection.execute(update(Report).values(path=""))
        if connection.dialect.name == "sqlite":
            connection.execute(text("ANALYZE"))
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SET statement_timeout = 0"))
            # It would do it by itself, and be measured at that.
            connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()


def _cpu_seconds(process: psutil.Process | None) -> float:
    if process is None:
        return 0.0
    times = [process.cpu_times(), *(child.cpu_times() for child in process.children())]
    return sum(item.user + item.system + item.children_user + item.children_system for item in times)


def main() -> None:
    many = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    films = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    load = Load(singles=10, films=films, megabytes=0.5, associations=4)
    with _databases() as databases, Progress(disable=True) as progress:
        for (name, url, process), studies in zip(databases, (_FEW, many) * 2, strict=True):
            if name not in (sys.argv[3:] or [name]):
                continue
            migrate(url)
            fill(url, studies, unfinished=0)
            _let_expire(url)
            before = _cpu_seconds(process)
            single, sustained = measure(load, url, progress)
            ledger = 1000 * (_cpu_seconds(process) - before) / (films + 14)
            used = sustained.cpu_milliseconds
            roles = ", ".join(f"{role} {milliseconds:.0f}" for role, milliseconds in sorted(used.items()))
            print(
                f"{name}, {studies:,} studies: {sustained.films_a_second:.1f} films/s, single film "
                f"{single.percentiles('all')[0]:.2f} s, CPU ms a film {sum(used.values()):.0f} ({roles}; "
                f"PostgreSQL {ledger:.0f}); {single.lost + sustained.lost} lost",
                flush=True,
            )


if __name__ == "__main__":
    main()
