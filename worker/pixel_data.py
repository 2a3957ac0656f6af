"""The value of Pixel Data: from its bytes in any offered transfer syntax to an array of stored values.

Nothing here trusts the data: a native value must be long enough, RLE is unpacked into a plane of the
announced size, and a codestream must hold the announced picture before a codec allocates for it.
"""

import mmap
import os
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from service.core.errors import Undecodable
from service.core.syntaxes import OFFERED, UNCOMPRESSED
from worker.greyscale import StoredRange

PLUGINS: dict[UID, str] = {
    JPEGBaseline8Bit: "pillow",
    JPEGLossless: "gdcm",
    JPEGLosslessSV1: "gdcm",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    HTJ2KLossless: "pylibjpeg",
    HTJ2KLosslessRPCL: "pylibjpeg",
    HTJ2K: "pylibjpeg",
}
"""pydicom's plugin for each syntax: one and no fallback, so that a lossy film never has two results."""

_JPEG2000 = (JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)
_START_OF_SCAN = 0xDA
_MAX_SCANS = 64
# SOF0 to SOF2, SOF3 and SOF55.
_FRAME_MARKERS = {
    JPEGBaseline8Bit: (0xC0, 0xC1, 0xC2),
    JPEGLossless: (0xC3,),
    JPEGLosslessSV1: (0xC3,),
    JPEGLSLossless: (0xF7,),
    JPEGLSNearLossless: (0xF7,),
}
# DHT, DAC, DQT, DRI, APP0 to APP15, LSE (JPEG-LS) and COM: what else may come before a scan.
_TABLES_AND_COMMENTS = {0xC4, 0xCC, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xF8, 0xFE}
_UNDEFINED_LENGTH = 0xFFFFFFFF


@dataclass(frozen=True)
class Element:
    """Where the value of Pixel Data lies in the file."""

    syntax: UID
    offset: int
    length: int
    vr: str


@dataclass(frozen=True)
class Layout:
    """How the pixel data is laid out (Image Pixel module, PS3.3 C.7.6.3), checked."""

    rows: int
    columns: int
    samples: int
    allocated: int
    high_bit: int
    stored: StoredRange
    photometric_interpretation: str
    planar_configuration: int


def missing_decoders() -> list[str]:
    """Name each offered transfer syntax whose decoder is not installed; empty when all are there."""
    return [
        f"{syntax.name} (needs {PLUGINS[syntax]})"
        for syntax in OFFERED
        if syntax in PLUGINS and PLUGINS[syntax] not in get_decoder(syntax).available_plugins
    ]


def stored_values(file: BinaryIO, element: Element, layout: Layout) -> npt.NDArray[Any]:
    """Decode the pixel data: (rows, columns) or (rows, columns, 3) of 8 or 16 bits, colour as RGB.

    In native and RLE data the bits outside Bits Stored are as they came.
    """
    size = layout.rows * layout.columns * layout.samples * layout.allocated // 8
    options: dict[str, Any] = {
        "rows": layout.rows,
        "columns": layout.columns,
        "samples_per_pixel": layout.samples,
        "number_of_frames": 1,
        "photometric_interpretation": layout.photometric_interpretation,
        "planar_configuration": layout.planar_configuration,
        "bits_allocated": layout.allocated,
        "bits_stored": layout.stored.bits,
        "pixel_representation": int(layout.stored.signed),
        "pixel_keyword": "PixelData",
    }
    file.seek(element.offset)
    if element.syntax in UNCOMPRESSED:
        if layout.photometric_interpretation == "YBR_FULL_422":
            size = size // 3 * 2
        if element.length == _UNDEFINED_LENGTH:
            raise Undecodable("compressed pixel data under an uncompressed transfer syntax")
        # Mapped rather than read: five million pixels need no second place in memory.
        there = min(size + size % 2, element.length, os.fstat(file.fileno()).st_size - element.offset)
        if there < size:
            raise Undecodable(f"the pixel data is cut short: {max(there, 0)} of {size} bytes")
        mapped = mmap.mmap(file.fileno(), element.offset + there, access=mmap.ACCESS_READ)
        native = memoryview(mapped)[element.offset :]
        options |= {"pixel_vr": element.vr, "view_only": True, "correct_unused_bits": False}
        return get_decoder(element.syntax).as_array(native, index=0, **options)[0]

    if element.length != _UNDEFINED_LENGTH:
        raise Undecodable("uncompressed pixel data under a compressed transfer syntax")
    # No codec makes a film twice as large; what follows the pixel data is not read.
    value = file.read(2 * size + (1 << 20))
    try:
        frame = get_frame(value, 0, number_of_frames=1)
        if element.syntax == RLELossless:
            value = _rle_decoded(frame, layout)
            options |= {"planar_configuration": 1, "view_only": True, "correct_unused_bits": False}
            return get_decoder(ExplicitVRLittleEndian).as_array(value, index=0, **options)[0]
        _check_codestream(frame, element.syntax, layout)
        decoder = get_decoder(element.syntax)
        return decoder.as_array(value, index=0, decoding_plugin=PLUGINS[element.syntax], **options)[0]
    except (Undecodable, MemoryError):
        raise
    except Exception:
        raise Undecodable(f"the {element.syntax.name} pixel data is damaged") from None


def _rle_decoded(frame: bytes, layout: Layout) -> bytes:
    """Decode RLE (PS3.5 Annex G) to native little endian bytes, one plane after the other.

    Pillow's PackBits decoder writes into a plane of the announced size and stops there, whatever a run
    claims; it is also four times as fast as pydicom's, which grows with the runs.
    """
    width = layout.allocated // 8
    header = np.frombuffer(frame, "<u4", 16)
    if header[0] != layout.samples * width:
        raise Undecodable(f"{header[0]} RLE segments instead of {layout.samples * width}")
    bounds = [*(int(offset) for offset in header[1 : header[0] + 1]), len(frame)]
    plane = layout.rows * layout.columns
    native = np.empty((layout.samples, plane, width), np.uint8)
    for number in range(layout.samples * width):
        segment = frame[bounds[number] : bounds[number + 1]]
        decoded = Image.frombytes("L", (plane, 1), segment, "packbits", "L")
        # The most significant byte comes first.
        native[number // width, :, width - 1 - number % width] = np.asarray(decoded)[0]
    return native.tobytes()


def _check_codestream(frame: bytes, syntax: UID, layout: Layout) -> None:
    """Refuse a codestream that announces another picture than the header, or that has no end.

    A codec allocates by what the codestream says, and some show what they have of one that is cut short.
    """
    announced = (
        _jpeg2000_header(frame) if syntax in _JPEG2000 else _jpeg_header(frame, _FRAME_MARKERS[syntax])
    )
    if announced is None:
        raise Undecodable(f"no {syntax.name} codestream in the pixel data")
    *size, precision = announced
    if size != [layout.rows, layout.columns, layout.samples]:
        raise Undecodable(
            "the codestream holds {} x {} x {} samples, the header says {} x {} x {}".format(
                *size, layout.rows, layout.columns, layout.samples
            )
        )
    if not 1 < precision <= layout.allocated:
        raise Undecodable(f"{precision} bits in the codestream, {layout.allocated} allocated")
    # In entropy-coded data 0xFF is followed by nothing above 0x7F but RSTn: these are scans. Each goes over
    # the whole picture; ten suffice for a progressive film, and two thousand fit into 20 KB.
    if syntax not in _JPEG2000 and frame.count(b"\xff\xda") > _MAX_SCANS:
        raise Undecodable(f"more than {_MAX_SCANS} scans in the codestream")
    # Padded with zeros by the standard, with 0xFF by some.
    if not frame.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
        raise Undecodable(f"the {syntax.name} pixel data is cut short")


def _jpeg_header(frame: bytes, frame_markers: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """Rows, columns, components and precision of JPEG (T.81 B.2.2) or JPEG-LS (T.87 C.2.2).

    None when the marker segments up to the first scan do not follow one another or hold another process:
    GDCM ends the whole process on such a header.
    """
    header = None
    at = 2
    while frame.startswith(b"\xff\xd8") and at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == _START_OF_SCAN:
            return header
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in frame_markers and header is None:
            header = (_number(frame, at + 5, 2), _number(frame, at + 7, 2), frame[at + 9], frame[at + 4])
        elif marker not in _TABLES_AND_COMMENTS:
            return None
        at += 2 + _number(frame, at + 2, 2)
    return None


def _jpeg2000_header(frame: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, components and precision from the SIZ marker, which comes first (T.800 A.5.1)."""
    if len(frame) < 43 or not frame.startswith(b"\xff\x4f\xff\x51"):
        return None
    x_size, y_size, x_offset, y_offset = (_number(frame, at, 4) for at in (8, 12, 16, 20))
    return y_size - y_offset, x_size - x_offset, _number(frame, 40, 2), (frame[42] & 0x7F) + 1


def _number(frame: bytes, at: int, length: int) -> int:
    return int.from_bytes(frame[at : at + length], "big")
