"""What a back-fill costs a live film: `python -m tests.benchmarks.backfill --data DIR [--films 500]`.

DIR holds NORMAL and PNEUMONIA with JPEG files. So many of them become CR films of as many studies in a real
Orthanc. A gateway (`hilum up`) gets one live film after the other, in turn while a back-fill of these studies
runs and while it is paused; told are the medians of the seconds from C-STORE's answer to the report built,
and how fast the back-fill is. The quiet time is part of that as it is for the radiologist (--quiet).
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from pydicom import Dataset
from pydicom.uid import generate_uid

from tests import factories
from tests.servers import Gateway, Orthanc, eventually

_FIRST = date(2024, 1, 1)
_DAYS = 50


def film(path: Path, number: int, day: date, side: int = 0) -> Dataset:
    """Return a CR film of a child of three with the pixels of a JPEG file, in 12 bits.

    `side`: its long side is made as long as this, as that of a film; 0 leaves the picture as it is.
    """
    picture = Image.open(path).convert("L")
    if side:
        scale = side / max(picture.size)
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    pixels = np.asarray(picture, np.uint16) << 4
    written = factories.computed_film(
        f"bench-{number}",
        study=f"bench-{number}",
        rows=16,
        columns=16,
        StudyDate=f"{day:%Y%m%d}",
        StudyTime=f"{8 + number % 10:02}{number % 60:02}00",
        StudyInstanceUID=generate_uid(),
        SeriesInstanceUID=generate_uid(),
        SOPInstanceUID=generate_uid(),
    )
    written.PhotometricInterpretation = "MONOCHROME2"
    written.Rows, written.Columns = pixels.shape
    written.WindowCenter, written.WindowWidth = "2048", "4096"
    written.PixelData = pixels.astype("<u2").tobytes()
    return written


def latency(hilum: Gateway, sent: Dataset, path: Path) -> float:
    """Push a film; return the seconds from the answer until its report was built."""
    assert hilum.send(path).returncode == 0
    answered = time.time()
    found = hilum.wait_for_state(
        str(sent.StudyInstanceUID), ("reported", "delivered", "confirmed"), deadline=300
    )
    return datetime.fromisoformat(found["reported_at"]).timestamp() - answered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--films", type=int, default=500)
    parser.add_argument("--live", type=int, default=20, help="live films of each kind")
    parser.add_argument("--quiet", type=float, default=2.0, help="HILUM_STUDY_QUIET_SECONDS")
    parser.add_argument("--side", type=int, default=1600, help="long side of a film in pixels; 0: as it is")
    given = parser.parse_args()
    files = sorted(path for kind in ("NORMAL", "PNEUMONIA") for path in (given.data / kind).glob("*.jp*g"))
    chosen = random.Random(0).sample(files, given.films + 2 * given.live + 2)
    with (
        tempfile.TemporaryDirectory() as place,
        Orthanc(DicomAlwaysAllowFind=True, DicomAlwaysAllowGet=True, StorageCompression=False) as orthanc,
    ):
        folder = Path(place)
        table = ["study_instance_uid,diagnosis"]
        for number, path in enumerate(chosen[: given.films]):
            made = film(path, number, _FIRST + timedelta(days=number % _DAYS), given.side)
            written = factories.write(made, folder)
            orthanc.store(written)
            written.unlink()
            table.append(f"{made.StudyInstanceUID},{path.parent.name}")
        live = [
            film(path, 10**6 + n, date(2026, 1, 15), given.side)
            for n, path in enumerate(chosen[given.films :])
        ]
        paths = [factories.write(item, folder / "live") for item in live]
        megabytes = paths[0].stat().st_size / 1e6
        with Gateway(
            destinations=f"PACS={orthanc.destination}", study_quiet_seconds=given.quiet, min_free_bytes=0
        ) as hilum:
            for item, path in zip(live[:2], paths[:2], strict=True):
                latency(hilum, item, path)
            seconds = measure(hilum, live[2:], paths[2:])
            status = finish(hilum)
            diagnoses = folder / "diagnoses.csv"
            diagnoses.write_text("\n".join(table))
            page = folder / "report.html"
            began = time.monotonic()
            reported = hilum.run(
                *(
                    "backfill",
                    "report",
                    "bench",
                    "--diagnoses",
                    str(diagnoses),
                    "--html",
                    str(page),
                    "--json",
                ),
                timeout=600,
            )
            assert reported.returncode == 0, reported.stderr
            took, size = time.monotonic() - began, page.stat().st_size
            said = json.loads(reported.stdout)
        sent = len(orthanc.studies()) - given.films
    idle, busy = (statistics.median(seconds[name]) for name in ("paused", "running"))
    print(
        f"load average {psutil.getloadavg()[0]:.1f}, quiet time {given.quiet:g} s, "
        f"{given.live} films of each, {megabytes:.1f} MB a film"
    )
    for name, values in seconds.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"live film, back-fill {name}: median {statistics.median(values):.3f} s ({spread})")
    print(
        f"slower by {busy - idle:+.3f} s, {(busy / idle - 1):+.1%}; beyond the quiet time "
        f"{((busy - given.quiet) / (idle - given.quiet) - 1):+.1%}"
    )
    print(
        f"back-fill: {status['analysed']} of {status['found']} analysed, {status['per_minute']:.0f} a minute "
        f"while nothing was sent; studies in the archive that it did not have before: {sent} of "
        f"{2 * given.live + 2} live ones"
    )
    print(
        f"report: {said['compared']} compared, {said['discordant']} discordant, {took:.1f} s, "
        f"{size / 1e6:.1f} MB"
    )


def measure(hilum: Gateway, live: list[Dataset], paths: list[Path]) -> dict[str, list[float]]:
    """Return the latencies of live films, in turn with the back-fill paused and running."""
    last = _FIRST + timedelta(days=_DAYS)
    started = hilum.run("backfill", "start", "bench", "--from", f"{_FIRST}", "--to", f"{last}")
    assert started.returncode == 0, started.stderr
    seconds: dict[str, list[float]] = {"running": [], "paused": []}
    for number, (item, path) in enumerate(zip(live, paths, strict=True)):
        name = "paused" if number % 4 in (1, 2) else "running"
        assert hilum.run("backfill", "pause" if name == "paused" else "resume", "bench").returncode == 0
        if name == "paused":
            eventually(lambda: not asked(hilum)["in_work"], 120, "what was fetched is analysed")
            time.sleep(1.0)
        else:
            eventually(lambda: works(hilum), 120, "the back-fill works or is done")
        taken = latency(hilum, item, path)
        if name == "running" and asked(hilum)["state"] != "running":
            print(f"the back-fill ended after {number} live films: use more --films")
            break
        seconds[name].append(taken)
    return seconds


def works(hilum: Gateway) -> bool:
    """Return whether something of the back-fill is in work, or nothing is left to be."""
    found = asked(hilum)
    return found["in_work"] >= 1 or found["state"] == "done"


def finish(hilum: Gateway) -> dict[str, float]:
    """Let the back-fill end; return how it stands, and how many studies a minute it did by itself."""
    hilum.run("backfill", "resume", "bench")
    began, before = time.monotonic(), asked(hilum)["analysed"]
    done: dict[str, float] = {}

    def ended() -> bool:
        done.update(asked(hilum))
        return done["state"] == "done" and not done["in_work"]

    eventually(ended, 1800, "the back-fill is done", interval=2)
    done["per_minute"] = 60 * (done["analysed"] - before) / (time.monotonic() - began)
    return done


def asked(hilum: Gateway) -> dict[str, float]:
    """Return how the back-fill stands."""
    answer = hilum.run("backfill", "status", "bench", "--json")
    found: dict[str, float] = json.loads(answer.stdout)
    return found


if __name__ == "__main__":
    main()
