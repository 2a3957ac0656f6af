"""Audit messages against the schema of PS3.15 A.5.1.1."""

from datetime import UTC, datetime

import pytest
from lxml import etree

from service.core import audit_message as said
from service.core.audit_message import Action, Outcome, Participant
from tests import audit_trail

_US = Participant("17", False, said.DESTINATION_ROLE, "HILUM", "hilum listener", "host.example")


def made(**changes: object) -> bytes:
    given: dict[str, object] = {
        "event": said.INSTANCES_TRANSFERRED,
        "action": Action.CREATE,
        "outcome": Outcome.SUCCESS,
        "source": "host.example",
        "participants": [Participant("ROUTER", True, said.SOURCE_ROLE, "ROUTER", address="10.0.0.1"), _US],
        "objects": [said.study("1.2.3", {"1.2.840.10008.5.1.4.1.1.1": 4}), said.patient("7", "WARD")],
    }
    return said.message(**{**given, **changes})  # type: ignore[arg-type]


def test_a_message_has_what_its_table_asks_for() -> None:
    message = audit_trail.valid(made(at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)))
    assert audit_trail.event(message) == ("110104", "", "0")
    identification = message.find("EventIdentification")
    assert identification.get("EventDateTime") == "2026-01-02T03:04:05.000Z"
    source, destination = audit_trail.role(message, "110153"), audit_trail.role(message, "110152")
    assert source.get("UserIsRequestor") == "true"
    assert source.get("AlternativeUserID") == "AETITLES=ROUTER"
    assert (source.get("NetworkAccessPointID"), source.get("NetworkAccessPointTypeCode")) == ("10.0.0.1", "2")
    assert (destination.get("UserID"), destination.get("UserIsRequestor")) == ("17", "false")
    assert destination.get("NetworkAccessPointTypeCode") == "1"
    assert audit_trail.objects(message, "110180") == ["1.2.3"]
    assert audit_trail.objects(message, "2") == ["7^^^WARD"]
    assert audit_trail.instances(message) == {"1.2.840.10008.5.1.4.1.1.1": 4}


def test_an_alert_says_whom_and_why() -> None:
    message = audit_trail.valid(
        made(
            event=said.SECURITY_ALERT,
            event_type=said.NODE_AUTHENTICATION,
            objects=[said.node("10.0.0.9", "née")],
        )
    )
    assert audit_trail.objects(message, "110182") == ["10.0.0.9"]
    assert audit_trail.alert(message) == "née"


@pytest.mark.parametrize(
    "text",
    [
        '"/><x a="',
        "]]>",
        "line\r\nbreak\ttab",
        "\0\x01\x7f\x85\ufffe\ud800",
        "<!DOCTYPE x>",
        "&amp;",
        "金糸雀",
        "x" * 5000,
    ],
)
def test_whatever_a_peer_is_called_the_message_is_valid_and_one_line(text: str) -> None:
    content = made(
        description=text,
        participants=[Participant(text, True, said.SOURCE_ROLE, text, text, text)],
        objects=[said.patient(text, text), said.node(text, text), said.study(text, {text: 1})],
    )
    assert len(content.splitlines()) == 1
    assert len(content) < 10_000
    message = audit_trail.valid(content)
    assert len(message.findall("ActiveParticipant")) == 1
    assert len(message.findall("ParticipantObjectIdentification")) == 3
    assert not message.xpath("//x")


@pytest.mark.parametrize(
    "taken", ["EventIdentification/EventID", "AuditSourceIdentification", "ActiveParticipant"]
)
def test_the_schema_misses_what_is_left_out(taken: str) -> None:
    message = etree.fromstring(made())
    for found in message.findall(taken):
        found.getparent().remove(found)
    assert not audit_trail.schema().validate(message)
