"""Storage SCU: one association to one destination, with just the contexts that are needed."""

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.presentation import build_context

from service.core.errors import DeliveryError, NotAccepted, PermanentDelivery, TransientDelivery

_NOT_ACCEPTED = "the destination does not accept this SOP class in our transfer syntax"
_UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


class Answer(StrEnum):
    """What a C-STORE status asks of the sender."""

    ACCEPTED = "accepted"
    AGAIN = "again"
    AGAIN_A_FEW_TIMES = "again a few times"
    PARK = "park"


@dataclass(frozen=True)
class Sendable:
    """One object to send, as the ledger knows it."""

    path: Path
    sop_class_uid: str
    transfer_syntax_uid: str


@dataclass(frozen=True)
class Sent:
    """What became of one object: its status, or the fault that kept it from getting one."""

    status: int | None
    fault: DeliveryError | None = None


def answer_to(status: int) -> Answer:
    """Return what a status means (PS3.4 B.2.3, PS3.7 C).

    Warnings mean that the object is stored. 0111 says that the SCP has the instance already, which is what a
    delivery is for. A7xx clears up without anybody; 0110 and Cxxx may; the rest asks for a person.
    """
    if status in (0x0000, 0x0111, 0xB000, 0xB006, 0xB007):
        return Answer.ACCEPTED
    if status in (0xA777, 0xA778, 0xA779):
        return Answer.PARK
    if 0xA700 <= status <= 0xA7FF:
        return Answer.AGAIN
    if status == 0x0110 or 0xC000 <= status <= 0xCFFF:
        return Answer.AGAIN_A_FEW_TIMES
    return Answer.PARK


def reason_for(status: int) -> str:
    """Return a status in words."""
    known = {
        0x0117: "invalid SOP instance",
        0x0122: "SOP class not supported",
        0x0124: "not authorised",
        0xA777: "identity: patient ID missing",
        0xA778: "identity: patient ID conflicts",
        0xA779: "identity: patient or study mismatch",
    }
    families = {
        0xA700: "out of resources",
        0xA900: "data set does not match SOP class",
        0xC000: "cannot understand",
    }
    words = known.get(status) or families.get(status & 0xF000 if status >= 0xC000 else status & 0xFF00)
    return f"the destination answered {status:04X}{f' ({words})' if words else ''}"


def send(
    objects: Sequence[Sendable], *, calling_ae_title: str, called_ae_title: str, host: str, port: int
) -> Iterator[Sent]:
    """Send each object over one association, yielding what became of each in order.

    When the association is lost, every object without an answer gets a `TransientDelivery`.

    Raises
    ------
    TransientDelivery
        When no association comes about.
    NotAccepted
        When the destination accepts none of the objects' SOP classes.
    """
    association = _associate(objects, calling_ae_title, called_ae_title, host, port)
    try:
        for item in objects:
            yield _send_one(association, item)
    finally:
        if association.is_established:
            association.release()


def _associate(
    objects: Sequence[Sendable], calling_ae_title: str, called_ae_title: str, host: str, port: int
) -> Association:
    entity = AE(calling_ae_title)
    entity.acse_timeout, entity.dimse_timeout, entity.network_timeout = 10, 60, 60
    entity.connection_timeout = 10
    entity.requested_contexts = [
        build_context(sop_class, list(_UNCOMPRESSED if syntax in _UNCOMPRESSED else (syntax,)))
        for sop_class, syntax in dict.fromkeys(
            (item.sop_class_uid, item.transfer_syntax_uid) for item in objects
        )
    ]
    association = entity.associate(
        host, port, ae_title=called_ae_title, evt_handlers=[(evt.EVT_CONN_OPEN, _set_no_delay)]
    )
    if association.is_established:
        return association
    if association.rejected_contexts and not association.accepted_contexts:
        raise NotAccepted(_NOT_ACCEPTED)
    if association.is_rejected:
        primitive: Any = association.acceptor.primitive
        raise TransientDelivery(f"{called_ae_title} rejected the association ({primitive.reason_str})")
    raise TransientDelivery(f"{called_ae_title} at {host}:{port} cannot be reached")


def _send_one(association: Association, item: Sendable) -> Sent:
    accepted = {str(context.abstract_syntax) for context in association.accepted_contexts}
    if item.sop_class_uid not in accepted:
        return Sent(None, NotAccepted(_NOT_ACCEPTED))
    if not association.is_established:
        return Sent(None, TransientDelivery("the association ended before the object was sent"))
    try:
        status = association.send_c_store(_read(item))
    except RuntimeError:
        return Sent(None, TransientDelivery("the association ended while the object was sent"))
    except Exception as fault:  # no context for this class and syntax, or a file that cannot be read
        return Sent(None, PermanentDelivery(f"the object cannot be sent ({type(fault).__name__})"))
    if "Status" not in status:
        return Sent(None, TransientDelivery("the destination did not answer in time"))
    return Sent(int(status.Status))


def _read(item: Sendable) -> Dataset:
    """Return the object; a file from before Part 10 does not say itself how it is encoded."""
    dataset = dcmread(item.path, force=True)
    dataset.file_meta.TransferSyntaxUID = UID(item.transfer_syntax_uid)
    return dataset


def _set_no_delay(event: Event) -> None:
    """Small objects wait 40 ms each under Nagle's algorithm: ten times the throughput without it."""
    connection: Any = event.assoc.dul.socket
    connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
