"""The shape of a data set before it is parsed: how deep it nests, how many elements it has, how much to hold.

pydicom follows a data set wherever it leads. A walk over tags and lengths (PS3.5 7.1) costs less than a
millisecond for a film and finds what would cost half a minute or gigabytes afterwards. It judges nothing
else: bytes that are no data set end the walk, and pydicom says what they are.
"""

import mmap
from collections.abc import Collection
from dataclasses import dataclass, field
from struct import Struct, error
from typing import Literal, NamedTuple

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.uid import UID, ExplicitVRBigEndian

from service.core.errors import Unreadable

MAX_DEPTH = 64
"""Sequences within sequences; the deepest standard template (a measurement report) stays below 20."""
MAX_ELEMENTS = 300_000
"""Of the whole header, nested ones too; a film has a few hundred, a large structured report ten thousand."""
MAX_VALUE_BYTES = 1 << 20
"""Of one attribute that is read."""
MAX_HELD_BYTES, MAX_HELD_ELEMENTS = 64 << 20, 50_000
"""Of one sequence that is taken apart, to be read or because nothing else tells where it ends."""

UNDEFINED = 0xFFFFFFFF
"""The length of what ends with a delimiter (PS3.5 7.1)."""
_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_CODE_VALUE = 0x00080100
_PIXELS = 0x7FE00000
# Where pydicom stops before them: Float, Double Float and Pixel Data.
_PIXEL_DATA = {0x7FE00008, 0x7FE00009, 0x7FE00010}

Content = bytes | mmap.mmap


class Place(NamedTuple):
    """Where the value of an element begins, and the length that it states.

    `vr` is None where its bytes say none.
    """

    vr: bytes | None
    begin: int
    length: int


@dataclass
class Walked:
    """What a walk came by.

    Attributes
    ----------
    whole
        Whether the pixels came, and so everything before them.
    implicit, byte_order
        How the data set is encoded.
    places
        Those of the wanted elements of the top level that are there, the last where one is there twice.
    well_nested
        Whether sequences are made of items, and everything ends with what it is in or before it (PS3.5 7.5).
    codes
        Of wanted sequences, by tag: where the Code Value of each item lies, None where it has none.
    """

    implicit: bool
    byte_order: Literal["little", "big"]
    whole: bool = False
    places: dict[int, Place] = field(default_factory=dict)
    well_nested: bool = True
    codes: dict[int, list[Place | None]] = field(default_factory=dict)


def check_shape(
    content: Content, transfer_syntax_uid: UID | None, start: int, wanted: Collection[int]
) -> Walked:
    """Walk over the data set in `content`, from byte `start` to its pixels.

    Parameters
    ----------
    content
        A whole file, or the beginning of one: what is found in that would be found in all of it.
    transfer_syntax_uid
        None when the file says none. It tells the byte order alone: whether VRs are explicit is told by the
        first bytes, as pydicom does.
    wanted
        Tags whose values will be read.

    Raises
    ------
    Unreadable
        When it nests too deep, has too many elements, or needs too much memory to be read.
    """
    implicit = not all(0x41 <= letter <= 0x5A for letter in content[start + 4 : start + 6])
    walked = Walked(implicit, "big" if transfer_syntax_uid == ExplicitVRBigEndian else "little")
    walked.whole = _Walk(content, walked, wanted).over(start)
    return walked


class _Walk:
    """One walk over tags and lengths."""

    def __init__(self, content: Content, walked: Walked, wanted: Collection[int]) -> None:
        self._content = content
        self._walked = walked
        order = ">" if walked.byte_order == "big" else "<"
        self._tag = Struct(f"{order}HH")
        self._short = Struct(f"{order}H")
        self._long = Struct(f"{order}L")
        self._item = self._tag.pack(0xFFFE, 0xE000)
        self._end_of_sequence = self._tag.pack(0xFFFE, 0xE0DD)
        self._wanted = wanted
        # Of each open sequence or item: its end (None: a delimiter ends it), and whether it is implicit VR.
        self._open: list[tuple[int | None, bool]] = []
        self._held_from: tuple[int, int] | None = None
        self._codes: list[Place | None] | None = None

    def over(self, position: int) -> bool:
        """Return whether the pixels came."""
        for number in range(MAX_ELEMENTS):
            self._leave(position)
            if position + 8 > len(self._content):
                return False
            group, element = self._tag.unpack_from(self._content, position)
            tag = group << 16 | element
            if not self._open and tag >= _PIXELS and group != 0xFFFE:
                # What tells how long they are is there too.
                return tag in _PIXEL_DATA and position + 12 <= len(self._content)
            try:
                position = self._past(tag, position, number)
            except error:
                return False
            if position < 0:
                return False
            self._check_held(position, number)
        raise Unreadable(f"the header has more than {MAX_ELEMENTS} elements")

    def _leave(self, position: int) -> None:
        while self._open and (end := self._open[-1][0]) is not None and position >= end:
            self._open.pop()
            self._walked.well_nested &= position == end

    def _past(self, tag: int, position: int, number: int) -> int:
        """Return where the next element, item or delimiter begins; negative when nowhere."""
        in_sequence = len(self._open) % 2 == 1
        if tag in (_END_OF_ITEM, _END_OF_SEQUENCE):
            if not self._open or self._open.pop()[0] is not None or in_sequence == (tag == _END_OF_ITEM):
                self._walked.well_nested = False
            return position + 8
        self._walked.well_nested &= in_sequence == (tag == _ITEM)
        implicit = self._open[-1][1] if self._open else self._walked.implicit
        vr, length, begin = self._head(position, tag, implicit)
        undefined = length == UNDEFINED
        if not self._open:
            is_wanted = tag in self._wanted
            self._held_from = (position, number) if undefined or is_wanted else None
            if is_wanted:
                if not undefined and length > MAX_VALUE_BYTES:
                    raise Unreadable(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is too long to be read")
                self._walked.places[tag] = Place(vr, begin, length)
                # Filled with what follows while this is open.
                self._codes = self._walked.codes[tag] = []
            else:
                self._codes = None
        elif self._codes is not None:
            if tag == _ITEM and len(self._open) == 1:
                self._codes.append(None)
            elif tag == _CODE_VALUE and len(self._open) == 2 and self._codes:
                self._codes[-1] = Place(vr, begin, length)
        if tag == _ITEM or self._is_sequence(vr, tag, length, begin):
            # PS3.5 6.2.2: what is inside an element of VR UN is implicit VR.
            self._open.append((None if undefined else begin + length, implicit or vr == b"UN"))
            if len(self._open) > 2 * MAX_DEPTH:
                raise Unreadable(f"sequences nest deeper than {MAX_DEPTH}")
            return begin
        if undefined:
            # Fragments (PS3.5 A.4), as in an icon: their bytes are no elements.
            end = self._content.find(self._end_of_sequence, begin)
            return end + 8 if end >= 0 else end
        return begin + length

    def _check_held(self, position: int, number: int) -> None:
        if self._held_from is not None:
            begin, first = self._held_from
            if position - begin > MAX_HELD_BYTES or number - first > MAX_HELD_ELEMENTS:
                raise Unreadable("a sequence is too long to be read")
            if not self._open:
                self._held_from = None

    def _head(self, position: int, tag: int, implicit: bool) -> tuple[bytes | None, int, int]:
        """Return VR, length and where the value begins."""
        vr = self._content[position + 4 : position + 6]
        if implicit or tag == _ITEM or not b"AA" <= vr <= b"ZZ":
            (length,) = self._long.unpack_from(self._content, position + 4)
            return None, length, position + 8
        if vr in _LONG_VRS:
            (length,) = self._long.unpack_from(self._content, position + 8)
            return vr, length, position + 12
        (length,) = self._short.unpack_from(self._content, position + 6)
        return vr, length, position + 8

    def _is_sequence(self, vr: bytes | None, tag: int, length: int, begin: int) -> bool:
        if vr == b"SQ":
            return True
        if vr not in (None, b"UN"):
            return False
        if length == UNDEFINED:
            return True
        begins_as_one = length >= 8 and self._content[begin : begin + 4] == self._item
        return begins_as_one and (not dictionary_has_tag(tag) or dictionary_VR(tag) == "SQ")
