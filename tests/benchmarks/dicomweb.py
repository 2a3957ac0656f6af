"""How long a search takes with 100,000 studies in the ledger: `python -m tests.benchmarks.dicomweb`.

    python -m tests.benchmarks.dicomweb [STUDIES]

The ledgers of `tests.benchmarks.dashboard`, with a patient, a date and a kept file for every study; SQLite
also without the statistics of ANALYZE, which Hilum does not make. Every search is asked over one connection,
`_ROUNDS` times each; processor time is the API's.
"""

import os
import statistics
import sys
import time
from typing import Any

import httpx
from sqlalchemy import text

from service.core.ledger import open_engine
from tests.benchmarks.dashboard import _uid, fill
from tests.faults.web import ApiProcess
from tests.servers import PostgreSQL
from tests.tokens import bearer, entries

_STUDIES = 100_000
_ROUNDS = 15
_BAR_MS = 500


def complete(url: str, *, statistics_too: bool) -> None:
    """Write what a search looks for into the rows."""
    engine = open_engine(url)
    name = "'Name' || (id % 5000) || '^Given'"
    with engine.begin() as connection:
        date = "'2026' || substr('0' || (1 + id % 12), -2) || substr('0' || (1 + id % 28), -2)"
        if engine.dialect.name == "postgresql":
            date = "'2026' || lpad((1 + id % 12)::text, 2, '0') || lpad((1 + id % 28)::text, 2, '0')"
        connection.execute(
            text(
                f"UPDATE subject SET study_date = {date}, study_time = '101500', study_identifier = '1',"
                f" study_description = 'Chest', referring_physician_name = 'A^B', patient_name = {name},"
                " timezone_offset_from_utc = ''"
            )
        )
        connection.execute(text("UPDATE instance SET spool_path = 'spool/00/' || id || '.dcm'"))
        connection.execute(text("UPDATE report SET path = 'reports/00/' || id || '.dcm'"))
        if not statistics_too and engine.dialect.name == "sqlite":
            connection.execute(text("DELETE FROM sqlite_stat1"))
        elif statistics_too:
            connection.execute(text("ANALYZE"))
    engine.dispose()


def searches(studies: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return path and parameters of what is asked for, by what it is."""
    middle = {"limit": 100}
    return {
        "the last 25": ("/studies", {"limit": 25}),
        "no limit (1,000 come)": ("/studies", {}),
        "page 500 of 100": ("/studies", {**middle, "offset": min(50_000, studies // 2)}),
        "UID": ("/studies", {"StudyInstanceUID": _uid(studies // 3)}),
        "patient ID": ("/studies", {"PatientID": f"P{studies // 3}"}),
        "accession number": ("/studies", {"AccessionNumber": f"A{studies // 3}"}),
        "a day": ("/studies", {**middle, "StudyDate": "20260307"}),
        "a month": ("/studies", {**middle, "StudyDate": "20260301-20260331"}),
        "since a day": ("/studies", {**middle, "StudyDate": "20260601-"}),
        "a name": ("/studies", {**middle, "PatientName": "Name77^*"}),
        "a part of a name": ("/studies", {**middle, "PatientName": "*ame123*"}),
        "a name that nobody has": ("/studies", {**middle, "PatientName": "Nobody*"}),
        "patient ID by wild card": ("/studies", {**middle, "PatientID": "P9?9*"}),
        "modality SR": ("/studies", {**middle, "ModalitiesInStudy": "SR"}),
        "modality CT (none)": ("/studies", {**middle, "ModalitiesInStudy": "CT"}),
        "name, day and modality": (
            "/studies",
            {**middle, "PatientName": "Name7*", "StudyDate": "20260308-20260310", "ModalitiesInStudy": "DX"},
        ),
        "series of a study": (f"/studies/{_uid(studies // 3)}/series", {}),
        "an instance by its UID": ("/instances", {"SOPInstanceUID": f"1.2.3.{2 * (studies // 3)}"}),
        "series of all, 25": ("/series", {"limit": 25}),
    }


def measure(name: str, database_url: str | None, studies: int, *, statistics_too: bool = True) -> float:
    """Print the 95th percentile of each search in milliseconds, and return the worst."""
    settings = {"api_tokens": entries(), **({"database_url": database_url} if database_url else {})}
    worst = 0.0
    with ApiProcess(**settings) as api:
        url = database_url or f"sqlite:///{api.data_dir / 'ledger.sqlite3'}"
        fill(url, studies)
        complete(url, statistics_too=statistics_too)
        with httpx.Client(
            base_url=f"{api.http_url}/dicomweb", headers=bearer("clinician"), timeout=60
        ) as client:
            for what, (path, parameters) in searches(studies).items():
                taken, worked = [], sum(api.itself.cpu_times()[:2])
                for _ in range(_ROUNDS):
                    began = time.perf_counter()
                    answer = client.get(path, params=parameters)
                    taken.append(1000 * (time.perf_counter() - began))
                    assert answer.status_code in (200, 204), f"{what}: {answer.status_code} {answer.text}"
                worked = 1000 * (sum(api.itself.cpu_times()[:2]) - worked) / _ROUNDS
                late = statistics.quantiles(taken, n=20)[-1]
                worst = max(worst, late)
                found = len(answer.json()) if answer.content else 0
                print(
                    f"{name}: {what}: {found} found, median {statistics.median(taken):.0f} ms, "
                    f"p95 {late:.0f} ms; processor {worked:.0f} ms",
                    flush=True,
                )
    return worst


def main() -> int:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else _STUDIES
    worst = measure("SQLite", None, studies, statistics_too=False)
    with PostgreSQL() as server:
        worst = max(worst, measure("PostgreSQL", server.fresh_url(), studies))
    print(f"load average {os.getloadavg()[0]:.1f}; the worst p95 is {worst:.0f} ms, the bar {_BAR_MS} ms")
    return worst >= _BAR_MS


if __name__ == "__main__":
    sys.exit(main())
