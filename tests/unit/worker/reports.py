"""Source headers, films and contexts for the tests of result objects, and the validators that see them."""

import shutil
import subprocess
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation

from service.core.population import Population
from service.core.results import Finding, ModelIdentity, Result, conclude
from service.core.states import Assessment
from worker.assessment import Reading
from worker.structured_report import ImageResult, Predecessor, ReportContext

ROWS, COLUMNS = 2500, 2048
STUDY = "1.2.826.0.1.3680043.8.498.1"
VALIDATED = Population((1.0, 5.0), views=("AP",))
MODEL = ModelIdentity("hilum-chest-resnet", "1.0.0", "5e" * 32)
SITE = timezone(timedelta(hours=1))
AT = datetime(2026, 11, 23, 9, 30, 15, 250, SITE)
LIMIT = "outside the validated population (64 years; validated for 1 to 5 years)"

POSITIVE = Result(Finding.PRESENT, 0.8734, 0.5, pattern="bacterial", flags=(LIMIT,))
NEGATIVE = Result(Finding.ABSENT, 0.0721, 0.5)
OPEN = Result(Finding.INDETERMINATE, 0.4712, 0.5)
LATERAL = Result(Finding.NOT_ANALYSED, reason="view position LATERAL")

# Specific Character Set and a name written in it.
NAMES: tuple[tuple[str | list[str], str], ...] = (
    (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ("ISO_IR 100", "Müller-Lüdenscheidt^Jürgen^^Dr.^MdB"),
    ("ISO_IR 144", "Люкceмбypг^Ольга"),
    ("ISO_IR 192", "Wang^XiaoDong=王^小东=José"),
)


def header(number: int = 1, **attributes: Any) -> Dataset:
    """A digital radiograph's header as a modality writes it; an attribute given as None is left out."""
    dataset = Dataset()
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "SOPInstanceUID": f"{STUDY}.1.{number}",
        "StudyDate": "20261123",
        "StudyTime": "081500",
        "AcquisitionDate": "20261123",
        "AcquisitionTime": "081610",
        "AccessionNumber": "ACC-4711",
        "Modality": "DX",
        "PresentationIntentType": "FOR PRESENTATION",
        "Manufacturer": "Example Imaging",
        "ManufacturerModelName": "DR-1",
        "DeviceSerialNumber": "S-77",
        "SoftwareVersions": ["4.1", "4.1a"],
        "ReferringPhysicianName": "Grün^Eva",
        "StudyDescription": "Thorax",
        "PatientName": "Müller^Jürgen",
        "PatientID": "P-0815",
        "IssuerOfPatientID": "KH-NORD",
        "PatientBirthDate": "19620228",
        "PatientSex": "M",
        "PatientAge": "064Y",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": f"{STUDY}.1",
        "StudyID": "77",
        "SeriesNumber": 1,
        "InstanceNumber": number,
        "PatientOrientation": ["L", "F"],
        "Rows": ROWS,
        "Columns": COLUMNS,
        "ImagerPixelSpacing": [0.15, 0.15],
        "BurnedInAnnotation": "NO",
    }
    for keyword, value in {**values, **attributes}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    return dataset


def minimal_header() -> Dataset:
    """What an analysed film must have, and nothing else."""
    dataset = Dataset()
    dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = f"{STUDY}.1.1"
    dataset.StudyInstanceUID = STUDY
    dataset.SeriesInstanceUID = f"{STUDY}.1"
    dataset.Rows, dataset.Columns = ROWS, COLUMNS
    return dataset


def as_read(dataset: Dataset) -> Dataset:
    """The header after a way through a file."""
    return reread(dataset, stop_before_pixels=True)


def activation(column: float = 0.3, row: float = 0.6) -> NDArray[np.float32]:
    """A class activation map of 16 by 13 cells with one focus, given as fractions of width and height."""
    y, x = np.mgrid[0:16, 0:13]
    distance = ((x + 0.5) / 13 - column) ** 2 / 0.02 + ((y + 0.5) / 16 - row) ** 2 / 0.03
    return np.exp(-distance).astype(np.float32)


def film(rows: int = 1024, columns: int = 839) -> NDArray[np.uint16]:
    """A film of soft shades, as displayed."""
    return _drawn(rows, columns).copy()


@cache
def _drawn(rows: int, columns: int) -> NDArray[np.uint16]:
    y, x = np.mgrid[0:rows, 0:columns]
    shade = 30000 + 20000 * np.sin(x / 90) * np.cos(y / 120) + 4000 * np.sin(x / 7 + y / 5)
    return shade.astype(np.uint16)


def image(result: Result, source: Dataset | None = None, **parts: Any) -> ImageResult:
    """A film with its result, its picture and, when it has a number, its activation map."""
    analysed = result.finding is not Finding.NOT_ANALYSED
    given = {"activation": activation() if analysed else None, "film": film()}
    return ImageResult(header() if source is None else source, result, **{**given, **parts})


def context(*images: ImageResult, **changed: Any) -> ReportContext:
    """The context of a first report on these images."""
    series = f"{STUDY}.9001"
    first = ReportContext(
        conclusion=conclude([image.result for image in images]),
        model=MODEL,
        activation_method="Class activation map",
        series_instance_uid=series,
        sop_instance_uid=f"{series}.1",
        instance_number=1,
        revision=1,
        predecessors=(),
        device_uid="1.2.826.0.1.3680043.8.498.2",
        device_serial_number="HILUM-1",
        software_version="0.1.0",
        at=AT,
        population=VALIDATED,
    )
    return replace(first, **changed)


def second_revision(*images: ImageResult) -> ReportContext:
    """The context of the report that replaces the first one."""
    first = context(*images)
    replaced = Predecessor("1.2.840.10008.5.1.4.1.1.88.34", first.sop_instance_uid, first.series_instance_uid)
    return replace(
        first,
        sop_instance_uid=f"{first.series_instance_uid}.2",
        instance_number=2,
        revision=2,
        predecessors=(replaced,),
    )


def of_series(number: int, *images: ImageResult, **changed: Any) -> ReportContext:
    """The context of a first object of another kind, in its own series."""
    series = f"{STUDY}.{number}"
    return context(*images, series_instance_uid=series, sop_instance_uid=f"{series}.1", **changed)


def reading(result: Result, **changed: Any) -> Reading:
    """What a reader says who agrees."""
    return replace(Reading(result, Assessment.AGREE, None, "", "Dr. Eva Weber"), **changed)


def encoded(dataset: Dataset) -> bytes:
    """The object as a Part 10 file."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def reread(dataset: Dataset, **options: Any) -> Dataset:
    """The object after a way through its bytes."""
    buffer = BytesIO()
    if hasattr(dataset, "file_meta"):
        dataset.save_as(buffer, enforce_file_format=True)
    else:
        dataset.save_as(buffer, implicit_vr=False, little_endian=True)
    buffer.seek(0)
    return dcmread(buffer, force=True, **options)


def tool(name: str, package: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a tool of the system; without it the test fails and says which Debian package it is from."""
    assert shutil.which(name), f"{name} is missing: install the Debian package {package}"
    return subprocess.run(
        [name, *arguments], capture_output=True, text=True, errors="replace", timeout=60, check=False
    )


def complaints(dataset: Dataset, folder: Path) -> list[str]:
    """Every error and warning of dciodvfy on the object."""
    path = folder / "object.dcm"
    path.write_bytes(encoded(dataset))
    run = tool("dciodvfy", "dicom3tools", "-new", str(path))
    lines = [line for line in (run.stderr + run.stdout).splitlines() if line.strip()]
    assert lines, "dciodvfy named no object definition"
    # An attribute that the source has not is not invented for the sake of a directory.
    told = [line for line in lines if "needed to build DICOMDIR" not in line]
    # A private coding scheme, which the object itself explains (PS3.3 C.12.1.1.1.1).
    told = [line for line in told if not line.endswith("Unrecognized defined term = <99HILUM>")]
    return [line for line in told if line.startswith(("Error", "Warning"))]
