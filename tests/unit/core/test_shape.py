"""The walk over a data set before it is parsed."""

import struct
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from service.core import shape
from service.core.errors import Unreadable
from service.core.header import read_attributes
from service.core.shape import check_shape

_ITEM, _END_OF_ITEM, _END = (
    b"\xfe\xff\x00\xe0",
    b"\xfe\xff\x0d\xe0" + bytes(4),
    b"\xfe\xff\xdd\xe0" + bytes(4),
)
_UNDEFINED = b"\xff\xff\xff\xff"


def element(tag: int, vr: bytes, value: bytes, *, undefined: bool = False) -> bytes:
    length = _UNDEFINED if undefined else struct.pack("<L", len(value))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr + b"\0\0" + length + value


def nested(depth: int, vr: bytes, *, undefined: bool) -> bytes:
    content = b""
    for _ in range(depth):
        length = _UNDEFINED if undefined else struct.pack("<L", len(content))
        item = _ITEM + length + content + (_END_OF_ITEM if undefined else b"")
        content = element(0x00711010, vr, item + (_END if undefined else b""), undefined=undefined)
    return content


def check(content: bytes, syntax: UID | None = ExplicitVRLittleEndian) -> bool:
    return check_shape(content, syntax, 0, {0x00100010})


@pytest.mark.parametrize("undefined", [False, True])
def test_sequences_nest_so_deep_and_no_deeper(undefined: bool) -> None:
    check(nested(shape.MAX_DEPTH, b"SQ", undefined=undefined))
    with pytest.raises(Unreadable, match="nest deeper"):
        check(nested(shape.MAX_DEPTH + 1, b"SQ", undefined=undefined))


def test_sequences_that_do_not_say_so_are_found() -> None:
    inner = struct.pack("<HHL", 0x0071, 0x1010, 0xFFFFFFFF) + _ITEM + _UNDEFINED
    with pytest.raises(Unreadable, match="nest deeper"):
        check(inner * 100, ImplicitVRLittleEndian)
    content = b""
    for _ in range(100):
        item = _ITEM + struct.pack("<L", len(content)) + content
        content = struct.pack("<HHL", 0x0071, 0x1010, len(item)) + item
    with pytest.raises(Unreadable, match="nest deeper"):
        check(content, ImplicitVRLittleEndian)
    with pytest.raises(Unreadable, match="nest deeper"):
        check(element(0x00711010, b"UN", _ITEM + struct.pack("<L", len(content)) + content))


def test_what_a_parser_would_have_to_hold_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape, "MAX_HELD_BYTES", 1000)
    big = element(0x00711011, b"OB", bytes(1001))
    check(big)
    with pytest.raises(Unreadable, match="too long"):
        check(element(0x00081140, b"SQ", _ITEM + _UNDEFINED + big, undefined=True))
    monkeypatch.setattr(shape, "MAX_HELD_ELEMENTS", 10)
    items = (_ITEM + bytes(4)) * 11
    check(element(0x00081140, b"SQ", items))
    with pytest.raises(Unreadable, match="too long"):
        check(element(0x00081140, b"SQ", items + _END, undefined=True))


def test_a_long_value_is_refused_where_it_would_be_read() -> None:
    value = bytes(shape.MAX_VALUE_BYTES + 1)
    check(element(0x00711010, b"UT", value))
    with pytest.raises(Unreadable, match=r"\(0010,0010\) is too long"):
        check(element(0x00100010, b"UT", value))


def test_elements_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape, "MAX_ELEMENTS", 100)
    check(element(0x00711010, b"UN", b"") * 99)
    with pytest.raises(Unreadable, match="more than"):
        check(element(0x00711010, b"UN", b"") * 101)


def test_fragments_and_what_follows_the_pixels_are_not_looked_at() -> None:
    deep = nested(100, b"SQ", undefined=True)
    fragments = _ITEM + struct.pack("<L", len(deep)) + deep
    check(element(0x00711010, b"OB", fragments[:200] + _END, undefined=True))
    check(element(0x7FE00010, b"OW", b"") + deep)


@pytest.mark.parametrize("content", [b"\0", b"\xff" * 4096, b"text\n" * 100])
@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, None]
)
def test_what_is_no_data_set_ends_the_walk(content: bytes, syntax: UID | None) -> None:
    check(content, syntax)


@pytest.mark.parametrize(
    "name", ["rtplan.dcm", "rtdose.dcm", "reportsi.dcm", "liver.dcm", "nested_priv_SQ.dcm"]
)
def test_real_objects_pass(name: str) -> None:
    path = get_testdata_file(name, download=False)
    assert path is not None
    read_attributes(Path(str(path)), ["PatientID", "ViewCodeSequence"])


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, None])
def test_a_transfer_syntax_that_is_not_true_hides_nothing(syntax: UID | None) -> None:
    with pytest.raises(Unreadable, match="nest deeper"):
        check(nested(100, b"SQ", undefined=False), syntax)
    implicit = struct.pack("<HHL", 0x0071, 0x1010, 0xFFFFFFFF) + _ITEM + _UNDEFINED
    with pytest.raises(Unreadable, match="nest deeper"):
        check(implicit * 100, syntax)
