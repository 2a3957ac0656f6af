"""What readers say of results, over the API: given, listed, and exported."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydicom.uid import UID
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import StreamingResponse

from service.api import schemas
from service.api.actions import StudyUID
from service.api.find import patients_of
from service.api.roles import Act, Caller, may
from service.core import feedback as core
from service.core.audit import Audit
from service.core.feedback import LONGEST_NAME, LONGEST_NOTE, Contradictory, NotTaken, Said
from service.core.feedback_csv import lines
from service.core.feedback_link import Linked
from service.core.ledger import Ledger
from service.core.live import Live
from service.core.results import Finding
from service.core.states import Assessment, FeedbackSource
from service.core.tables import Feedback, Study

_CSV = "text/csv; charset=utf-8"
_LONGEST_CHUNK = 64 * 1024


class Given(BaseModel):
    """What a reader says of the AI result of a study.

    `finding` is their own (present, absent, indeterminate). `reader` is a name, else that of the token.
    `revision` is the revision of the report that they saw, else the newest.
    """

    model_config = ConfigDict(extra="forbid")

    assessment: Assessment
    finding: Finding | None = None
    note: Annotated[str, Field(max_length=LONGEST_NOTE)] = ""
    reader: Annotated[str, Field(max_length=LONGEST_NAME)] = ""
    revision: Annotated[int | None, Field(ge=1, le=2**31 - 1)] = None


@dataclass(frozen=True)
class About:
    """What the page behind a link says: as much of a study as it takes to know it again.

    `accession_ending` are the last letters of its accession number.
    """

    revision: int
    newest: int
    finding: str
    probability: float | None
    received_at: datetime
    accession_ending: str
    is_expired: bool


def give(
    live: Live,
    ledger: Ledger,
    audit: Audit,
    study_instance_uid: UID,
    given: Given,
    source: FeedbackSource,
    caller: Caller,
    *,
    address: str = "",
) -> schemas.FeedbackOut:
    """Store what a reader says and return the entry; or answer 404, 409 where none is taken, 422."""
    said = Said(
        given.assessment, source, given.finding, given.note, given.reader, caller.name or "", given.revision
    )
    with ledger.write() as session:
        study = session.scalars(
            select(Study).where(Study.study_instance_uid == study_instance_uid).with_for_update()
        ).one_or_none()
        if study is None:
            raise HTTPException(404, "no such study")
        try:
            entry, is_new = core.store(session, study, said, sr=live.settings.sends_assessments)
        except NotTaken as fault:
            raise HTTPException(409, f"no feedback on this study: {fault}") from None
        except Contradictory as fault:
            raise HTTPException(422, str(fault)) from None
        patients = [
            (item.patient_id, item.issuer_of_patient_id) for item in patients_of(session, study_instance_uid)
        ]
    if is_new:
        audit.feedback_given(study_instance_uid, patients, entry.user or entry.reader, address)
    return _out(entry, is_current=True, names=True)


def listed(ledger: Ledger, study_instance_uid: UID, caller: Caller) -> list[schemas.FeedbackOut]:
    """Return what readers said of a study, the newest first; or answer 404."""
    with ledger.read() as session:
        study_id = session.scalars(
            select(Study.id).where(Study.study_instance_uid == study_instance_uid)
        ).one_or_none()
        if study_id is None:
            raise HTTPException(404, "no such study")
        return outs(session, study_id, caller)


def outs(session: Session, study_id: int, caller: Caller) -> list[schemas.FeedbackOut]:
    """Return what readers said of a study that is there; who they are and their notes if the role may see."""
    entries = core.entries_of(session, study_id)
    counts = core.current(entries)
    names = caller.may(Act.SEE_READERS)
    return [_out(entry, is_current=entry.id in counts, names=names) for entry in entries]


def about(session: Session, link: Linked) -> About:
    """Return what the page behind a link says, or answer 404 when its study was erased."""
    study = session.scalars(
        select(Study).where(Study.study_instance_uid == link.study_instance_uid)
    ).one_or_none()
    if study is None or study.removing == "purge":
        raise HTTPException(404, "this study is not here any more")
    try:
        said = core.assessed(session, study, link.revision)
    except NotTaken as fault:
        raise HTTPException(409, f"no feedback on this study: {fault}") from None
    accession = [item.accession_number for item in patients_of(session, link.study_instance_uid)]
    return About(
        said.revision,
        study.revision,
        said.finding,
        said.probability,
        study.received_at,
        accession[0][-4:] if len(accession) == 1 else "",
        study.expired_at is not None,
    )


def api_routes(live: Live, ledger: Ledger, audit: Audit) -> APIRouter:
    """Return the routes of the API."""
    router = APIRouter()
    zone = live.settings.zone

    def _here(moment: datetime) -> datetime:
        """Take a day without an hour, and an hour without a zone, for those of the site."""
        try:
            return moment.astimezone(zone) if moment.tzinfo else moment.replace(tzinfo=zone).astimezone(zone)
        except OverflowError:
            raise ValueError("beyond the years 1 to 9999") from None

    moment = Annotated[datetime | None, AfterValidator(lambda value: value and _here(value))]

    @router.post(
        "/api/studies/{study_instance_uid}/feedback",
        status_code=201,
        responses={409: {"description": "No feedback is taken on this study"}},
    )
    def give_feedback(
        caller: Annotated[Caller, may(Act.ASSESS)], study_instance_uid: StudyUID, given: Given
    ) -> schemas.FeedbackOut:
        """Say what a reader thinks of the AI result of one study; the result stays as it is.

        A changed mind is a new entry; the newest one of each reader counts. Saying the same again is none.
        """
        return give(live, ledger, audit, study_instance_uid, given, FeedbackSource.API, caller)

    @router.get("/api/studies/{study_instance_uid}/feedback")
    def list_feedback(
        caller: Annotated[Caller, may(Act.READ)], study_instance_uid: StudyUID
    ) -> list[schemas.FeedbackOut]:
        """List what readers said of one study, the newest first; viewers see neither names nor notes."""
        return listed(ledger, study_instance_uid, caller)

    @router.get(
        "/api/feedback.csv",
        dependencies=[may(Act.SEE_READERS)],
        response_class=Response,
        responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
    )
    def export(
        since: Annotated[moment, Query(alias="from")] = None,
        until: Annotated[moment, Query(alias="to")] = None,
        notes: bool = False,
    ) -> StreamingResponse:
        """Export feedback from a moment on (`from`) up to another one (`to`, not within), the oldest first.

        It names studies by their UID alone. Notes can hold anything, and come with `notes` only.
        """
        named = {"Content-Disposition": 'attachment; filename="feedback.csv"'}

        def content() -> Iterator[str]:
            chunk = ""
            for line in lines(core.entries_between(ledger, since, until), notes=notes):
                chunk += line
                if len(chunk) > _LONGEST_CHUNK:
                    yield chunk
                    chunk = ""
            yield chunk

        return StreamingResponse(content(), media_type=_CSV, headers=named)

    return router


def _out(entry: Feedback, *, is_current: bool, names: bool) -> schemas.FeedbackOut:
    return schemas.FeedbackOut(
        at=entry.at,
        assessment=entry.assessment,
        finding=entry.own_finding,
        note=entry.note if names else None,
        reader=entry.reader if names else None,
        user=(entry.user or None) if names else None,
        source=entry.source,
        revision=entry.revision,
        ai_finding=entry.finding,
        ai_probability=entry.probability,
        review_share=entry.review_share,
        current=is_current,
    )
