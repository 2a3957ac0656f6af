"""What the ledger says of studies and of the gateway, as the API shows it."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from service.api import schemas
from service.core.pauses import pauses
from service.core.rules import Decision
from service.core.states import AnalysisState, DeliveryState, InstanceState
from service.core.tables import Analysis, Instance, Outbox, Pause, Report, Study


def list_studies(
    session: Session, state: str | None, since: datetime | None, limit: int, cursor: int | None
) -> schemas.StudyList:
    """Return studies, newest first; `cursor` is the last id of the page before."""
    query = select(Study).order_by(Study.id.desc()).limit(limit + 1)
    if state:
        query = query.where(Study.state == state)
    if since:
        query = query.where(Study.received_at >= since)
    if cursor is not None:
        query = query.where(Study.id < cursor)
    found = session.scalars(query).all()
    page = found[:limit]
    return schemas.StudyList(
        studies=[schemas.StudySummary.model_validate(_summary(study)) for study in page],
        cursor=str(page[-1].id) if len(found) > limit else None,
    )


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
    paused = {pause.destination: pause for pause in pauses(session)}
    return schemas.StudyOut.model_validate(
        {
            **_summary(found),
            "instances": [_instance(instance) for instance in found.instances],
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


def _summary(found: Study) -> dict[str, object]:
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
    return {
        "study_instance_uid": found.study_instance_uid,
        "state": found.state,
        "revision": found.revision,
        "attention": found.attention,
        "reason": found.reason,
        "received_at": found.received_at,
        "reported_at": found.reported_at,
        "delivered_at": found.delivered_at,
        "confirmed_at": found.confirmed_at,
        "result": result,
    }


def _instance(instance: Instance) -> schemas.InstanceOut:
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
    )


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
