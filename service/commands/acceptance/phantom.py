"""A drawn chest film: nobody's, and near enough to a real one for the pixel gate."""

from datetime import datetime

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]

ROWS, COLUMNS = 1200, 1000
PATIENT_ID = "HILUM-ACCEPTANCE"
_AGE_YEARS = 3
_BITS = 12
_Plane = npt.NDArray[np.float64]


def film(at: datetime) -> Dataset:
    """Return the phantom as a DX film For Presentation of `PATIENT_ID`, three years old, under new UIDs.

    Parameters
    ----------
    at
        When it was "taken", in the site's time.
    """
    pixels = phantom()
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SpecificCharacterSet = "ISO_IR 192"
    made.ImageType = ["ORIGINAL", "PRIMARY"]
    made.SOPClassUID = DigitalXRayImageStorageForPresentation
    made.StudyInstanceUID, made.SeriesInstanceUID, made.SOPInstanceUID = (generate_uid() for _ in range(3))
    made.Modality, made.PresentationIntentType = "DX", "FOR PRESENTATION"
    made.PatientName, made.PatientID = "Acceptance^Synthetic Film", PATIENT_ID
    made.PatientBirthDate, made.PatientSex = f"{at.year - _AGE_YEARS - 1}0101", "O"
    made.PatientAge = f"{_AGE_YEARS:03}Y"
    made.StudyDate = made.SeriesDate = made.AcquisitionDate = made.ContentDate = at.strftime("%Y%m%d")
    made.StudyTime = made.SeriesTime = made.AcquisitionTime = made.ContentTime = at.strftime("%H%M%S")
    made.AccessionNumber = made.ReferringPhysicianName = ""
    made.StudyID = "ACCEPTANCE"
    made.StudyDescription = "Acceptance test, synthetic film"
    made.SeriesDescription = "Synthetic chest, no patient"
    made.Manufacturer, made.ManufacturerModelName = "Hilum", "Phantom"
    made.BodyPartExamined, made.ViewPosition = "CHEST", "AP"
    made.PatientOrientation = ["L", "F"]
    made.SeriesNumber = made.InstanceNumber = 1
    made.ImagerPixelSpacing = [0.2, 0.2]
    made.BurnedInAnnotation = "NO"
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = pixels.shape
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, _BITS, _BITS - 1, 0
    made.WindowCenter, made.WindowWidth = 2 ** (_BITS - 1), 2**_BITS
    made.PixelData = pixels.astype("<u2").tobytes()
    return made


def phantom() -> npt.NDArray[np.uint16]:
    """Return ``(ROWS, COLUMNS)`` 12-bit pixels, bright where the body is dense; the same every time.

    Trunk, neck and arms, two lungs with ribs before and behind, spine, heart, hila, collarbones, and a
    patch of consolidation low in the right lung.
    """
    y, x = np.mgrid[-1 : 1 : ROWS * 1j, -1 : 1 : COLUMNS * 1j]
    out = np.abs(x)

    def edge(value: _Plane, width: float) -> _Plane:
        softened: _Plane = 1 / (1 + np.exp(-np.clip(value / width, -50, 50)))
        return softened

    def ellipse(centre_x: float, centre_y: float, width: float, height: float, soft: float) -> _Plane:
        return edge(1 - ((x - centre_x) / width) ** 2 - ((y - centre_y) / height) ** 2, soft)

    def patch(centre_x: float, centre_y: float, width: float, height: float) -> _Plane:
        return np.asarray(np.exp(-(((x - centre_x) / width) ** 2) - ((y - centre_y) / height) ** 2))

    def lung(side: int) -> _Plane:
        across = (x - 0.42 * side) * side
        half = 0.30 * np.clip((y + 0.72) / 0.55, 0, 1) ** 0.55
        dome = 0.47 - 0.05 * (side > 0) + 0.1 * across - 0.1 * (across / 0.3) ** 2
        return np.asarray(
            edge(across + 0.92 * half, 0.012)
            * edge(1.05 * half - across, 0.012)
            * edge(dome - y, 0.012)
            * edge(y + 0.72, 0.02)
        )

    shoulders = edge(y + 0.86 - 0.42 * np.clip(out - 0.2, 0, 1) ** 1.3, 0.015)
    body = edge(1 - (out / 0.93) ** 2.6 - (np.abs(y - 0.75) / 1.65) ** 2.6, 0.05) * np.maximum(
        shoulders, edge(0.26 - out, 0.02)
    )
    cage = edge(0.8 - out - 0.12 * np.clip(-y, 0, 1), 0.02) * edge(out - 0.08, 0.02)
    density = 0.62 * body - 0.4 * (lung(-1) + lung(1)) + 0.3 * ellipse(0.14, 0.22, 0.3, 0.3, 0.1)
    density += (0.22 * edge(0.11 - out, 0.015) + 0.1 * edge(0.075 - out, 0.008)) * body
    density += 0.12 * edge(y - 0.45, 0.05) * body
    for side in (-1, 1):
        density += 0.35 * edge(y + 0.35, 0.05) * edge(1 - ((x - 1.02 * side) / 0.13) ** 2, 0.2)
        density += 0.1 * patch(0.19 * side, -0.02, 0.07, 0.13)
    for rib in range(10):
        behind = -0.8 + 0.135 * rib + 0.1 * np.sin(2 * np.clip(out - 0.08, 0, 0.7))
        density += 0.075 * np.exp(-(((y - behind) / 0.02) ** 2)) * cage
    for rib in range(6):
        before = -0.62 + 0.15 * rib + 0.25 * (0.8 - out)
        density += 0.045 * np.exp(-(((y - before) / 0.024) ** 2)) * cage * edge(out - 0.25, 0.05)
    collarbone = np.exp(-(((y + 0.66 + 0.16 * (out - 0.06)) / 0.024) ** 2))
    density += 0.11 * collarbone * edge(out - 0.05, 0.01) * edge(0.62 - out, 0.02)
    density += 0.32 * (patch(-0.42, 0.2, 0.16, 0.18) + patch(-0.33, 0.05, 0.12, 0.12)) * lung(-1)
    return _exposed(np.clip(density, 0, None))


def _exposed(density: _Plane) -> npt.NDArray[np.uint16]:
    """Return what a detector would show: blurred a little, with noise, never quite linear."""
    noise = np.random.default_rng(0).standard_normal(density.shape)
    grain = sum(
        (weight * gaussian_filter(noise, radius) for weight, radius in ((0.24, 6), (0.05, 2))), 0.006 * noise
    )
    shown = 1 - np.exp(-1.9 * np.clip(gaussian_filter(density, 3) + 0.8 * grain, 0, None))
    return np.asarray(shown / shown.max() * (2**_BITS - 1), np.uint16)
