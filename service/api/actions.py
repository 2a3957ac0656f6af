"""What is done for a study on request, from the API and from the pages alike."""

from typing import Annotated

from fastapi import Depends, HTTPException
from pydicom.uid import UID
from sqlalchemy import select

from service.api import schemas, status
from service.api.roles import Act, Caller
from service.core.errors import InvalidUID
from service.core.identifiers import checked_uid
from service.core.ledger import Ledger
from service.core.retry import NOTHING_TO_TRY, retry_study
from service.core.tables import Study


def _named(study_instance_uid: str) -> UID:
    try:
        return checked_uid(study_instance_uid, "StudyInstanceUID")
    except InvalidUID:
        raise HTTPException(404, "no such study") from None


StudyUID = Annotated[UID, Depends(_named)]
"""The study of the path; what is no UID is no study, and the ledger is not asked for it."""


def find(ledger: Ledger, study_instance_uid: UID) -> schemas.StudyOut:
    """Return all that is known of a study, or answer 404."""
    with ledger.read() as session:
        found = status.study(session, study_instance_uid)
    if found is None:
        raise HTTPException(404, "no such study")
    return found


def retry(ledger: Ledger, study_instance_uid: UID, caller: Caller, *, as_built: bool) -> bool:
    """Give what failed or was parked of a study another try, or answer 403, 404, or 409 without its files.

    Returns whether there was anything to try again.
    """
    if as_built:
        caller.must(Act.SEND_AS_BUILT)
    with ledger.write() as session:
        found = session.scalars(
            select(Study).where(Study.study_instance_uid == study_instance_uid)
        ).one_or_none()
        if found is None:
            raise HTTPException(404, "no such study")
        why = retry_study(session, found, as_built=as_built, by=caller.name or "a person")
    if why == NOTHING_TO_TRY:
        return False
    if why:
        raise HTTPException(409, f"no other try: {why}")
    return True
