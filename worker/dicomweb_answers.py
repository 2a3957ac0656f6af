"""What DICOMweb servers answer: store instances responses and matches (PS3.18 F, PS3.19 A.1)."""

import json
from collections.abc import Iterable, Iterator
from email.message import Message
from typing import Any
from xml.etree import ElementTree

from pydicom.datadict import tag_for_keyword

from service.core.errors import HilumError
from worker.peer import IDENTITY, trusted

_FAILURES = ("FailedSOPSequence", "OtherFailuresSequence")
_PERSON_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


def store_response(media_type: str, content: bytes) -> dict[str, Any] | None:
    """Return a store instances response (PS3.18 I.1) as the JSON model has it; None when it is none."""
    response = _json(content) if "json" in media_type else _xml(content) if "xml" in media_type else None
    if isinstance(response, list) and len(response) == 1:
        (response,) = response
    return response if isinstance(response, dict) else None


def only_part(media_type: str, content: bytes) -> bytes | None:
    """Return the one part of a multipart answer (PS3.18 8.6.1.2); None when it is something else.

    Cut out as it is: a film has megabytes, and parsers of mails look at every line.
    """
    head = Message()
    head["Content-Type"] = media_type
    boundary = head.get_boundary()
    if head.get_content_maintype() != "multipart" or not boundary:
        return None
    delimiter = f"--{boundary}".encode("latin-1", "replace")
    begin = content.find(b"\r\n\r\n", content.find(delimiter)) + 4
    end = content.rfind(b"\r\n" + delimiter + b"--")
    if delimiter not in content[: begin - 4] or not 4 <= begin <= end:
        return None
    return None if content.find(b"\r\n" + delimiter, begin, end) >= 0 else content[begin:end]


def failure_in(response: dict[str, Any]) -> int | None:
    """Return why the one object that was sent failed, None when the response names no failure.

    A failure without a reason is a processing failure.
    """
    failed = [item for keyword in _FAILURES for item in _items(response, keyword)]
    return (next(_numbers(failed, "FailureReason"), 0) or HilumError.dimse_status) if failed else None


def status_in(response: dict[str, Any]) -> int | None:
    """Return the status of the one object that was sent; None when the response names no object.

    A failure reason, else a warning reason, else 0000.
    """
    if (failure := failure_in(response)) is not None:
        return failure
    stored = _items(response, "ReferencedSOPSequence")
    return next(_numbers(stored, "WarningReason"), 0x0000) if stored else None


def matches(code: int, media_type: str, content: bytes) -> list[Any] | None:
    """Return the matches of a search, none of them for 204; None when that is no answer to one."""
    if code == 204:
        return []
    found = _json(content) if code == 200 and "json" in media_type else None
    return found if isinstance(found, list) else None


def attributes(found: Iterable[Any], study_instance_uid: str) -> dict[str, str] | None:
    """Return the patient's and the order's attributes of the match that is this study, None without it."""
    for match in found:
        if text_of(match, "StudyInstanceUID") == study_instance_uid:
            return trusted([{keyword: text_of(match, keyword) for keyword in IDENTITY}])
    return None


def sop_instance_uids(found: Iterable[Any]) -> set[str]:
    """Return the SOP Instance UIDs of the matches."""
    return {text_of(match, "SOPInstanceUID") for match in found}


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _xml(content: bytes) -> dict[str, Any] | None:
    """Return the attributes of the native DICOM model that matter here, as the JSON model has them."""
    if b"<!" in content:
        return None  # a document type, with entities that may grow: the model has none
    try:
        root = ElementTree.fromstring(content)  # noqa: S314
        return _native(root) if _name(root) == "NativeDicomModel" else None
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError):
        return None


def _native(parent: ElementTree.Element) -> dict[str, Any]:
    return {
        attribute.get("tag", ""): {
            "Value": [_native(child) if _name(child) == "Item" else child.text for child in attribute]
        }
        for attribute in parent
    }


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _values(attributes: Any, keyword: str) -> list[Any]:
    element = attributes.get(f"{tag_for_keyword(keyword):08X}") if isinstance(attributes, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _items(attributes: Any, keyword: str) -> list[Any]:
    return [item for item in _values(attributes, keyword) if isinstance(item, dict)]


def _numbers(items: Iterable[Any], keyword: str) -> Iterator[int]:
    for item in items:
        for value in _values(item, keyword):
            try:
                yield int(value) & 0xFFFF
            except (TypeError, ValueError, OverflowError):
                continue


def texts_of(attributes: Any, keyword: str) -> list[str]:
    """Return the values of an attribute of a match, as text."""
    return [str(value).strip() for value in _values(attributes, keyword) if value is not None]


def text_of(attributes: Any, keyword: str) -> str:
    """Return the first value of an attribute of a match, empty without any."""
    value = next(iter(_values(attributes, keyword)), None)
    if isinstance(value, dict):
        groups = [str(value.get(group) or "") for group in _PERSON_NAME_GROUPS]
        return "=".join(groups).rstrip("=")
    return "" if value is None else str(value).strip()
