"""Audit messages in the schema of PS3.15 A.5.1, one XML document on one line each.

A patient is named by ID and issuer alone. The standard leaves the name to the user (tables A.5.3.7-1 and
A.5.3.8-1), the trail outlives an erasure, and whoever may read the ID finds the name in the PACS.
"""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import ip_address
from xml.etree.ElementTree import Element, SubElement, tostring

# What XML 1.0 can't hold (production 2), and what would break the line.
_NO_CHARACTER = re.compile(r"[^\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LONGEST, _LONGEST_QUERY = 256, 4096
_APPLICATION_SERVER = "4"
# The trail names the SOP class that is queried: that of C-FIND, which QIDO-RS has in common (PS3.4 C.4.1).
_STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"


@dataclass(frozen=True)
class Code:
    """A coded value (PS3.16)."""

    value: str
    meaning: str
    scheme: str = "DCM"


APPLICATION_ACTIVITY = Code("110100", "Application Activity")
INSTANCES_ACCESSED = Code("110103", "DICOM Instances Accessed")
INSTANCES_TRANSFERRED = Code("110104", "DICOM Instances Transferred")
QUERY = Code("110112", "Query")
STUDY_DELETED = Code("110105", "DICOM Study Deleted")
SECURITY_ALERT = Code("110113", "Security Alert")
USER_AUTHENTICATION = Code("110114", "User Authentication")
APPLICATION_START = Code("110120", "Application Start")
APPLICATION_STOP = Code("110121", "Application Stop")
LOGIN = Code("110122", "Login")
LOGOUT = Code("110123", "Logout")
NODE_AUTHENTICATION = Code("110126", "Node Authentication")
SOFTWARE_CONFIGURATION = Code("110131", "Software Configuration")
RESTRICTED_FUNCTION = Code("110132", "Use of Restricted Function")
# Of the alerts of CID 403, which may be extended, none is about what a node sends.
UNREADABLE_OBJECT = Code("unreadable-object", "Object Refused Unread", "99HILUM")
APPLICATION = Code("110150", "Application")
DESTINATION_ROLE = Code("110152", "Destination Role ID")
SOURCE_ROLE = Code("110153", "Source Role ID")
_STUDY_INSTANCE_UID = Code("110180", "Study Instance UID")
_SOP_CLASS_UID = Code("110181", "SOP Class UID")
_NODE_ID = Code("110182", "Node ID")
_PATIENT_NUMBER = Code("2", "Patient Number", "RFC-3881")


class Action(StrEnum):
    """Event Action Code."""

    CREATE = "C"
    READ = "R"
    DELETE = "D"
    EXECUTE = "E"


class Outcome(StrEnum):
    """Event Outcome Indicator: a minor failure was dealt with, a serious one ended something."""

    SUCCESS = "0"
    MINOR_FAILURE = "4"
    SERIOUS_FAILURE = "8"


@dataclass(frozen=True)
class Participant:
    """Who took part (A.5.2): a process by its number, a user or a peer by name.

    Attributes
    ----------
    address
        IP address or host name.
    """

    user_id: str
    is_requestor: bool
    role: Code | None = None
    ae_title: str = ""
    user_name: str = ""
    address: str = ""


@dataclass(frozen=True)
class Object:
    """What an event was about; `sop_classes` are the numbers of instances by SOP Class UID.

    `query` is what was asked for, which takes the place of a name.
    """

    identifier: str
    kind: Code
    type_code: str
    role: str | None = None
    name: str = ""
    sop_classes: Mapping[str, int] | None = None
    alert: str = ""
    query: str = ""


def study(study_instance_uid: str, sop_classes: Mapping[str, int]) -> Object:
    """Return a study as an object of an event."""
    return Object(study_instance_uid, _STUDY_INSTANCE_UID, "2", "3", study_instance_uid, sop_classes)


def patient(patient_id: str, issuer: str = "") -> Object:
    """Return a patient, by ID and issuer as HL7 writes them (CX), without the name."""
    return Object(f"{patient_id}^^^{issuer}" if issuer else patient_id, _PATIENT_NUMBER, "1", "1")


def query(asked: str) -> Object:
    """Return a query as an object of an event (A.5.3.10)."""
    return Object(_STUDY_ROOT_FIND, _SOP_CLASS_UID, "2", "3", query=asked)


def node(address: str, alert: str) -> Object:
    """Return the node that an alert is about, and what it says."""
    return Object(address, _NODE_ID, "2", alert=alert)


def message(
    event: Code,
    action: Action,
    outcome: Outcome,
    source: str,
    participants: Sequence[Participant],
    objects: Sequence[Object] = (),
    event_type: Code | None = None,
    description: str = "",
    at: datetime | None = None,
) -> bytes:
    """Return an audit message as one line of UTF-8, without a line break and with no XML declaration.

    Parameters
    ----------
    source
        Audit Source ID: who writes it.
    description
        Why it did not succeed.
    """
    root = Element("AuditMessage")
    moment = (at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="milliseconds")
    identification = SubElement(
        root,
        "EventIdentification",
        EventActionCode=action,
        EventDateTime=moment.replace("+00:00", "Z"),
        EventOutcomeIndicator=outcome,
    )
    _code(identification, "EventID", event)
    if event_type is not None:
        _code(identification, "EventTypeCode", event_type)
    if description:
        SubElement(identification, "EventOutcomeDescription").text = _clean(description)
    for participant in participants:
        _participant(root, participant)
    identified = SubElement(root, "AuditSourceIdentification", AuditSourceID=_clean(source))
    SubElement(identified, "AuditSourceTypeCode", {"csd-code": _APPLICATION_SERVER})
    for item in objects:
        _object(root, item)
    return str(tostring(root, encoding="unicode")).encode()


def _participant(root: Element, participant: Participant) -> None:
    attributes = {
        "UserID": _clean(participant.user_id),
        "UserIsRequestor": "true" if participant.is_requestor else "false",
    }
    if participant.ae_title:
        attributes["AlternativeUserID"] = f"AETITLES={_clean(participant.ae_title)}"
    if participant.user_name:
        attributes["UserName"] = _clean(participant.user_name)
    if participant.address:
        attributes["NetworkAccessPointID"] = _clean(participant.address)
        attributes["NetworkAccessPointTypeCode"] = "2" if _is_address(participant.address) else "1"
    element = SubElement(root, "ActiveParticipant", attributes)
    if participant.role is not None:
        _code(element, "RoleIDCode", participant.role)


def _object(root: Element, item: Object) -> None:
    attributes = {"ParticipantObjectID": _clean(item.identifier), "ParticipantObjectTypeCode": item.type_code}
    if item.role is not None:
        attributes["ParticipantObjectTypeCodeRole"] = item.role
    element = SubElement(root, "ParticipantObjectIdentification", attributes)
    _code(element, "ParticipantObjectIDTypeCode", item.kind)
    # The schema wants a name or a query; where there is none to tell, it is empty.
    if item.query:
        coded = b64encode(_clean(item.query, _LONGEST_QUERY).encode()).decode("ascii")
        SubElement(element, "ParticipantObjectQuery").text = coded
    else:
        SubElement(element, "ParticipantObjectName").text = _clean(item.name)
    if item.alert:
        coded = b64encode(_clean(item.alert).encode()).decode("ascii")
        SubElement(element, "ParticipantObjectDetail", type="Alert Description", value=coded)
    if item.sop_classes:
        described = SubElement(element, "ParticipantObjectDescription")
        for uid, number in sorted(item.sop_classes.items()):
            SubElement(described, "SOPClass", UID=_clean(uid), NumberOfInstances=str(number))


def _code(parent: Element, name: str, code: Code) -> None:
    attributes = {"csd-code": code.value, "codeSystemName": code.scheme, "originalText": code.meaning}
    SubElement(parent, name, attributes)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _clean(text: str, longest: int = _LONGEST) -> str:
    """Return text that XML can hold, on one line and of bounded length: peers chose much of it."""
    return _NO_CHARACTER.sub("�", text)[:longest]
