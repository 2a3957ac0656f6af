"""A study by what people have of it: its UID, or, for those who may see patients, accession number or ID."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.api import schemas, status
from service.core.tables import Study, Subject, Tombstone
from service.core.tombstones import tombstone_of

MOST = 100
_BEGINS_A_UID = re.compile(r"[0-9]+\.[0-9.]*")


@dataclass(frozen=True)
class Found:
    """The newest studies that fit; `erased` where there is none, but was one of this UID."""

    studies: Sequence[schemas.StudySummary]
    erased: Tombstone | None = None


def find_studies(session: Session, text: str, *, by_patient: bool) -> Found:
    """Return the studies whose UID begins so, or whose accession number or patient ID is exactly that."""
    text = "".join(letter for letter in text if letter.isprintable()).strip()
    if not text:
        return Found([])
    conditions = [Study.study_instance_uid == text]
    if by_patient:
        # One query an index.
        for column in (Subject.accession_number, Subject.patient_id):
            conditions.append(Study.id.in_(select(Subject.study_id).where(column == text)))
    if _BEGINS_A_UID.fullmatch(text):
        conditions.append(Study.study_instance_uid.startswith(text))
    for fits in conditions:
        studies = session.scalars(select(Study).where(fits).order_by(Study.id.desc()).limit(MOST)).all()
        if studies:
            return Found(status.summaries_of(session, studies))
    return Found([], tombstone_of(session, text))


def patients_of(session: Session, study_instance_uid: str) -> Sequence[Subject]:
    """Return whose study it is; more than one where it is held. Nobody once its files are gone."""
    return session.scalars(
        select(Subject)
        .join(Study, Study.id == Subject.study_id)
        .where(Study.study_instance_uid == study_instance_uid, ~Subject.patient_id.startswith("hmac-sha256:"))
        .order_by(Subject.id)
    ).all()
