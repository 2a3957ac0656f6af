"""Milliseconds of CPU and bytes of each result object of one 2,500 x 2,048 film.

    python -m tests.benchmarks.objects [REPEATS]

Built and written to memory, warm, in one thread; the median. The film's picture has grain, as a real one.
"""

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from pydicom.dataset import Dataset

from tests.unit.worker.reports import (
    LATERAL,
    POSITIVE,
    STUDY,
    context,
    encoded,
    film,
    header,
    image,
    of_series,
    reread,
)
from worker.comprehensive import comprehensive_of
from worker.document import build_document
from worker.heatmap import build_heatmap
from worker.iod import remember
from worker.presentation_state import build_presentation_state
from worker.rejection_note import build_rejection_note
from worker.structured_report import build_structured_report
from worker.text_report import build_text_report

_SMOOTH = film(1024, 839).astype(np.int32)
_GRAIN = np.random.default_rng(0).normal(0, 1200, _SMOOTH.shape)
FILM = image(POSITIVE, film=np.clip(_SMOOTH + _GRAIN, 0, 65535).astype(np.uint16))
UNREAD = image(LATERAL, header(2, ViewPosition="LL"))
REPORT = reread(build_structured_report([FILM], context(FILM)))

OBJECTS: dict[str, Callable[[], Dataset]] = {
    "structured report": lambda: build_structured_report([FILM], context(FILM)),
    "heat map": lambda: build_heatmap(FILM, of_series(9002, FILM)),
    "comprehensive copy": lambda: comprehensive_of(
        REPORT, series_instance_uid=f"{STUDY}.9008", sop_instance_uid=f"{STUDY}.9008.1", predecessors=()
    ),
    "text report": lambda: build_text_report([FILM], of_series(9003, FILM)),
    "not analysed": lambda: build_text_report([UNREAD], of_series(9004, UNREAD)),
    "presentation state": lambda: build_presentation_state([FILM], of_series(9005, FILM)),
    "PDF page": lambda: build_document([FILM], of_series(9006, FILM)),
    "rejection note": lambda: build_rejection_note([REPORT], of_series(9007, FILM, revision=2)),
}
BAR_MS, BAR_BYTES = 150, 1_000_000


def measure(build: Callable[[], Dataset], repeats: int) -> tuple[float, int]:
    """Return the median of the milliseconds of CPU, and the size of the file."""
    milliseconds = []
    for _ in range(repeats + 2):
        begun = time.process_time()
        size = len(encoded(build()))
        milliseconds.append((time.process_time() - begun) * 1000)
    return statistics.median(milliseconds[2:]), size  # the first ones warm up


if __name__ == "__main__":
    remember()
    found = {
        name: measure(build, int(sys.argv[1]) if len(sys.argv) > 1 else 20) for name, build in OBJECTS.items()
    }
    for name, (milliseconds, size) in found.items():
        print(f"{name:<20} {milliseconds:6.0f} ms {size:9,} bytes")
    together = found["structured report"][0] + found["heat map"][0]
    print(f"structured report and heat map: {together:.0f} ms (bar {BAR_MS} ms)")
    print(f"largest object: {max(size for _, size in found.values()):,} bytes (bar {BAR_BYTES:,} bytes)")
