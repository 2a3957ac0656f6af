"""When a study is quiet: conclude it, and open the next revision of its report if there is anything new.

PS3.4 gives an association no meaning, so a study is never complete; it is *due* when its quiet time has
passed (`service.core.receive` sets the time), and concluded once nothing of it waits for decoding or
inference.
"""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.core.ledger import Ledger, now, record_event
from service.core.results import Finding, Result, conclude
from service.core.states import (
    DELIVERED_STATES,
    REPORTABLE_INSTANCES,
    UNFINISHED_INSTANCES,
    AnalysisState,
    InstanceState,
    RevisionState,
    StudyState,
)
from service.core.tables import Analysis, Instance, Outbox, Report, Revision, Study

SUPERSEDED_BY_PRESENTATION = "left out: the same exposure is there For Presentation"


def conclude_due_studies(ledger: Ledger, limit: int = 50) -> int:
    """Conclude every study that is due and finished; mark as analysing what is due and not finished yet."""
    with ledger.read() as session:
        if session.scalars(select(Study.id).where(Study.due_at <= now()).limit(1)).first() is None:
            return 0
    with ledger.write() as session:
        studies = session.scalars(
            select(Study)
            .where(Study.due_at <= now())
            .order_by(Study.due_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        return sum(_conclude(session, study) for study in studies)


def retry_study(session: Session, study: Study) -> None:
    """Give everything of a study that failed or was parked another chance, at once."""
    moment = now()
    for instance in study.instances:
        if instance.state == InstanceState.FAILED:
            instance.state = InstanceState.RECEIVED
            instance.reason, instance.attempts, instance.ready_at = None, 0, moment
            for analysis in instance.analyses:
                session.delete(analysis)
            study.due_at = moment
            study.build += 1  # a report that named this image as failed has to be built anew
    for revision in session.scalars(select(Revision).where(Revision.study_id == study.id)):
        if revision.state == RevisionState.FAILED:
            revision.state, revision.attempts, revision.ready_at = RevisionState.PENDING, 0, moment
            study.state, study.reason = StudyState.ANALYSING, None
    for delivery in _deliveries(session, study.id):
        if delivery.state not in DELIVERED_STATES:
            delivery.state, delivery.attempts, delivery.ready_at = "pending", 0, moment
    if study.due_at is not None:
        study.state, study.reason = StudyState.RECEIVING, None
    study.attention = None
    record_event(session, study, "retried", "a person asked for another try")


def settle(session: Session, study: Study) -> None:
    """Set the state of a reported study from what its deliveries say."""
    deliveries = [item for item in _deliveries(session, study.id) if item.required]
    current = [item for item in deliveries if item.report.revision == study.revision]
    parked = [item for item in deliveries if item.state == "parked"]
    study.attention = (
        f"{len(parked)} report(s) parked at {', '.join(sorted({item.destination for item in parked}))}: "
        f"{parked[-1].last_error}"
        if parked
        else None
    )
    if study.state not in (StudyState.REPORTED, StudyState.DELIVERED, StudyState.CONFIRMED) or not current:
        return
    if all(item.state in DELIVERED_STATES for item in current):
        if study.state == StudyState.REPORTED:
            study.state = StudyState.DELIVERED
            study.delivered_at = now()
            record_event(session, study, "delivered", f"revision {study.revision}")
    else:
        study.state = StudyState.REPORTED


def result_of(instance: Instance, analysis: Analysis | None) -> Result:
    """Return what is said of one image: its analysis, or why there is none."""
    if instance.state != InstanceState.ANALYSED or analysis is None or analysis.finding is None:
        return Result(Finding.NOT_ANALYSED, reason=instance.reason or "not analysed")
    return Result(
        Finding(analysis.finding),
        analysis.probability,
        analysis.threshold,
        analysis.reason,
        analysis.pattern,
        (*instance.flags, *analysis.flags),
    )


def _conclude(session: Session, study: Study) -> bool:
    instances = session.scalars(
        select(Instance).where(Instance.study_id == study.id).order_by(Instance.id)
    ).all()
    if any(instance.state in UNFINISHED_INSTANCES for instance in instances):
        study.state = StudyState.ANALYSING if study.state != StudyState.HELD else StudyState.HELD
        return False
    _prefer_presentation(instances)
    study.due_at = study.first_eligible_at = None
    current = [instance for instance in instances if instance.state in REPORTABLE_INSTANCES]
    analysed = [instance for instance in current if instance.state == InstanceState.ANALYSED]
    if len({instance.subject_id for instance in current}) > 1:
        study.state = StudyState.HELD
        study.reason = study.attention = "images of two patients under one Study Instance UID"
        record_event(session, study, "held", study.reason)
    elif analysed:
        _open_revision(session, study, current)
    elif any(instance.state == InstanceState.FAILED for instance in current):
        study.state = StudyState.FAILED
        study.reason = next(item.reason for item in current if item.state == InstanceState.FAILED)
        record_event(session, study, "failed", study.reason or "")
    else:
        _conclude_unanalysed(session, study, current or instances)
    return True


def _open_revision(session: Session, study: Study, current: Sequence[Instance]) -> None:
    """Make the next revision, unless the newest one already speaks of the same images and headers."""
    newest = session.scalars(
        select(Revision).where(Revision.study_id == study.id).order_by(Revision.number.desc()).limit(1)
    ).one_or_none()
    included = [instance.id for instance in current]
    analysed = {instance.id for instance in current if instance.state == InstanceState.ANALYSED}
    model_id = session.scalars(
        select(Analysis.model_id)
        .where(Analysis.instance_id.in_(analysed), Analysis.state == AnalysisState.DONE)
        .order_by(Analysis.id.desc())
    ).first()
    assert model_id is not None, "an analysed instance has its analysis"
    if (
        newest is not None
        and analysed <= set(newest.instance_ids)
        and (newest.header_revision, newest.build, newest.model_id)
        == (study.header_revision, study.build, model_id)
    ):
        study.state = {
            RevisionState.REPORTED: StudyState.REPORTED,
            RevisionState.PENDING: StudyState.ANALYSING,
            RevisionState.FAILED: StudyState.FAILED,
        }[RevisionState(newest.state)]
        settle(session, study)
        return
    number = newest.number + 1 if newest else 1
    session.add(
        Revision(
            study_id=study.id,
            model_id=model_id,
            number=number,
            header_revision=study.header_revision,
            build=study.build,
            instance_ids=included,
            state=RevisionState.PENDING,
            created_at=now(),
            ready_at=now(),
        )
    )
    study.state, study.reason = StudyState.ANALYSING, None
    record_event(session, study, "concluded", f"revision {number} of {len(analysed)} analysed image(s)")


def _conclude_unanalysed(session: Session, study: Study, images: Sequence[Instance]) -> None:
    if study.revision:  # a report stands already, and nothing that came later was analysed
        study.state = StudyState.REPORTED
        settle(session, study)
        return
    said = conclude([result_of(instance, None) for instance in images])
    study.finding, study.result_reason, study.flags = said.finding, said.reason, []
    study.state, study.reported_at = StudyState.REPORTED, now()
    record_event(session, study, "not_analysed", said.reason or "")


def _prefer_presentation(instances: Sequence[Instance]) -> None:
    """Leave out For Processing films whose view is there For Presentation (PS3.3 C.8.11.1.1.1)."""
    shown = {
        instance.view_position
        for instance in instances
        if instance.presentation_intent_type == "FOR PRESENTATION"
        and instance.state == InstanceState.ANALYSED
    }
    for instance in instances:
        if (
            instance.presentation_intent_type == "FOR PROCESSING"
            and instance.state == InstanceState.ANALYSED
            and instance.view_position in shown
        ):
            instance.state, instance.reason = InstanceState.NOT_ANALYSED, SUPERSEDED_BY_PRESENTATION


def _deliveries(session: Session, study_id: int) -> Sequence[Outbox]:
    return session.scalars(
        select(Outbox).join(Report).where(Report.study_id == study_id).order_by(Outbox.id)
    ).all()
