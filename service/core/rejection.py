"""Notes by which an archive takes images out of use: IHE Imaging Object Change Management (RAD-66).

A rejection note is a Key Object Selection Document (PS3.16 TID 2010) whose title says why. Rejected for
quality, for patient safety or for a wrong worklist entry, an image is not to be used any more: it leaves its
study, and results that speak of it are taken back or built anew without it. Corrected images come under UIDs
of their own; the rejected ones stay rejected, also when the note comes first or they are sent again. An image
whose retention expired was not wrong: what was said of it holds, and it may come again.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import KeyObjectSelectionDocumentStorage
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.core.copies import drop_pending
from service.core.eligibility import RADIOGRAPH_CLASSES
from service.core.errors import InvalidUID
from service.core.header import Header, read_attributes
from service.core.identifiers import checked_uid
from service.core.ledger import record_event
from service.core.settlement import deliveries_of, newest_revision, settle, withdraw, withdraw_revision
from service.core.states import DeliveryState, InstanceState, Kind, StudyState
from service.core.tables import Instance, Rejection, Report, Revision, Study

_EXPIRED = "113039"
# Code values of the coding scheme DCM (PS3.16 CID 7010); IOCM knows these four.
_TITLES = {
    "113001": "Rejected for Quality Reasons",
    "113037": "Rejected for Patient Safety Reasons",
    "113038": "Incorrect Modality Worklist Entry",
    _EXPIRED: "Data Retention Policy Expired",
}
# Ignored objects were never part of a result; superseded ones are spoken for by the copy that stands.
_REJECTABLE = {
    InstanceState.RECEIVED,
    InstanceState.DECODED,
    InstanceState.ANALYSED,
    InstanceState.NOT_ANALYSED,
    InstanceState.QUARANTINED,
    InstanceState.FAILED,
}


@dataclass(frozen=True)
class Note:
    """One rejection note.

    Attributes
    ----------
    code
        Code value of its title.
    named
        SOP class by SOP Instance UID of what it names in its own study.
    elsewhere
        How many instances of other studies it names.
    """

    code: str
    named: Mapping[str, str]
    elsewhere: int

    @property
    def title(self) -> str:
        return f"{_TITLES[self.code]} ({self.code})"

    @property
    def rejects(self) -> bool:
        """Whether what it names is not to be used any more."""
        return self.code != _EXPIRED


def read_note(path: Path, header: Header) -> Note | None:
    """Return the rejection note in the Part 10 file at `path`, None when it is something else.

    What is rejected stands in Current Requested Procedure Evidence Sequence (PS3.3 C.17.6.2), where archives
    look too; the content tree repeats it.

    Raises
    ------
    Unreadable
        When it is a rejection note, and too large or too broken to be followed.
    """
    if header.sop_class_uid != KeyObjectSelectionDocumentStorage:
        return None
    titles = read_attributes(path, ["ConceptNameCodeSequence"]).get("ConceptNameCodeSequence") or []
    codes = [str(item.get("CodeValue")) for item in titles if item.get("CodingSchemeDesignator") == "DCM"]
    if not codes or codes[0] not in _TITLES:
        return None
    evidence = read_attributes(path, ["CurrentRequestedProcedureEvidenceSequence"])
    named: dict[str, str] = {}
    elsewhere = 0
    for study in evidence.get("CurrentRequestedProcedureEvidenceSequence") or []:
        found = _instances(study)
        if study.get("StudyInstanceUID") == header.study_instance_uid:
            named.update(found)
        else:
            elsewhere += len(found)
    return Note(codes[0], named, elsewhere)


def rejection_of(session: Session, study: Study, sop_instance_uid: str) -> str | None:
    """Return why this instance was rejected before it came, or None."""
    code = session.scalars(
        select(Rejection.code).where(
            Rejection.study_id == study.id, Rejection.sop_instance_uid == sop_instance_uid
        )
    ).first()
    return None if code is None else _reason(code)


def apply_note(
    session: Session, study: Study, arrival: Instance, note: Note, moment: datetime, quiet: timedelta
) -> None:
    """Take what `note` names out of use; the study's row is locked by the caller.

    Parameters
    ----------
    arrival
        The note itself, as received. Our own notes come back from archives that route everything: they speak
        of superseded results, never of images, and change nothing.
    moment, quiet
        The study is concluded again when `quiet` has passed: corrected images tend to follow.
    """
    session.flush()
    reports = set(session.scalars(select(Report.sop_instance_uid).where(Report.study_id == study.id)))
    if arrival.sop_instance_uid in reports:
        return
    arrival.reason = f"a rejection note: {note.title}"
    if not note.rejects:
        said = f"{note.title}: {len(note.named)} object(s); what was said of them holds"
        record_event(session, study, "expired", said)
        return
    there = session.scalars(select(Instance).where(Instance.study_id == study.id).with_for_update()).all()
    known = {item.sop_instance_uid for item in there}
    noted = set(
        session.scalars(select(Rejection.sop_instance_uid).where(Rejection.study_id == study.id)).all()
    )
    # An archive may reject a CT of thousands of slices: what Hilum never speaks of is not remembered.
    new = {
        uid: sop_class
        for uid, sop_class in note.named.items()
        if uid not in noted and (sop_class in RADIOGRAPH_CLASSES or uid in known or uid in reports)
    }
    session.add_all(
        Rejection(study_id=study.id, note_id=arrival.id, sop_instance_uid=uid, code=note.code) for uid in new
    )
    rejected = [item for item in there if item.sop_instance_uid in new and item.state in _REJECTABLE]
    for instance in rejected:
        drop_pending(session, instance)
        instance.state, instance.reason = InstanceState.REJECTED, _reason(note.code)
        instance.lease_token += 1
        instance.lease_owner = instance.lease_until = None
    ours = sum(uid in reports for uid in new)
    record_event(
        session,
        study,
        "rejected",
        f"{note.title}: {len(rejected)} image(s), {len(new) - ours - len(rejected)} not received yet or not "
        f"ours to use, {ours} of our report(s)"
        + (f"; {note.elsewhere} object(s) of other studies passed over" if note.elsewhere else ""),
    )
    if rejected:
        _withdraw_what_speaks_of(session, study, {item.id for item in rejected})
        study.due_at = study.due_at or moment + quiet
        if study.state != StudyState.HELD:
            study.state = StudyState.RECEIVING
        settle(session, study)


def _withdraw_what_speaks_of(session: Session, study: Study, rejected: set[int]) -> None:
    """Build and send nothing any more that speaks of these instances."""
    why = "an image of it was rejected by the archive"
    revisions = session.scalars(select(Revision).where(Revision.study_id == study.id)).all()
    about = {item.number for item in revisions if rejected & set(item.instance_ids)}
    newest = newest_revision(session, study)
    if newest is not None and newest.number in about:
        withdraw_revision(session, study, why)
        study.build += 1  # what is built without them is another report
    for delivery in deliveries_of(session, study.id):
        waits = delivery.state in (DeliveryState.PENDING, DeliveryState.PARKED)
        if waits and delivery.report.revision in about and delivery.report.kind != Kind.REJECTION:
            withdraw(delivery, f"withdrawn: {why}")


def _instances(study: Dataset) -> dict[str, str]:
    """Return SOP class by SOP Instance UID of one item of evidence; what is no UID is left out."""
    found = {}
    for series in study.get("ReferencedSeriesSequence") or []:
        for item in series.get("ReferencedSOPSequence") or []:
            with suppress(InvalidUID):
                uid = checked_uid(item.get("ReferencedSOPInstanceUID"), "ReferencedSOPInstanceUID")
                found[str(uid)] = str(item.get("ReferencedSOPClassUID") or "")
    return found


def _reason(code: str) -> str:
    return f"the archive rejected the image: {_TITLES[code]} ({code})"
