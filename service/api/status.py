"""What the ledger says of studies and of the gateway, as the API shows it."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session, selectinload

from service.api import schemas
from service.core import feedback, models
from service.core.pauses import pauses
from service.core.population import Described, Population, compared
from service.core.rules import Decision
from service.core.states import AnalysisState, DeliveryState, InstanceState
from service.core.tables import Analysis, Instance, Model, Outbox, Pause, Report, Study

# Of no row: the greatest that a column of ids can hold in PostgreSQL.
_NO_ID = 2**31 - 1
FeedbackFilter = Literal["to_review", "none", "given", "agree", "disagree", "unsure", "not_usable"]


@dataclass(frozen=True)
class Wanted:
    """Which studies are listed; None is no condition.

    `attention`: whether a person is needed. `feedback`: see `service.core.feedback.wants`. `backfilled`:
    whether a back-fill fetched it.
    """

    state: str | None = None
    finding: str | None = None
    attention: bool | None = None
    since: datetime | None = None
    until: datetime | None = None
    feedback: str | None = None
    backfilled: bool | None = None


@dataclass(frozen=True)
class Listed:
    """A page of studies, newest first; `older` and `newer` are the cursors of the pages beside it."""

    studies: Sequence[schemas.StudySummary]
    older: int | None
    newer: int | None


def list_studies(
    session: Session, wanted: Wanted, limit: int, cursor: int | None = None, newer: int | None = None
) -> Listed:
    """Return the newest studies of those before `cursor`, or the oldest of those after `newer`.

    Both are ids: a page costs the same wherever it lies.
    """
    query = select(Study).where(*_conditions(session, wanted)).limit(limit + 1)
    if newer is not None:
        found = session.scalars(query.where(Study.id > newer).order_by(Study.id)).all()
        page, more, before = found[:limit][::-1], newer > 0, len(found) > limit
    else:
        if cursor is not None:
            query = query.where(Study.id < cursor)
        found = session.scalars(query.order_by(Study.id.desc())).all()
        page, more, before = found[:limit], len(found) > limit, cursor is not None
    return Listed(
        summaries_of(session, page),
        page[-1].id if page and more else None,
        page[0].id if page and before else None,
    )


def _conditions(session: Session, wanted: Wanted) -> Iterator[ColumnElement[bool]]:
    if wanted.state is not None:
        yield Study.state == wanted.state
    if wanted.finding is not None:
        yield Study.finding == wanted.finding
    if wanted.attention is not None:
        yield Study.attention.is_not(None) if wanted.attention else Study.attention.is_(None)
    if wanted.feedback is not None:
        yield feedback.wants(wanted.feedback)
    if wanted.backfilled is not None:
        mine = Study.backfill_id
        yield mine.is_not(None) if wanted.backfilled else mine.is_(None)
    # Ids follow the order of arrival: as a bound on them a time needs no sorting.
    if wanted.since is not None:
        first = select(Study.id).where(Study.received_at >= wanted.since).order_by(Study.received_at)
        yield Study.id >= (session.scalars(first.limit(1)).first() or _NO_ID)
    if wanted.until is not None:
        last = select(Study.id).where(Study.received_at < wanted.until).order_by(Study.received_at.desc())
        yield Study.id <= (session.scalars(last.limit(1)).first() or 0)


def summaries(session: Session, study_ids: Collection[int]) -> dict[int, schemas.StudySummary]:
    """Return what lists say of these studies, by id."""
    found = session.scalars(select(Study).where(Study.id.in_(study_ids))).all()
    return dict(zip((study.id for study in found), summaries_of(session, found), strict=True))


def summaries_of(session: Session, studies: Sequence[Study]) -> list[schemas.StudySummary]:
    """Return what lists say of these studies, in their order."""
    states = feedback.states_of(session, studies)
    return [_summary(study, states[study.id]) for study in studies]


def study(session: Session, study_instance_uid: str) -> schemas.StudyOut | None:
    """Return one study with its instances, reports, deliveries and events, or None."""
    found = session.scalars(
        select(Study)
        .where(Study.study_instance_uid == study_instance_uid)
        .options(
            selectinload(Study.instances).selectinload(Instance.analyses),
            selectinload(Study.reports).selectinload(Report.deliveries),
            selectinload(Study.events),
            selectinload(Study.model),
        )
    ).one_or_none()
    if found is None:
        return None
    standing = models.reporting(session)
    paused = {pause.destination: pause for pause in pauses(session)}
    return schemas.StudyOut.model_validate(
        {
            **vars(summaries_of(session, [found])[0]),
            "instances": [
                _instance(instance, _population(found.model or standing)) for instance in found.instances
            ],
            "model": found.model,
            "reports": found.reports,
            "deliveries": [
                _delivery(report, item, paused.get(item.destination))
                for report in found.reports
                for item in report.deliveries
            ],
            "events": found.events,
        }
    )


def _summary(found: Study, state: feedback.State) -> schemas.StudySummary:
    result = None
    if found.finding is not None:
        result = schemas.ResultOut(
            finding=found.finding,
            probability=found.probability,
            threshold=found.threshold,
            reason=found.result_reason,
            pattern=found.pattern,
            flags=found.flags,
        )
    return schemas.StudySummary(
        study_instance_uid=found.study_instance_uid,
        state=found.state,
        revision=found.revision,
        attention=found.attention,
        reason=found.reason,
        received_at=found.received_at,
        reported_at=found.reported_at,
        delivered_at=found.delivered_at,
        confirmed_at=found.confirmed_at,
        result=result,
        feedback=state.feedback,
        to_review=state.to_review,
        backfilled=found.backfill_id is not None,
    )


def _population(model: Model | None) -> Population | None:
    return Population.of(model.population) if model is not None and model.population else None


def _instance(instance: Instance, validated: Population | None) -> schemas.InstanceOut:
    done = [analysis for analysis in instance.analyses if analysis.state == AnalysisState.DONE]
    analysis: Analysis | None = max(done, key=lambda item: item.id, default=None)
    analysed = analysis if instance.state == InstanceState.ANALYSED else None
    return schemas.InstanceOut(
        sop_instance_uid=instance.sop_instance_uid,
        sop_class_uid=instance.sop_class_uid,
        state=instance.state,
        finding=analysed.finding if analysed else "not_analysed" if instance.reason else None,
        probability=analysed.probability if analysed else None,
        reason=analysed.reason if analysed else instance.reason,
        flags=[*instance.flags, *(analysed.flags if analysed else [])],
        rule=Decision.of(instance.decision).rule,
        population=_beside(instance, validated),
    )


def _beside(instance: Instance, validated: Population | None) -> list[schemas.ComparisonOut]:
    """Return a radiograph's age, sex, view and scanner beside what the model was validated on."""
    if validated is None or instance.state == InstanceState.IGNORED:
        return []
    film = Described(
        instance.patient_age_years,
        instance.patient_sex or "",
        instance.view_position,
        instance.scanner or "",
    )
    return [schemas.ComparisonOut.model_validate(each) for each in compared(film, validated)]


def _delivery(report: Report, item: Outbox, pause: Pause | None) -> schemas.DeliveryOut:
    waits = pause is not None and item.state == DeliveryState.PENDING
    return schemas.DeliveryOut(
        destination=item.destination,
        kind=report.kind,
        revision=report.revision,
        sop_instance_uid=report.sop_instance_uid,
        state=item.state,
        attempts=item.attempts,
        last_error=item.last_error if item.state != DeliveryState.CONFIRMED else None,
        waits_for=pause.why if pause is not None and waits else None,
        waits_until=pause.until if pause is not None and waits else None,
        delivered_at=item.delivered_at,
        confirmed_at=item.confirmed_at,
    )
