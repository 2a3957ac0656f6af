"""Small DICOM films for the decode tests, built from an array and the attributes that matter."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

Pixels = npt.NDArray[Any]
PATIENT = "Canary^Petronella"
HUGE = {"rows": 65535, "columns": 65535}


def film_dataset(pixels: Pixels, *, syntax: UID = ExplicitVRLittleEndian, **attributes: Any) -> Dataset:
    """Return a CR image of `pixels`; an attribute given as None is left out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.PatientName = PATIENT
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = pixels.itemsize * 8
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    order = "<" if syntax.is_little_endian else ">"
    value = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    dataset.PixelData = value + b"\0" * (len(value) % 2)
    dataset["PixelData"].VR = "OW" if pixels.itemsize == 2 else "OB"
    for keyword, attribute in attributes.items():
        setattr(dataset, keyword, attribute)
        if attribute is None:
            delattr(dataset, keyword)
    if "HighBit" not in attributes and "BitsStored" in dataset:
        dataset.HighBit = max(dataset.BitsStored - 1, 0)
    return dataset


def compressed_dataset(frame: bytes, pixels: Pixels, syntax: UID, **attributes: Any) -> Dataset:
    """Return a CR image whose pixel data is the codestream `frame` of `pixels`."""
    dataset = film_dataset(pixels, **attributes)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


def saved(dataset: Dataset, folder: Path, name: str = "film.dcm") -> Path:
    dataset.save_as(folder / name, enforce_file_format=True)
    return folder / name


def film_file(folder: Path, pixels: Pixels, **attributes: Any) -> Path:
    return saved(film_dataset(pixels, **attributes), folder)


def ramp(bits: int = 12, *, signed: bool = False, shape: tuple[int, int] = (24, 20)) -> Pixels:
    """Values spread over the whole range that `bits` hold."""
    values = np.linspace(0, (1 << bits) - 1, shape[0] * shape[1]).round().astype(np.int64)
    values -= (1 << (bits - 1)) * signed
    kind = "i" if signed else "u"
    return values.reshape(shape).astype(f"{kind}{1 if bits <= 8 else 2}")


def jpeg_frame(
    marker: int,
    *,
    rows: int = 24,
    columns: int = 20,
    components: int = 1,
    precision: int = 8,
    end: bytes = b"\xff\xd9",
) -> bytes:
    """Return a codestream of JPEG or JPEG-LS with this frame header, and nothing decodable after it."""
    size = struct.pack(">BBHBHHB", 0xFF, marker, 11, precision, rows, columns, components) + b"\x01\x11\x00"
    return b"\xff\xd8" + size + b"\xff\xda\x00\x08\x01\x01\x00\x01\x00\x00" + b"\x15" * 40 + end


def jpeg_2000_frame(
    *, rows: int = 24, columns: int = 20, components: int = 1, end: bytes = b"\xff\xd9"
) -> bytes:
    """Return a codestream of JPEG 2000 with this SIZ marker segment, and nothing after it."""
    sizes = struct.pack(">IIIIIIII", columns, rows, 0, 0, columns, rows, 0, 0)
    return (
        b"\xff\x4f\xff\x51"
        + struct.pack(">HH", 41, 0)
        + sizes
        + struct.pack(">HBBB", components, 7, 1, 1)
        + end
    )
