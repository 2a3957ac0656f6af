"""From a SOP instance on disk to the film a reader would see, reduced for the network: the decode stage.

Everything that a sender controls is bounded before anything is allocated for it: the transfer syntax before
the data set is parsed, Rows x Columns before the pixels are read, and the codestream's own size before a
codec sees it. Codecs still run hostile bytes through native code, so this module belongs in the boxed pool.
No attribute that identifies a patient is read.
"""

import hashlib
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, ImplicitVRLittleEndian

from model.preprocess import reduce
from service.core.errors import Undecodable
from service.core.syntaxes import OFFERED
from worker.greyscale import KEYWORDS, WHITE, StoredRange, display_table, padding_range
from worker.pixel_data import PLUGINS, Element, Layout, missing_decoders, stored_values

__all__ = ["LONG_SIDE", "MAX_PIXELS", "Film", "decode", "missing_decoders"]

MAX_PIXELS = 100_000_000
"""Rows x Columns; a stitched film of a whole leg has 40 million."""

LONG_SIDE = 1024
"""Upper bound of a film's longer side in pixels."""

TOLERANCE = 32
"""How far a table may be from a clip and a straight line to be taken for one, of `WHITE`: 0.0005."""

_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
_PIXEL_DATA = Tag("PixelData")
_TAGS: list[BaseTag | int] = [
    Tag(keyword)
    for keyword in (
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "PlanarConfiguration",
        "NumberOfFrames",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        *KEYWORDS,
    )
]
_LUMA = (0.299, 0.587, 0.114)  # Y of YBR_FULL, PS3.3 C.7.6.3.1.2
# A grey film that went through a colour JPEG comes back with channels this far apart, in 1/255.
_GREY_SPREAD = 8

Shown = tuple[npt.NDArray[np.uint16], tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Film:
    """One radiograph as it is to be seen.

    Attributes
    ----------
    pixels
        (h, w) uint16, MONOCHROME2: 0 black, 65535 white. The whole image, reduced by area mean until the
        longer side is at most `LONG_SIDE`; never enlarged.
    rows, columns
        Of the original.
    pixel_digest
        SHA-256 (hex) of the stored values with their shape, bits and sign, before any LUT: the same for the
        same pixels in another lossless transfer syntax or under another header.
    flags
        Limits worth telling, one sentence each.
    """

    pixels: npt.NDArray[np.uint16]
    rows: int
    columns: int
    pixel_digest: str
    flags: tuple[str, ...]


def decode(path: Path) -> Film:
    """Decode the DICOM file at `path` and put it through the grey-scale pipeline of PS3.4 N.2.

    Raises
    ------
    Undecodable
        When the file holds no single-frame radiograph that we can show; the message holds no header values
        that could identify a patient.
    OSError
        When the file itself cannot be opened or read.
    """
    with path.open("rb") as file, warnings.catch_warnings():
        # pydicom's warnings repeat header values. Only this thread of a decode process warns.
        warnings.simplefilter("ignore")
        try:
            return _decode(file)
        except Undecodable:
            raise
        except OSError as fault:
            if fault.errno is not None:  # the disk; a codec's own OSError has no number
                raise
            raise Undecodable("the pixel data is damaged") from None
        except MemoryError:
            raise Undecodable("decoding needs more memory than a film may take") from None
        except Exception as fault:  # pydicom and the codecs raise nearly anything on broken bytes
            raise Undecodable(f"not a readable DICOM image ({type(fault).__name__})") from None


def _decode(file: BinaryIO) -> Film:
    dataset, element = _read(file)
    layout = _layout(dataset)
    pixels = stored_values(file, element, layout)
    if layout.samples == 1:
        pixels = _table_index(pixels, layout, element.syntax)
    # Hashing takes as long as all the rest, and a second core where there is one.
    with ThreadPoolExecutor(1) as beside:
        digest = beside.submit(_digest, pixels, layout)
        film, flags = _grey(dataset, layout, pixels) if layout.samples == 1 else _coloured(layout, pixels)
    return Film(film, layout.rows, layout.columns, digest.result(), flags)


def _grey(dataset: Dataset, layout: Layout, index: npt.NDArray[Any]) -> Shown:
    """The film of one sample per pixel, and what is to be said of it."""
    held = int(index.min()), int(index.max())
    padding = padding_range(dataset, layout.stored)
    occupied = _without(index, held, padding) if padding else held
    table, flags = display_table(dataset, layout.stored, occupied)
    if padding:
        table[padding[0] : padding[1] + 1] = 0
    return reduced(index, table, held), flags


def _coloured(layout: Layout, pixels: npt.NDArray[Any]) -> Shown:
    """The film of three samples per pixel, and what is to be said of it."""
    luminance, coloured = _luminance(pixels)
    table = np.rint(np.linspace(0, WHITE, 1 << layout.stored.bits)).astype(np.uint16)
    flags = ("a colour picture: shown by its luminance",) if coloured else ()
    return reduced(luminance, table, (int(luminance.min()), int(luminance.max()))), flags


def reduced(
    index: npt.NDArray[Any], table: npt.NDArray[np.uint16], held: tuple[int, int]
) -> npt.NDArray[np.uint16]:
    """Put a film through its table and reduce it.

    A window is a clip and a straight line, and a straight line can wait until the film is small.

    Parameters
    ----------
    index
        (rows, columns) uint8 or uint16.
    table
        The P-value of each index.
    held
        Lowest and highest index there is in the film.

    Returns
    -------
    numpy.ndarray
        uint16, as `Film.pixels`: the block means of what the table gives for every pixel, to within
        `TOLERANCE` + 1.
    """
    # Without a reduction there is nothing to gain.
    line = _line(table[held[0] : held[1] + 1]) if max(index.shape) > LONG_SIDE else None
    if line is None:
        film = reduce(index, LONG_SIDE, lambda band: np.take(table, band, mode="clip"))
    else:
        low, high = held[0] + line[0], held[0] + line[1]
        clips = (low, high) != held
        film = reduce(index, LONG_SIDE, (lambda band: np.clip(band, low, high)) if clips else None)
        film -= low
        film *= (float(table[high]) - float(table[low])) / max(high - low, 1)
        film += table[low]
    return np.rint(film, out=film).astype(np.uint16)


def _line(table: npt.NDArray[np.uint16]) -> tuple[int, int] | None:
    """First and last entry of the straight part of a table that is level elsewhere; None: it bends."""
    rising = np.flatnonzero(table[1:] != table[:-1])
    if rising.size == 0:
        return 0, 0
    first, last = int(rising[0]), int(rising[-1]) + 1
    straight = np.interp(np.arange(len(table)), (first, last), (int(table[first]), int(table[last])))
    return (first, last) if np.abs(straight - table).max() <= TOLERANCE else None


def _read(file: BinaryIO) -> tuple[Dataset, Element]:
    """Read `_TAGS` up to Pixel Data. The transfer syntax is refused before a data set in it is parsed."""
    read_preamble(file, force=True)
    meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=_after_file_meta)
    # Files from before Part 10 are implicit little endian; pydicom notices when they are explicit.
    syntax = UID(str(meta.get("TransferSyntaxUID") or ImplicitVRLittleEndian))
    if syntax not in OFFERED:
        known = f" {syntax.name}" if syntax.name != syntax else ""
        raise Undecodable(f"transfer syntax{known} is not supported")

    element: list[Element] = []

    def at_pixel_data(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag == _PIXEL_DATA:
            element.append(Element(syntax, file.tell(), length, vr or "OW"))
        return bool(tag >= _PIXEL_DATA)

    dataset = read_dataset(
        file,
        is_implicit_VR=syntax.is_implicit_VR,
        is_little_endian=syntax.is_little_endian,
        stop_when=at_pixel_data,
        specific_tags=_TAGS,
    )
    if not element:
        raise Undecodable("no pixel data")
    return dataset, element[0]


def _after_file_meta(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return bool(tag.group != 2)


def _layout(dataset: Dataset) -> Layout:
    """Check the Image Pixel module; nothing that it announces is allocated here."""
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip()
    if photometric == "PALETTE COLOR":
        raise Undecodable("a palette colour picture, no radiograph")
    if photometric not in ("MONOCHROME1", "MONOCHROME2", *_COLOUR):
        raise Undecodable("unknown or missing Photometric Interpretation")
    samples = _integer(dataset, "SamplesPerPixel", 1)
    if samples != (3 if photometric in _COLOUR else 1):
        raise Undecodable(f"{samples} samples per pixel do not go with {photometric}")
    frames = _integer(dataset, "NumberOfFrames", 1)
    if frames != 1:
        raise Undecodable(f"{frames} frames: a radiograph has one")
    rows, columns = _integer(dataset, "Rows"), _integer(dataset, "Columns")
    if not (0 < rows <= 0xFFFF and 0 < columns <= 0xFFFF):
        raise Undecodable(f"{rows} rows x {columns} columns is no picture")
    if rows * columns > MAX_PIXELS:
        raise Undecodable(f"{rows} rows x {columns} columns is more than a film has")
    allocated, bits = _integer(dataset, "BitsAllocated"), _integer(dataset, "BitsStored")
    high_bit = _integer(dataset, "HighBit", bits - 1)
    if allocated not in (8, 16) or not 0 < bits <= high_bit + 1 <= allocated:
        raise Undecodable(f"{bits} bits stored in {allocated} with high bit {high_bit} is not supported")
    signed = _integer(dataset, "PixelRepresentation", 0)
    planar = _integer(dataset, "PlanarConfiguration", 0)
    if signed not in (0, 1) or planar not in (0, 1):
        raise Undecodable("Pixel Representation or Planar Configuration is neither 0 nor 1")
    stored = StoredRange(bits, signed == 1)
    return Layout(rows, columns, samples, allocated, high_bit, stored, photometric, planar)


def _integer(dataset: Dataset, keyword: str, absent: int | None = None) -> int:
    try:
        value = dataset.get(keyword)
        if value is None or value == "":
            value = absent
        return int(value)  # None raises what is caught
    except (ArithmeticError, TypeError, ValueError):
        raise Undecodable(f"{keyword} is missing or no number") from None


def _table_index(pixels: npt.NDArray[Any], layout: Layout, syntax: UID) -> npt.NDArray[Any]:
    """From stored values to the index of a table that starts at the lowest one: uint8 or uint16.

    Bits outside Bits Stored are no pixel values: they may hold overlays (PS3.5 8.1.1). In native and RLE data
    the value may sit below Bits Allocated; codecs return it right-aligned.
    """
    bits = layout.stored.bits
    words = pixels.astype(pixels.dtype.newbyteorder("="), copy=False).view(f"u{layout.allocated // 8}")
    if syntax not in PLUGINS and layout.high_bit + 1 > bits:
        words = words >> (layout.high_bit + 1 - bits)
    if bits < layout.allocated and (layout.stored.signed or int(words.max()) >> bits):
        words = words & ((1 << bits) - 1)
    return words ^ (1 << (bits - 1)) if layout.stored.signed else words


def _without(index: npt.NDArray[Any], held: tuple[int, int], padding: tuple[int, int]) -> tuple[int, int]:
    """Lowest and highest index among the pixels that are no padding."""
    low, high = held
    # Subtraction wraps round: what lies beyond the padding comes first, or last.
    if padding[0] <= low <= padding[1]:
        beyond = (padding[1] + 1) & np.iinfo(index.dtype).max
        low = (int((index - index.dtype.type(beyond)).min()) + beyond) & np.iinfo(index.dtype).max
    if padding[0] <= high <= padding[1]:
        high = (int((index - index.dtype.type(padding[0])).max()) + padding[0]) & np.iinfo(index.dtype).max
    if padding[0] <= low <= padding[1]:
        raise Undecodable("every pixel is padding")
    return low, high


def _luminance(pixels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], bool]:
    """Luminance of an RGB picture, and whether there is colour in it: a saved film has equal channels."""
    red, green, blue = (pixels[..., channel] for channel in range(3))
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    luminance = sum(
        weight * channel.astype(np.float32) for weight, channel in zip(_LUMA, (red, green, blue), strict=True)
    )
    coloured = int(spread.max()) > _GREY_SPREAD * (np.iinfo(pixels.dtype).max // 255)
    return np.rint(luminance).astype(pixels.dtype), coloured


def _digest(values: npt.NDArray[Any], layout: Layout) -> str:
    shape = (layout.rows, layout.columns, layout.samples, layout.stored.bits, layout.stored.signed)
    digest = hashlib.sha256(repr(shape).encode())
    digest.update(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).data)
    return digest.hexdigest()
