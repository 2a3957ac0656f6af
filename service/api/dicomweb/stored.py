"""A stored object: its header, and where its pixels lie. Pixels are found and passed on, never decoded."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import BinaryIO

from fastapi import HTTPException
from pydicom import Dataset, dcmread
from pydicom.encaps import get_frame
from pydicom.uid import UID, ExplicitVRBigEndian

from service.core.errors import Refused
from service.core.header import check_before_reading

# What is longer is not read with the header, but when it is asked for.
DEFER_BYTES = 64 * 1024
CHUNK = 256 * 1024
_UNDEFINED = 0xFFFFFFFF
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"UN"}
# Float, Double Float and Pixel Data (PS3.3 C.7.6.24, C.7.6.25, C.7.6.3).
_PIXEL_ELEMENTS = {0x7FE00008, 0x7FE00009, 0x7FE00010}


@dataclass(frozen=True)
class Pixels:
    """The element with the pixels: `begin` is where its value is, `length` None when it is encapsulated."""

    tag: int
    vr: str
    begin: int
    length: int | None


@dataclass(frozen=True)
class Stored:
    """An object on disk."""

    path: Path
    dataset: Dataset
    pixels: Pixels | None
    transfer_syntax_uid: UID

    @property
    def is_big_endian(self) -> bool:
        return self.transfer_syntax_uid == ExplicitVRBigEndian

    @property
    def number_of_frames(self) -> int:
        """0 without pixels."""
        if self.pixels is None:
            return 0
        try:
            return max(1, int(self.dataset.get("NumberOfFrames") or 1))
        except (TypeError, ValueError):
            return 1

    def read(self, begin: int, length: int) -> Iterator[bytes]:
        """Return a part of the file in pieces.

        Raises
        ------
        HTTPException
            406 when the file ends before it.
        """
        if self.path.stat().st_size < begin + length:
            raise HTTPException(406, "the file is shorter than its header says")
        return self._chunks(begin, length)

    def _chunks(self, begin: int, length: int) -> Iterator[bytes]:
        with self.path.open("rb") as stream:
            stream.seek(begin)
            while length > 0:
                chunk = stream.read(min(CHUNK, length))
                if not chunk:
                    raise OSError("the file is shorter than its header says")
                length -= len(chunk)
                yield chunk

    def frame(self, number: int) -> Iterator[bytes]:
        """Yield a frame as it is stored, without the items that wrap a compressed one (PS3.5 A.4).

        Raises
        ------
        HTTPException
            406 when it cannot be told from the others.
        """
        assert self.pixels is not None
        if self.pixels.length is None:
            return iter([self._encapsulated(number)])
        size = self._frame_bytes()
        if number * size > self.pixels.length:
            raise HTTPException(406, "the pixel data is shorter than its header says")
        return self.read(self.pixels.begin + (number - 1) * size, size)

    def _encapsulated(self, number: int) -> bytes:
        assert self.pixels is not None
        offsets = None
        if "ExtendedOffsetTable" in self.dataset:
            offsets = (self.dataset.ExtendedOffsetTable, self.dataset.ExtendedOffsetTableLengths)
        with self.path.open("rb") as stream:
            stream.seek(self.pixels.begin)
            try:
                return get_frame(
                    stream, number - 1, number_of_frames=self.number_of_frames, extended_offsets=offsets
                )
            except Exception as fault:  # pydicom raises nearly anything on broken fragments
                raise HTTPException(406, f"the frame is broken ({type(fault).__name__})") from None

    def _frame_bytes(self) -> int:
        dataset = self.dataset
        try:
            samples, allocated = int(dataset.get("SamplesPerPixel") or 1), int(dataset.BitsAllocated)
            bits = int(dataset.Rows) * int(dataset.Columns) * samples * allocated
        except (AttributeError, TypeError, ValueError):
            raise HTTPException(406, "the header does not say how large a frame is") from None
        if dataset.get("PhotometricInterpretation") == "YBR_FULL_422":
            bits = bits * 2 // 3  # PS3.3 C.7.6.3.1.2: two samples of luminance share those of colour
        if bits % 8 and self.number_of_frames > 1:
            raise HTTPException(406, "frames that begin within a byte are not told apart")
        if bits <= 0:
            raise HTTPException(406, "the header does not say how large a frame is")
        return (bits + 7) // 8


def open_stored(path: Path) -> Stored:
    """Read the header of a Part 10 file that is kept, up to its pixels.

    Raises
    ------
    HTTPException
        406 when it cannot be read, or only at a cost that one object may not have.
    OSError
        When the file is gone.
    """
    with _readable():
        check_before_reading(path, frozenset())
        with path.open("rb") as stream:
            dataset = dcmread(stream, force=True, stop_before_pixels=True, defer_size=DEFER_BYTES)
            syntax = UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
            implicit, _ = dataset.original_encoding
            pixels = _pixels(stream, implicit=bool(implicit), big_endian=syntax == ExplicitVRBigEndian)
    return Stored(path, dataset, pixels, syntax)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (OSError, HTTPException):
        raise
    except Refused as fault:
        raise HTTPException(406, f"the object cannot be read: {fault}") from None
    except Exception as fault:  # pydicom raises nearly anything on broken bytes (pydicom issue 2336)
        raise HTTPException(406, f"the object cannot be read ({type(fault).__name__})") from None


def _pixels(stream: BinaryIO, *, implicit: bool, big_endian: bool) -> Pixels | None:
    """Return the element that `stream` has come to, if it is one of pixels (PS3.5 7.1)."""
    order, begin = (">" if big_endian else "<"), stream.tell()
    head = stream.read(12)
    if len(head) < (8 if implicit else 12):
        return None
    group, element = Struct(f"{order}HH").unpack_from(head)
    tag = group << 16 | element
    if tag not in _PIXEL_ELEMENTS:
        return None
    long = Struct(f"{order}L")
    if implicit:
        return Pixels(tag, "OW", begin + 8, _length(long.unpack_from(head, 4)[0]))
    if head[4:6] not in _LONG_VRS:
        return None
    return Pixels(tag, head[4:6].decode("ascii"), begin + 12, _length(long.unpack_from(head, 8)[0]))


def _length(length: int) -> int | None:
    return None if length == _UNDEFINED else length
