"""The films of the benchmark: one phantom, each time as a new patient's new study."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.uid import UID, generate_uid

from service.commands.acceptance.phantom import COLUMNS, ROWS, film
from worker.peer import Sendable


@dataclass(frozen=True)
class Film:
    """A film in a file, the only one of its study."""

    item: Sendable
    study_instance_uid: str
    sop_instance_uid: str


def make(folder: Path, count: int, megabytes: float) -> Iterator[Film]:
    """Write `count` uncompressed 16-bit films of about so many megabytes (10^6 bytes)."""
    one = film(datetime.now(UTC))
    pixels = np.frombuffer(one.PixelData, "<u2").reshape(ROWS, COLUMNS)
    scale = (megabytes * 1e6 / pixels.nbytes) ** 0.5
    rows, columns = round(ROWS * scale), round(COLUMNS * scale)
    scaled = Image.fromarray(pixels.astype(np.int32)).resize((columns, rows), Image.Resampling.BILINEAR)
    one.PixelData = np.asarray(scaled).astype("<u2").tobytes()
    one.Rows, one.Columns = rows, columns
    one.ImagerPixelSpacing = [round(0.2 / scale, 4)] * 2
    one.PatientName, one.StudyID = "Benchmark^Synthetic Film", "BENCH"
    one.StudyDescription = "Benchmark, synthetic film"
    syntax: UID = one.file_meta.TransferSyntaxUID
    for number in range(count):
        one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID = (generate_uid() for _ in range(3))
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.PatientID = one.AccessionNumber = f"BENCH{number:06}"
        path = folder / f"{one.SOPInstanceUID}.dcm"
        one.save_as(path, enforce_file_format=True)
        yield Film(
            Sendable(path, one.SOPClassUID, syntax), str(one.StudyInstanceUID), str(one.SOPInstanceUID)
        )
