"""Seconds from the C-STORE response of one 7 MB film to its structured report in the PACS.

    python -m tests.benchmarks.latency [REPEATS]

One film after the other through a gateway of its own, into a storage SCP that notes the time; the quiet time
is taken off. The listener's memory is read at the end.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

from service.commands.pacs import Pacs
from service.core.destination import Destination
from service.core.header import read_header
from tests import factories
from tests.servers import Gateway, eventually
from worker.peer import Sendable
from worker.scu import DimsePeer

_QUIET_SECONDS = 2.0


def measure(repeats: int) -> tuple[list[float], float]:
    """Return the seconds of each film beyond the quiet time, and the listener's resident bytes."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        pacs = Pacs(Path(folder), "PACS")
        with pacs.serving() as port:
            settings = {
                "destinations": f"PACS=dicom://PACS@127.0.0.1:{port}",
                "study_quiet_seconds": _QUIET_SECONDS,
            }
            with Gateway(**settings) as gateway:
                for number in range(repeats + 1):
                    seconds.append(
                        _one(gateway, pacs, factories.write(factories.chest_film(number), Path(folder)))
                    )
                resident = sum(psutil.Process(pid).memory_info().rss for pid in gateway.pids()["listener"])
    return seconds[1:], resident  # the first film warms every process up


def _one(gateway: Gateway, pacs: Pacs, film: Path) -> float:
    header = read_header(film)
    before = sum(item.kind == "structured report" for item in pacs.received)
    item = Sendable(film, header.sop_class_uid, header.transfer_syntax_uid)
    url = f"dicom://{gateway.ae_title}@127.0.0.1:{gateway.dimse_port}"
    with DimsePeer(Destination(name="gateway", url=url), "ROUTER", [item], asks=False) as peer:
        sent = peer.store(item)
    answered = time.time()
    assert sent.status == 0x0000, sent

    def reports() -> list[float]:
        return [item.at for item in pacs.received if item.kind == "structured report"]

    eventually(lambda: len(reports()) > before, 60, "the report in the PACS")
    return reports()[-1] - answered - _QUIET_SECONDS


if __name__ == "__main__":
    found, resident_bytes = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    print(
        f"beyond the quiet time: median {statistics.median(found):.2f} s, "
        f"worst {max(found):.2f} s, n {len(found)}"
    )
    print(f"listener: {resident_bytes / 1e6:.0f} MB resident")
