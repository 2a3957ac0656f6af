"""Command sets of C-STORE without pydicom's objects: every one in its usual form is told by its bytes.

A command set is Implicit VR Little Endian (PS3.7 6.3.1). A request of another form (other elements, values
that are none) is left to pynetdicom, and so is every other message.
"""

import re
from io import BytesIO
from struct import Struct, error

from pydicom.uid import UID
from pynetdicom.dimse_primitives import C_STORE

from service.core.errors import InvalidUID
from service.core.identifiers import checked_uid

_ELEMENT, _SHORT, _LONG = Struct("<HHL"), Struct("<H"), Struct("<L")
_GROUP_LENGTH, _SOP_CLASS_UID, _COMMAND_FIELD, _MESSAGE_ID, _RESPONDED_TO = (
    0x0000,
    0x0002,
    0x0100,
    0x0110,
    0x0120,
)
_PRIORITY, _DATA_SET_TYPE, _STATUS, _SOP_INSTANCE_UID = 0x0700, 0x0800, 0x0900, 0x1000
_MOVE_ORIGINATOR, _MOVE_MESSAGE_ID = 0x1030, 0x1031
_NUMBERS = {_COMMAND_FIELD, _MESSAGE_ID, _PRIORITY, _DATA_SET_TYPE, _MOVE_MESSAGE_ID}
_NEEDED = {_SOP_CLASS_UID, _COMMAND_FIELD, _MESSAGE_ID, _PRIORITY, _DATA_SET_TYPE, _SOP_INSTANCE_UID}
# PS3.7 E.1.
_C_STORE_RQ, _C_STORE_RSP, _NO_DATA_SET = 0x0001, 0x8001, 0x0101
_AE_TITLE = re.compile(rb"[!-\[\]-~]{1,16} *")


def store_request(command_set: bytes, context_id: int) -> C_STORE | None:
    """Return the C-STORE-RQ whose data set is still to come; None when it takes pynetdicom to tell."""
    values = _values(command_set)
    if values is None or not _NEEDED <= values.keys() <= _NEEDED | {_MOVE_ORIGINATOR, _MOVE_MESSAGE_ID}:
        return None
    numbers = {element: _SHORT.unpack(values[element])[0] for element in _NUMBERS & values.keys()}
    if numbers[_COMMAND_FIELD] != _C_STORE_RQ or numbers[_DATA_SET_TYPE] == _NO_DATA_SET:
        return None
    request = C_STORE()
    try:
        request.AffectedSOPClassUID = _uid(values[_SOP_CLASS_UID], "AffectedSOPClassUID")
        request.AffectedSOPInstanceUID = _uid(values[_SOP_INSTANCE_UID], "AffectedSOPInstanceUID")
        request.MessageID = numbers[_MESSAGE_ID]
        request.Priority = numbers[_PRIORITY]
    except (InvalidUID, ValueError):
        return None
    if (originator := values.get(_MOVE_ORIGINATOR)) is not None:
        if not _AE_TITLE.fullmatch(originator):
            return None
        request.MoveOriginatorApplicationEntityTitle = originator.decode("ascii").strip()
    if _MOVE_MESSAGE_ID in numbers:
        request.MoveOriginatorMessageID = numbers[_MOVE_MESSAGE_ID]
    request.DataSet = BytesIO()
    request._context_id = context_id
    return request


def store_response(primitive: C_STORE) -> bytes | None:
    """Return the command set of a C-STORE-RSP; None for one that says more than its status."""
    more = (primitive.ErrorComment, primitive.OffendingElement)
    if primitive.MessageIDBeingRespondedTo is None or primitive.Status is None or more != (None, None):
        return None
    elements = b"".join(
        (
            _uid_element(_SOP_CLASS_UID, primitive.AffectedSOPClassUID),
            _number_element(_COMMAND_FIELD, _C_STORE_RSP),
            _number_element(_RESPONDED_TO, primitive.MessageIDBeingRespondedTo),
            _number_element(_DATA_SET_TYPE, _NO_DATA_SET),
            _number_element(_STATUS, primitive.Status),
            _uid_element(_SOP_INSTANCE_UID, primitive.AffectedSOPInstanceUID),
        )
    )
    return _ELEMENT.pack(0, _GROUP_LENGTH, 4) + _LONG.pack(len(elements)) + elements


def _values(command_set: bytes) -> dict[int, bytes] | None:
    """Return the values of group 0000 by element number; None when it is not what its group length says."""
    found: dict[int, bytes] = {}
    position, latest = 0, -1
    try:
        while position < len(command_set):
            group, element, length = _ELEMENT.unpack_from(command_set, position)
            position += _ELEMENT.size
            value = command_set[position : position + length]
            if group or element <= latest or len(value) < length or (element in _NUMBERS and length != 2):
                return None
            found[element], latest = value, element
            position += length
        whole = _LONG.unpack(found.pop(_GROUP_LENGTH))[0] == len(command_set) - _ELEMENT.size - _LONG.size
    except (error, KeyError):
        return None
    return found if whole else None


def _uid(value: bytes, keyword: str) -> UID:
    return checked_uid(value.decode("latin-1").rstrip("\0 "), keyword)


def _uid_element(element: int, uid: UID | None) -> bytes:
    value = (uid or "").encode("ascii")
    value += b"\0" * (len(value) % 2)
    return _ELEMENT.pack(0, element, len(value)) + value


def _number_element(element: int, value: int) -> bytes:
    return _ELEMENT.pack(0, element, 2) + _SHORT.pack(value)
