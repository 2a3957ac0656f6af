"""What a scrape costs with many studies in the ledger: python -m tests.benchmarks.metrics [STUDIES].

Fills a SQLite ledger with confirmed studies (one image, one analysis, one revision, two reports with an
outbox row each, eight events), leaves a hundred unfinished, and asks for the metrics twenty times.
"""

import sys
import tempfile
import time
from pathlib import Path

from prometheus_client import generate_latest
from sqlalchemy import text

from service.api.metrics import registry
from service.core import tally
from service.core.ledger import Ledger, migrate, open_engine
from service.core.live import Live
from service.core.settings import load

_NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count) "
_MOMENT = "'2026-01-01 00:00:00.000000'"
_WORK = f"lease_token, attempts, ready_at) SELECT {{}}, 1, 1, {_MOMENT} FROM n"
_FILLING = (
    "INSERT INTO study (id, study_instance_uid, state, revision, header_revision, build, received_at, flags, "
    f"finding) SELECT i, '1.2.' || i, 'confirmed', 1, 0, 0, {_MOMENT}, '[]', 'absent' FROM n",
    "INSERT INTO instance (id, study_id, sop_instance_uid, sop_class_uid, series_instance_uid, "
    "transfer_syntax_uid, digest, state, received_at, size, calling_ae_title, modality, view_position, "
    "presentation_intent_type, acquired_at, says_chest, flags, "
    + _WORK.format(
        f"i, i, '1.2.' || i, '1', '1', '1', i, 'analysed', {_MOMENT}, 1, 'A', 'DX', 'PA', '', '', 1, '[]'"
    ),
    "INSERT INTO analysis (id, instance_id, model_id, state, flags, " + _WORK.format("i, i, 1, 'done', '[]'"),
    "INSERT INTO revision (id, study_id, model_id, number, header_revision, build, instance_ids, state, "
    "created_at, " + _WORK.format(f"i, i, 1, 1, 0, 0, '[]', 'reported', {_MOMENT}"),
    *(
        "INSERT INTO report (id, study_id, kind, revision, part, sop_instance_uid, sop_class_uid, "
        "series_instance_uid, transfer_syntax_uid, path, digest, size, created_at) SELECT "
        f"2 * i + {part}, i, 'k{part}', 1, 1, '1.{part}.' || i, '1', '1', '1', '', '', 1, {_MOMENT} FROM n"
        for part in (0, 1)
    ),
    *(
        "INSERT INTO outbox (destination, report_id, required, state, failures, losses, as_built, "
        + _WORK.format(f"'PACS', 2 * i + {part}, 1, 'confirmed', 0, 0, 0")
        for part in (0, 1)
    ),
    *(
        f"INSERT INTO event (study_id, at, kind, detail) SELECT i, {_MOMENT}, 'sent', '' FROM n"
        for _ in range(8)
    ),
)


def main(studies: int) -> None:
    """Fill, scrape, print."""
    with tempfile.TemporaryDirectory(prefix="metrics-benchmark-") as folder:
        settings = load(data_dir=Path(folder), destinations="PACS=dicom://A@127.0.0.1:1")
        migrate(settings.sqlalchemy_url)
        engine = open_engine(settings.sqlalchemy_url, bounded=False)
        with engine.connect() as connection:
            connection.execution_options(hilum_writes=True)
            connection.execute(text(f"INSERT INTO model VALUES (1, 'm', '1', 's', '', {_MOMENT})"))
            for statement in _FILLING:
                connection.execute(text(_insert(statement)), {"count": studies})
            connection.execute(
                text("UPDATE study SET state = 'analysing' WHERE id % :part = 0"),
                {"part": max(1, studies // 100)},
            )
            connection.commit()
        ledger = Ledger(settings.sqlalchemy_url)
        tally.observe(tally.STAGE_SECONDS, 1.0, "decode")
        tally.flush(ledger)
        times = []
        for _ in range(20):
            began = time.perf_counter()
            generate_latest(registry(Live(settings), ledger))
            times.append(1000 * (time.perf_counter() - began))
        ledger.close()
        size = Path(folder, "ledger.sqlite3").stat().st_size
        print(
            f"{studies:,} studies ({size / 1e9:.2f} GB): first {times[0]:.0f} ms, "
            f"then {min(times):.0f} to {max(times[1:]):.0f} ms"
        )


def _insert(statement: str) -> str:
    """Put the numbers before the SELECT of an INSERT."""
    into, _, selected = statement.partition(" SELECT ")
    return f"{into} {_NUMBERS} SELECT {selected}"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
