"""The audit trail as the tests read it: every record by its own parser, every message by the schema."""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import rnc2rng
from lxml import etree

SCHEMA = Path(__file__).parent / "golden" / "audit" / "message.rnc"


@cache
def schema() -> Any:
    """Return the validator of PS3.15 A.5.1.1."""
    return etree.RelaxNG(etree.fromstring(rnc2rng.dumps(rnc2rng.load(str(SCHEMA))).encode()))


def valid(message: bytes) -> Any:
    """Return the element of a message, which must be valid."""
    element = etree.fromstring(message)
    schema().assertValid(element)
    return element


def messages(data_dir: Path) -> list[Any]:
    """Return the messages of a data folder's trail, oldest first, having followed the chain of hashes."""
    previous, found = "0" * 64, []
    lines = b"".join(path.read_bytes() for path in sorted((data_dir / "audit").glob("*.log"))).splitlines()
    for expected, line in enumerate(lines, start=1):
        number, before, message = line.split(b" ", 2)
        assert (int(number), before.decode()) == (expected, previous)
        previous = hashlib.sha256(line).hexdigest()
        found.append(valid(message))
    return found


def event(message: Any) -> tuple[str, str, str]:
    """Return code of event and type (or nothing), and the outcome."""
    types = message.xpath("EventIdentification/EventTypeCode/@csd-code")
    (code,) = message.xpath("EventIdentification/EventID/@csd-code")
    return code, "".join(types), message.xpath("string(EventIdentification/@EventOutcomeIndicator)")


def of(data_dir: Path, code: str) -> list[Any]:
    """Return the messages of one kind of event."""
    return [message for message in messages(data_dir) if event(message)[0] == code]


def role(message: Any, code: str) -> Any:
    """Return the participant that has this role."""
    (found,) = message.xpath(f"ActiveParticipant[RoleIDCode/@csd-code='{code}']")
    return found


def objects(message: Any, kind: str) -> list[str]:
    """Return the identifiers of a message's objects of one kind: 110180 studies, 2 patients, 110182 nodes."""
    path = f"ParticipantObjectIdentification[ParticipantObjectIDTypeCode/@csd-code='{kind}']"
    return [str(found) for found in message.xpath(f"{path}/@ParticipantObjectID")]


def instances(message: Any) -> dict[str, int]:
    """Return the numbers of instances by SOP class."""
    return {item.get("UID"): int(item.get("NumberOfInstances")) for item in message.iter("SOPClass")}


def alert(message: Any) -> str:
    """Return what an alert says."""
    (detail,) = message.iter("ParticipantObjectDetail")
    return base64.b64decode(detail.get("value")).decode()
