"""What every way to a destination has in common: what is sent, what became of it, and what can be asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, Self

from service.core.errors import DeliveryError

IDENTITY = (
    "PatientID",
    "IssuerOfPatientID",
    "AccessionNumber",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
)
"""Keywords of what a destination is asked about a study: by whom and for which order it files it."""
IDENTIFIERS = ("PatientID", "IssuerOfPatientID", "AccessionNumber")
"""Those of them that file a report: another value is another patient or order."""


class Answer(StrEnum):
    """What a status asks of the sender."""

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
    """What became of one object: its status, or the fault that kept it from getting one.

    `tried`: whether the destination was sent any of it.
    """

    status: int | None
    fault: DeliveryError | None = None
    tried: bool = True


class Peer(Protocol):
    """A destination that is connected to.

    `proves`: whether it offers a way to confirm what it accepts.
    """

    @property
    def proves(self) -> bool: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def store(self, item: Sendable) -> Sent:
        """Send one object; a fault is in what is returned."""

    def study(self, study_instance_uid: str) -> Mapping[str, str] | None:
        """Return what the destination says of `IDENTITY`, empty values left out.

        None when it does not hold the study, or does not answer such questions.

        Raises
        ------
        TransientDelivery
            When the destination is gone; `Unanswered` when the question itself ended it.
        """

    def holds(self, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str) -> bool | None:
        """Return whether the destination has the instance; None when it does not answer such questions.

        Raises
        ------
        TransientDelivery
            When the destination is gone; `Unanswered` when the question itself ended it.
        """


def trusted(answers: Sequence[Mapping[str, object]]) -> dict[str, str] | None:
    """Return what an archive says of one study, without what is empty; None when that can't be relied on.

    Answers that contradict each other, and identifiers of several values or with lost characters, are no
    answer: a report must not be filed by them. Of a name that lost characters no more than the name is lost.
    """
    said = [{keyword: str(answer.get(keyword) or "").strip() for keyword in IDENTITY} for answer in answers]
    identifiers = [tuple(item[keyword] for keyword in IDENTIFIERS) for item in said]
    if len(set(identifiers)) != 1 or any(_is_broken(value) for value in identifiers[0]):
        return None
    (first, *_) = said
    if is_lossy(first["PatientName"]):
        del first["PatientName"]
    return {keyword: value for keyword, value in first.items() if value}


def is_lossy(name: str) -> bool:
    """Return whether a Patient's Name has lost characters on its way.

    An archive that answers in a character set of its own leaves out what does not fit, or writes "?".
    """
    return "?" in name or any(group and not group.strip("^ ") for group in name.split("="))


def _is_broken(identifier: str) -> bool:
    return any(sign in identifier for sign in ("\\", "?", "\ufffd", "['"))


def answer_to(status: int) -> Answer:
    """Return what a status means (PS3.4 B.2.3, PS3.7 C; PS3.18 10.5.3 uses the same).

    Warnings mean that the object is stored. 0111 says that the SCP has the instance already, which is what a
    delivery is for; whether it is so shows when the delivery is confirmed. A7xx clears up without anybody;
    0110 and Cxxx may, but C122 (transfer syntax not supported); the rest asks for a person.
    """
    if status in (0x0000, 0x0111, 0xB000, 0xB006, 0xB007):
        return Answer.ACCEPTED
    if status in (0xA777, 0xA778, 0xA779):
        return Answer.PARK
    if 0xA700 <= status <= 0xA7FF:
        return Answer.AGAIN
    if status == 0x0110 or (0xC000 <= status <= 0xCFFF and status != 0xC122):
        return Answer.AGAIN_A_FEW_TIMES
    return Answer.PARK


def reason_for(status: int) -> str:
    """Return a status in words."""
    known = {
        0x0117: "invalid SOP instance",
        0x0122: "SOP class not supported",
        0x0124: "not authorised",
        0xC122: "transfer syntax not supported",
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


def reason_class(sent: Sent) -> str:
    """Return the kind of a failure: one of a few, for counting."""
    status = sent.status
    if status is None:
        return sent.fault.code.removeprefix("delivery-") if sent.fault is not None else "other"
    if status in (0xA777, 0xA778, 0xA779):
        return "identity"
    if status in (0x0122, 0xC122):
        return "not-accepted"
    if status == 0x0124:
        return "not-authorised"
    families = {0xA700: "out-of-resources", 0xA900: "mismatch"}
    return "cannot-understand" if 0xC000 <= status <= 0xCFFF else families.get(status & 0xFF00, "other")
