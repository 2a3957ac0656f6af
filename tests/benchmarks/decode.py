"""Milliseconds from a film's file to its array: `python -m tests.benchmarks.decode [ROUNDS]`.

A 2,500 x 2,048 film of 12 bits (10 MB) in each transfer syntax. Processor time of the thread that decodes
(the digest is made beside it), of the whole process, and what the network's input takes after it; medians,
the syntaxes in turn.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from model.locate import network_input
from model.predict import Predictor
from service.commands.bench.films import make
from worker.decode import decode

_BAR_MS = 10.0
_SYNTAXES = ExplicitVRLittleEndian, RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless
_ENCODERS = {RLELossless: "pydicom", JPEGLSLossless: "pyjpegls", JPEG2000Lossless: "pylibjpeg"}


def _write(source: Path, syntax: UID, folder: Path) -> Path:
    """Write the film in another syntax."""
    path = folder / f"{syntax}.dcm"
    if syntax == ExplicitVRLittleEndian:
        return source
    if syntax == JPEGLosslessSV1:
        subprocess.run(["/usr/bin/dcmcjpeg", "+e1", source, path], check=True)
        return path
    dataset = dcmread(source)
    dataset.compress(syntax, encoding_plugin=_ENCODERS[syntax], generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    return path


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    predictor = Predictor.load(device="cpu", fastest=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = next(make(folder, 1, 10.0)).item.path
        files = {syntax: _write(source, syntax, folder) for syntax in _SYNTAXES}
        times: dict[UID, list[tuple[float, ...]]] = defaultdict(list)
        films = {syntax: decode(path).pixels for syntax, path in files.items()}  # warm
        for _ in range(rounds):
            for syntax, path in files.items():
                wall, thread, process = time.perf_counter(), time.thread_time(), time.process_time()
                film = decode(path)
                moments = time.perf_counter(), time.thread_time(), time.process_time()
                network_input(predictor.locator, [film.pixels], predictor.info.input_size)
                found = (*(now - then for now, then in zip(moments, (wall, thread, process), strict=True)),)
                times[syntax].append((*found, time.thread_time() - moments[1]))
        print(f"{'transfer syntax':<46} {'MB':>6} {'wall':>7} {'thread':>7} {'process':>8} {'input':>6}  ms")
        for syntax, path in files.items():
            medians = [1000 * statistics.median(column) for column in zip(*times[syntax], strict=True)]
            same = np.array_equal(films[syntax], films[ExplicitVRLittleEndian])
            print(
                f"{syntax.name:<46} {path.stat().st_size / 1e6:6.1f} {medians[0]:7.1f} {medians[1]:7.1f} "
                f"{medians[2]:8.1f} {medians[3]:6.1f}" + ("" if same else "  DIFFERS")
            )
        print(f"bar: {_BAR_MS:.0f} ms for the uncompressed film")


if __name__ == "__main__":
    main()
