"""Command sets of C-STORE are told and written as pynetdicom does, or left to it."""

import struct
from io import BytesIO
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from pynetdicom.dimse_messages import C_STORE_RQ, C_STORE_RSP, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import create_file_meta, encode
from pynetdicom.pdu_primitives import P_DATA

from service.core.file_meta import FileMeta, written_file_meta
from service.listener.commands import store_request, store_response

_CONTEXT_ID = 5
_ATTRIBUTES = (
    *("MessageID", "Priority", "AffectedSOPClassUID", "AffectedSOPInstanceUID"),
    *("MoveOriginatorApplicationEntityTitle", "MoveOriginatorMessageID"),
)
DX = DigitalXRayImageStorageForPresentation


def request(**attributes: Any) -> bytes:
    """Return the command set of a C-STORE-RQ as pynetdicom writes it."""
    primitive = C_STORE()
    primitive.MessageID, primitive.Priority, primitive.DataSet = 7, 2, BytesIO(b"\0\0")
    primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID = DX, UID("1.2.3.44")
    for keyword, value in attributes.items():
        setattr(primitive, keyword, value)
    message = C_STORE_RQ()
    message.primitive_to_message(primitive)
    return bytes(encode(message.command_set, True, True) or b"")


def by_pynetdicom(command_set: bytes) -> Any:
    """Return what pynetdicom makes of a command set: a primitive, or the type of its exception."""
    part = P_DATA()
    part.presentation_data_value_list.append((_CONTEXT_ID, b"\x03" + command_set))
    message = DIMSEMessage()
    try:
        message.decode_msg(part)
        return message.message_to_primitive()
    except Exception as fault:
        return type(fault)


def assert_same(ours: C_STORE, theirs: Any) -> None:
    assert isinstance(theirs, C_STORE)
    for keyword in _ATTRIBUTES:
        assert getattr(ours, keyword) == getattr(theirs, keyword), keyword
    assert ours._context_id == theirs._context_id
    assert ours.is_valid_request
    assert theirs.is_valid_request


@pytest.mark.parametrize(
    "more", [{}, {"MoveOriginatorApplicationEntityTitle": "PACS", "MoveOriginatorMessageID": 3}]
)
def test_a_request_in_its_usual_form_is_told_without_pynetdicom(more: dict[str, Any]) -> None:
    content = request(**more)
    ours = store_request(content, _CONTEXT_ID)
    assert ours is not None
    assert_same(ours, by_pynetdicom(content))


_ELEMENTS = (0x0000, 0x0002, 0x0100, 0x0110, 0x0700, 0x0800, 0x0900, 0x1000, 0x1030, 0x1031)


@given(
    odd=st.dictionaries(st.sampled_from(_ELEMENTS), st.none() | st.binary(max_size=6), max_size=3),
    cut=st.integers(0, 3),
)
@example({0x1000: b"1.2.x\0"}, 0)
@example({0x1000: b"1.2\\3\0"}, 0)
@example({0x0800: b"\x01\x01"}, 0)
@example({0x0700: b"\x07\x00"}, 0)
@example({0x1030: b" PACS "}, 0)
@example({0x1030: b""}, 0)
def test_whatever_a_request_holds_is_told_as_pynetdicom_would_or_left_to_it(
    odd: dict[int, bytes | None], cut: int
) -> None:
    values: dict[int, bytes | None] = {
        0x0002: DX.encode() + b"\0" * (len(DX) % 2),
        0x0100: b"\x01\0",
        0x0110: b"\x07\0",
        0x0700: b"\0\0",
        0x0800: b"\0\0",
        0x1000: b"1.2.3.44",
    }
    values |= odd
    elements = b"".join(
        struct.pack("<HHL", 0, number, len(value)) + value
        for number, value in sorted(values.items())
        if value is not None and number
    )
    length = odd.get(0) or struct.pack("<L", len(elements))
    content = struct.pack("<HHL", 0, 0, len(length)) + length + elements
    content = content[: len(content) - cut]
    ours = store_request(content, _CONTEXT_ID)
    if ours is not None:
        assert_same(ours, by_pynetdicom(content))


@pytest.mark.parametrize("status", [0x0000, 0xA700, 0xC000, 0x0117])
def test_a_response_is_that_of_pynetdicom(status: int) -> None:
    primitive = C_STORE()
    primitive.MessageID = primitive.MessageIDBeingRespondedTo = 65535
    primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID = DX, UID("1.2.3")
    primitive.Status = status
    message = C_STORE_RSP()
    message.primitive_to_message(primitive)
    assert store_response(primitive) == encode(message.command_set, True, True)
    primitive.ErrorComment = "says more"
    assert store_response(primitive) is None


@pytest.mark.parametrize("uid", ["1.2.3", "1.2.34"])
def test_file_meta_information_is_that_of_pydicom(uid: str) -> None:
    meta: FileMetaDataset = create_file_meta(
        sop_class_uid=DX,
        sop_instance_uid=UID(uid),
        transfer_syntax=ExplicitVRLittleEndian,
        implementation_uid=UID("1.2.3.4"),
        implementation_version="HILUM_1",
    )
    meta.SendingApplicationEntityTitle = "ROUTER1"
    stream = DicomBytesIO()
    write_file_meta_info(stream, meta)
    ours = written_file_meta(FileMeta(DX, UID(uid), ExplicitVRLittleEndian), "1.2.3.4", "HILUM_1", "ROUTER1")
    assert ours == stream.getvalue()
