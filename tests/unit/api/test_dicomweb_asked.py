"""What a search and an Accept header ask for, whatever they say."""

from contextlib import suppress

import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1
from starlette.requests import Request

from service.api.dicomweb.attributes import MATCHED, Level
from service.api.dicomweb.negotiation import (
    Choice,
    accepted,
    choose,
    frame_choices,
    object_choices,
)
from service.api.dicomweb.query import MOST_RESULTS, parse

J2K, EXPLICIT = str(JPEG2000Lossless), str(ExplicitVRLittleEndian)
_DICOM, _OCTETS = "application/dicom", "application/octet-stream"


def asked(accept: str | None, query: str = "") -> Request:
    headers = [] if accept is None else [(b"accept", accept.encode("latin-1", "replace"))]
    return Request({"type": "http", "headers": headers, "query_string": query.encode()})


@pytest.mark.parametrize(
    ("accept", "answer"),
    [
        (None, Choice(_DICOM, True, J2K)),
        ("", Choice(_DICOM, True, J2K)),
        ("*/*", Choice(_DICOM, True, J2K)),
        ("application/*", Choice(_DICOM, False, J2K)),
        ("multipart/related; type=application/dicom", Choice(_DICOM, True, J2K)),
        ('multipart/related; type="application/dicom"; transfer-syntax=*', Choice(_DICOM, True, J2K)),
        (f'multipart/related; type="application/dicom"; transfer-syntax={EXPLICIT}', None),
        (
            f'multipart/related; type="application/dicom"; transfer-syntax={EXPLICIT}, '
            f'multipart/related; type="application/dicom"; transfer-syntax={J2K}; q=0.5',
            Choice(_DICOM, True, J2K),
        ),
        (f"{_DICOM}; q=0.9, multipart/related; type={_DICOM}; q=0.5", Choice(_DICOM, False, J2K)),
        ("application/dicom; q=0", None),
        ("text/html", None),
        ('multipart/related; type="image/jp2"', None),
    ],
)
def test_an_instance_is_answered_as_it_is_stored_or_not_at_all(
    accept: str | None, answer: Choice | None
) -> None:
    assert choose(accepted(asked(accept)), object_choices(J2K, alone=True)) == answer


@pytest.mark.parametrize(
    ("accept", "syntax", "answer"),
    [
        ("*/*", J2K, Choice("image/jp2", True, J2K)),
        ("image/*", J2K, Choice("image/jp2", False, J2K)),
        (f"multipart/related; type={_OCTETS}; transfer-syntax=*", J2K, Choice(_OCTETS, True, J2K)),
        (f"multipart/related; type={_OCTETS}; transfer-syntax={J2K}", J2K, Choice(_OCTETS, True, J2K)),
        (f"multipart/related; type={_OCTETS}", J2K, None),
        (f"multipart/related; type={_OCTETS}", EXPLICIT, Choice(_OCTETS, True, EXPLICIT)),
        ("image/jp2", EXPLICIT, None),
        (f"image/jpeg; transfer-syntax={J2K}", str(JPEGLosslessSV1), None),
    ],
)
def test_a_frame_is_answered_as_it_is_stored_or_not_at_all(
    accept: str, syntax: str, answer: Choice | None
) -> None:
    assert choose(accepted(asked(accept)), frame_choices(syntax, alone=True)) == answer


def test_the_query_parameter_stands_for_the_header() -> None:
    request = asked("text/html", "accept=application/dicom")
    assert choose(accepted(request), object_choices(J2K, alone=True)) == Choice(_DICOM, False, J2K)


@given(st.text(max_size=300))
def test_no_accept_header_breaks_anything(accept: str) -> None:
    with suppress(HTTPException):  # 400, in words
        choose(accepted(asked(accept)), object_choices(J2K, alone=True))


_NAMES = st.sampled_from(
    [*MATCHED[Level.INSTANCES], "limit", "offset", "includefield", "fuzzymatching", "00100010"]
)


@given(st.lists(st.tuples(st.one_of(_NAMES, st.text(max_size=40)), st.text(max_size=60)), max_size=12))
def test_no_query_breaks_anything(parameters: list[tuple[str, str]]) -> None:
    with suppress(HTTPException):  # 400, in words
        assert parse(parameters).limit <= MOST_RESULTS


def test_keywords_and_numbers_name_the_same_attribute() -> None:
    by_keyword = parse([("PatientID", "1"), ("RequestAttributesSequence.RequestedProcedureID", "2")])
    by_number = parse([("00100020", "1"), ("00400275.00401001", "2")])
    assert by_keyword == by_number
    assert [key.path for key in by_keyword.keys] == [(0x00100020,), (0x00400275, 0x00401001)]
