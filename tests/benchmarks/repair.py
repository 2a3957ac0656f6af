"""How long a round of repair takes with so many films, and how late the scheduler's ticks come meanwhile.

``python -m tests.benchmarks.repair [FILES]``: a third of FILES each received, decoded and reported.
"""

import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import psutil
from sqlalchemy import insert

from service.core.ledger import Ledger, migrate, now
from service.core.receive import Intake
from service.core.repair import Repair
from service.core.settings import load
from service.core.spool import Spool
from service.core.tables import Instance, Report, Study
from service.scheduler.scheduler import TICK_SECONDS


def main(files: int = 300_000) -> None:
    """Fill a data folder and its ledger, then print what a round costs."""
    with tempfile.TemporaryDirectory() as folder:
        settings = load(data_dir=folder, min_free_bytes=0)
        spool = Spool(Path(folder))
        spool.make()
        migrate(settings.sqlalchemy_url)
        ledger = Ledger(settings.sqlalchemy_url)
        _fill(ledger, spool, files // 3)
        late: list[float] = []
        done = threading.Event()

        def tick() -> None:
            while not done.is_set():
                began = time.perf_counter()
                time.sleep(TICK_SECONDS)
                with ledger.write():
                    pass
                late.append(time.perf_counter() - began - TICK_SECONDS)

        ticking = threading.Thread(target=tick)
        ticking.start()
        time.sleep(2)
        before, began, cpu = max(late), time.perf_counter(), time.process_time()
        late.clear()
        found = Repair(ledger, spool, Intake(ledger, spool, settings)).round(threading.Event())
        took, used = time.perf_counter() - began, time.process_time() - cpu
        done.set()
        ticking.join()
        memory = psutil.Process().memory_info().rss / 1e6
        print(f"{files} files: {took:.1f} s, {used:.1f} s of one core, {memory:.0f} MB, {found}")
        print(f"ticks late by at most {1000 * max(late):.0f} ms, before: {1000 * before:.0f} ms")
        ledger.close()


def _fill(ledger: Ledger, spool: Spool, films: int) -> None:
    moment, ready = now(), {"lease_token": 0, "attempts": 0, "ready_at": now()}
    with ledger.write() as session:
        study = Study(study_instance_uid="1.2", state="reported", received_at=moment)
        session.add(study)
        session.flush()
        for first in range(0, films, 1000):
            images, reports = [], []
            for number in range(first, min(films, first + 1000)):
                spooled, decoded, reported = (
                    f"{kind}/{name[:2]}/{name}{suffix}"
                    for kind, suffix in (("spool", ".dcm"), ("films", ".npy"), ("reports", ".dcm"))
                    for name in [uuid.uuid4().hex]
                )
                for path in (spooled, decoded, reported):
                    spool.absolute(path).touch()
                given = dict.fromkeys(("modality", "view_position", "calling_ae_title", "acquired_at"), "DX")
                uids = dict.fromkeys(
                    ("sop_class_uid", "series_instance_uid", "transfer_syntax_uid"), "1.2" * 9
                )
                images.append(
                    {
                        **ready, **given, **uids,
                        "study_id": study.id,
                        "sop_instance_uid": f"1.2.{number}",
                        "digest": uuid.uuid4().hex * 2,
                        "pixel_digest": uuid.uuid4().hex * 2,
                        "state": "analysed",
                        "received_at": moment,
                        "size": 1,
                        "spool_path": spooled,
                        "film_path": decoded,
                        "presentation_intent_type": "FOR PRESENTATION"[:16],
                        "flags": [],
                    }
                )  # fmt: skip
                reports.append(
                    {
                        "study_id": study.id,
                        "kind": "sr",
                        "revision": number,
                        "part": 1,
                        **dict.fromkeys(("sop_class_uid", "series_instance_uid"), "1.2" * 9),
                        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
                        "sop_instance_uid": f"1.3.{number}",
                        "path": reported,
                        "digest": uuid.uuid4().hex * 2,
                        "size": 1,
                        "created_at": moment,
                    }
                )
            session.execute(insert(Instance), images)
            session.execute(insert(Report), reports)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
