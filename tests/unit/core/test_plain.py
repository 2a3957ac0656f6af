"""What is read without pydicom's objects is what pydicom would have said."""

import struct
import warnings
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from service.core import header
from service.core.errors import Unreadable
from service.core.plain import plain_values
from service.core.shape import check_shape
from tests import factories

_LENGTH_AT = 140  # of the value of (0002,0000), behind preamble and DICM
_TAGS = sorted(header._WANTED)
_TEXTS = [tag for tag in _TAGS if dictionary_VR(tag) not in {"SQ", "US"}]
SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)


def encoded(film: Dataset, syntax: UID) -> bytes:
    """Return a Part 10 file."""
    stream = BytesIO()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = syntax
    film.file_meta.MediaStorageSOPClassUID = film.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    film.save_as(
        stream,
        enforce_file_format=True,
        little_endian=syntax.is_little_endian,
        implicit_vr=syntax.is_implicit_VR,
    )
    return stream.getvalue()


def both(content: bytes, syntax: UID) -> tuple[Any, Any]:
    """Return what is read of a file with and without pydicom's objects; None where that is in doubt."""

    def read(values: header.Values) -> Any:
        try:
            return header.header_of(values, syntax)
        except Exception as fault:
            return type(fault)

    start = _LENGTH_AT + 4 + struct.unpack_from("<L", content, _LENGTH_AT)[0]
    plain = None
    with suppress(Unreadable):  # it is refused
        walked = check_shape(content, syntax, start, header._WANTED)
        plain = plain_values(content, walked, header._KEYWORDS) if walked.whole else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            by_pydicom = read(dcmread(BytesIO(content), stop_before_pixels=True))
        except Exception as fault:
            by_pydicom = type(fault)
    return (None if plain is None else read(plain)), by_pydicom


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("several", [True, False])
def test_a_film_in_plain_ascii_needs_no_pydicom(syntax: UID, several: bool) -> None:
    film = factories.phantom_chest(PatientName="Roe^Jane ", StudyDescription="Thorax ap", NumberOfFrames=1)
    view = Dataset()
    view.CodeValue, view.CodingSchemeDesignator, view.CodeMeaning = "399348003", "SCT", "antero-posterior"
    film.ViewCodeSequence, film.AnatomicRegionSequence = [view], []
    film.ImageType = ["DERIVED", "PRIMARY "] if several else "DERIVED"
    plain, by_pydicom = both(encoded(film, syntax), syntax)
    assert plain == by_pydicom
    assert plain.view_codes == ("399348003",)
    assert plain.image_type == (("DERIVED", "PRIMARY") if several else ("DERIVED",))
    assert (plain.subject.patient_name, plain.rows) == ("Roe^Jane", film.Rows)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
def test_code_values_are_those_of_the_items_and_of_nothing_inside_them(syntax: UID, undefined: bool) -> None:
    film = factories.phantom_chest()
    items = [Dataset(), Dataset(), Dataset()]
    items[0].CodeValue, items[2].CodeValue = "399348003", "P2"
    inner = Dataset()
    inner.CodeValue = "INNER"
    for item in items:
        item.ViewModifierCodeSequence = [inner]
        item.is_undefined_length_sequence_item = undefined
    film.ViewCodeSequence = items
    film["ViewCodeSequence"].is_undefined_length = undefined
    plain, by_pydicom = both(encoded(film, syntax), syntax)
    assert plain == by_pydicom
    assert plain.view_codes == ("399348003", "", "P2")


@pytest.mark.parametrize(
    ("charset", "attributes"),
    [
        ("ISO_IR 100", {"PatientName": "Müller^Änne"}),
        ("ISO_IR 192", {"StudyDescription": "胸部"}),
        (["", "ISO 2022 IR 87"], {"PatientName": "Yamada^Tarou=山田^太郎"}),
        ("ISO_IR 100", {"Modality": ["DX", "CR"]}),
        ("ISO_IR 100", {"PatientName": "Roe^Jane=ROE"}),
    ],
)
def test_whatever_is_not_plain_is_left_to_pydicom(charset: Any, attributes: dict[str, Any]) -> None:
    film = factories.phantom_chest(SpecificCharacterSet=charset)
    for keyword, value in attributes.items():
        setattr(film, keyword, value)
    plain, by_pydicom = both(encoded(film, ExplicitVRLittleEndian), ExplicitVRLittleEndian)
    assert plain is None
    assert isinstance(by_pydicom, header.Header)


def element(tag: int, vr: str, value: bytes, syntax: UID) -> bytes:
    order = "<" if syntax.is_little_endian else ">"
    named = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if syntax.is_implicit_VR:
        return named + struct.pack(f"{order}L", len(value)) + value
    if vr == "SQ":
        return named + b"SQ\0\0" + struct.pack(f"{order}L", len(value)) + value
    return named + vr.encode() + struct.pack(f"{order}H", len(value)) + value


_value = st.one_of(
    st.binary(max_size=12),
    st.text(st.sampled_from("AZ19.^=\\~ \0-_"), max_size=16).map(lambda text: text.encode()),
)


@given(
    syntax=st.sampled_from(SYNTAXES),
    odd=st.dictionaries(st.sampled_from(_TAGS), _value, max_size=4),
    other_vr=st.none() | st.tuples(st.sampled_from(_TEXTS), st.sampled_from(["UN", "LO", "US", "IS"])),
    twice=st.booleans(),
)
@example(ExplicitVRLittleEndian, {0x00080008: b"ORIGINAL \\PRIMARY\0"}, None, False)
@example(ImplicitVRLittleEndian, {0x00280008: b"0 "}, None, False)
@example(ImplicitVRLittleEndian, {0x00280010: b""}, None, False)
@example(ExplicitVRLittleEndian, {0x00080050: b" A1 \0"}, None, True)
def test_whatever_stands_in_a_header_is_read_as_pydicom_would_or_left_to_it(
    syntax: UID, odd: dict[int, bytes], other_vr: tuple[int, str] | None, twice: bool
) -> None:
    values = dict.fromkeys((524296, 524384), b"")
    values |= dict.fromkeys((524310, 524312, 2097165, 2097166), b"1.2.3\x00") | odd
    content = BytesIO()
    whole = encoded(Dataset(), syntax)
    content.write(whole)
    for tag in sorted(values):
        vr = other_vr[1] if other_vr is not None and other_vr[0] == tag else dictionary_VR(tag)
        content.write(element(tag, vr, values[tag], syntax) * (1 + twice))
    content.write(element(0x7FE00010, "SQ", bytes(8), syntax).replace(b"SQ", b"OW"))
    plain, by_pydicom = both(content.getvalue(), syntax)
    assert plain is None or plain == by_pydicom


def test_the_files_of_pydicom_are_read_as_pydicom_reads_them() -> None:
    compared = 0
    for path in Path(get_testdata_file("CT_small.dcm") or "").parent.glob("*.dcm"):
        content = path.read_bytes()
        if content[128:132] == b"DICM":
            syntax = UID(read_file_meta_info(path).get("TransferSyntaxUID", ""))
            plain, by_pydicom = both(content, syntax)
            assert plain is None or plain == by_pydicom, path.name
            compared += plain is not None
    assert compared > 20


def test_the_tags_of_the_dictionary_are_those_that_are_walked_to() -> None:
    assert {tag_for_keyword(keyword) for keyword in header._KEYWORDS} == header._WANTED
