"""When a study is quiet: conclude it, and open the next revision of its report if there is anything new.

PS3.4 gives an association no meaning, so a study is never complete; it is *due* when its quiet time has
passed (`service.core.receive` sets the time), and concluded once nothing of it waits for decoding or
inference.
"""

from collections.abc import Sequence
from datetime import timedelta

import structlog
from sqlalchemy import exists, select, update
from sqlalchemy.orm import Session

from service.core.ledger import Ledger, now, record_event
from service.core.results import Finding, Result, conclude
from service.core.rules import Decision
from service.core.settlement import deliveries_of, newest_revision, settle, withdraw, withdraw_revision
from service.core.states import (
    REPORTABLE_INSTANCES,
    SECOND_FORMS,
    UNFINISHED_INSTANCES,
    AnalysisState,
    DeliveryState,
    InstanceState,
    Kind,
    RevisionState,
    StudyState,
)
from service.core.tables import Analysis, Instance, Outbox, Revision, Study

_AGAIN_AFTER = timedelta(seconds=30)
_log = structlog.get_logger()
SUPERSEDED_BY_PRESENTATION = "left out: the same exposure is there For Presentation"


def conclude_due_studies(ledger: Ledger, limit: int = 50, *, report_every_radiograph: bool = False) -> int:
    """Conclude every study that is due and finished; mark as analysing what is due and not finished yet.

    `report_every_radiograph`: a study without an analysed film is reported as such whatever its films show,
    not only when their header says chest radiograph.
    """
    waiting = exists().where(Instance.study_id == Study.id, Instance.state.in_(UNFINISHED_INSTANCES))
    due = Study.due_at <= now()
    with ledger.read() as session:
        late = session.scalars(
            select(Study.id).where(due, waiting, Study.state == StudyState.RECEIVING).limit(limit)
        ).all()
        finished = session.execute(
            select(Study.id, Study.study_instance_uid)
            .where(due, ~waiting)
            .order_by(Study.due_at)
            .limit(limit)
        ).all()
    if late:
        with ledger.write() as session:
            session.execute(
                update(Study)
                .where(Study.id.in_(late), Study.state == StudyState.RECEIVING)
                .values(state=StudyState.ANALYSING)
                .execution_options(synchronize_session=False)
            )
    concluded = 0
    for study_id, study_instance_uid in finished:
        # One transaction a study: one that can't be concluded keeps no other from its report.
        try:
            with ledger.write() as session:
                study = session.get(Study, study_id, with_for_update=True)
                if study is not None and study.due_at is not None and study.due_at <= now():
                    concluded += _conclude(session, study, report_every_radiograph)
        except Exception:
            _log.exception("completion.failed", study_instance_uid=study_instance_uid)
            with ledger.write() as session:
                session.execute(update(Study).where(Study.id == study_id).values(due_at=now() + _AGAIN_AFTER))
    return concluded


def request_analysis(session: Session, instance: Instance, model_id: int) -> None:
    """Let the film of `instance` wait for inference by this model."""
    known = session.scalars(
        select(Analysis).where(Analysis.instance_id == instance.id, Analysis.model_id == model_id)
    ).one_or_none()
    if known is None:
        known = Analysis(instance_id=instance.id, model_id=model_id)
        session.add(known)
    known.state, known.attempts, known.ready_at = AnalysisState.PENDING, 0, now()
    instance.state = InstanceState.DECODED


def result_of(instance: Instance, analysis: Analysis | None) -> Result:
    """Return what is said of one image: its analysis, or why there is none."""
    # A revision may still be in work on an image whose corrected header has arrived meanwhile.
    spoken_of = instance.state in (InstanceState.ANALYSED, InstanceState.SUPERSEDED)
    if not spoken_of or analysis is None or analysis.finding is None:
        return Result(Finding.NOT_ANALYSED, reason=instance.reason or "not analysed")
    return Result(
        Finding(analysis.finding),
        analysis.probability,
        analysis.threshold,
        analysis.reason,
        analysis.pattern,
        (*instance.flags, *analysis.flags),
    )


def _conclude(session: Session, study: Study, report_every_radiograph: bool) -> bool:
    instances = session.scalars(
        select(Instance).where(Instance.study_id == study.id).order_by(Instance.id)
    ).all()
    if any(instance.state in UNFINISHED_INSTANCES for instance in instances):
        return False
    _prefer_presentation(instances)
    standing = [instance for instance in instances if instance.state in REPORTABLE_INSTANCES]
    # Nothing is built of what retention took the files of: an earlier report speaks of it.
    current = [instance for instance in standing if instance.spool_path is not None]
    analysed = [instance for instance in current if instance.state == InstanceState.ANALYSED]
    if len({instance.subject_id for instance in standing}) > 1:
        study.due_at = study.first_eligible_at = None
        _hold(session, study, "images of two patients under one Study Instance UID")
        settle(session, study)
        return True
    failed = any(instance.state == InstanceState.FAILED for instance in current)
    if study.revision and len(current) < len(standing) and not analysed and not failed:
        _let_stand(session, study, instances)
        return True
    model_id = _model_of(session, analysed)
    if model_id is not None and _ask_for_missing(session, analysed, model_id):
        withdraw_revision(session, study, "its films are analysed again")
        study.state = StudyState.ANALYSING
        return False
    study.due_at = study.first_eligible_at = study.reason = None
    if model_id is not None:
        _open_revision(session, study, current, model_id)
    elif failed:
        withdraw_revision(session, study, "a film failed")
        study.state = StudyState.FAILED
        study.reason = next(item.reason for item in current if item.state == InstanceState.FAILED)
        record_event(session, study, "failed", study.reason or "")
    else:
        # What was rejected is answered for once it was reported: by what is left, or else by itself.
        rejected = [instance for instance in instances if instance.state == InstanceState.REJECTED]
        said = conclude([result_of(instance, None) for instance in current or rejected or instances])
        _take_back(session, study, said)
        # An earlier report is always answered by another one; else the reader has to expect one.
        awaited = [item for item in current if Decision.of(item.decision).destinations != ()]
        expected = bool(awaited) and (report_every_radiograph or any(item.says_chest for item in awaited))
        spoken_of = current or [instance for instance in rejected if instance.spool_path]
        if spoken_of and (study.revision or expected):
            _open_revision(session, study, spoken_of, None)
        else:
            study.state, study.reported_at = StudyState.REPORTED, now()
        record_event(session, study, "not_analysed", said.reason or "")
    settle(session, study)
    return True


def _let_stand(session: Session, study: Study, instances: Sequence[Instance]) -> None:
    """Leave the earlier report alone: what it speaks of is gone, and nothing new was analysed."""
    study.due_at = study.first_eligible_at = study.reason = None
    study.state = StudyState.REPORTED
    newest = newest_revision(session, study)
    rejected = {instance.id for instance in instances if instance.state == InstanceState.REJECTED}
    if newest is not None and rejected & set(newest.instance_ids):
        study.wanted = (
            f"revision {newest.number} speaks of an image that the archive rejected, and cannot be built "
            "anew: its files were removed; send the study again"
        )
        record_event(session, study, "given_up", study.wanted)
    settle(session, study)


def _model_of(session: Session, analysed: Sequence[Instance]) -> int | None:
    """Return the model that looked at one of the images last: the whole report is in its words."""
    return session.scalars(
        select(Analysis.model_id)
        .where(
            Analysis.instance_id.in_([instance.id for instance in analysed]),
            Analysis.state == AnalysisState.DONE,
        )
        .order_by(Analysis.id.desc())
        .limit(1)
    ).first()


def _ask_for_missing(session: Session, analysed: Sequence[Instance], model_id: int) -> bool:
    """Let what only an earlier model has seen be analysed by this one; return whether there is any."""
    seen = set(
        session.scalars(
            select(Analysis.instance_id).where(
                Analysis.instance_id.in_([instance.id for instance in analysed]),
                Analysis.model_id == model_id,
                Analysis.state == AnalysisState.DONE,
            )
        )
    )
    missing = [instance for instance in analysed if instance.id not in seen]
    for instance in missing:
        request_analysis(session, instance, model_id)
    return bool(missing)


def _hold(session: Session, study: Study, reason: str) -> None:
    """Report nothing of this study, and send nothing that is not sent yet."""
    study.state, study.reason = StudyState.HELD, reason
    why = "the study is held"
    withdraw_revision(session, study, why)
    # What is parked stays so: it is not sent anyhow, and its reason outlives the hold.
    for delivery in deliveries_of(session, study.id):
        if delivery.state == DeliveryState.PENDING:
            withdraw(delivery, f"withdrawn: {why}")
    record_event(session, study, "held", reason)


def _take_back(session: Session, study: Study, said: Result) -> None:
    """Let no result of this study be built or sent any more, and say `said` (not analysed) instead."""
    why = "nothing of the study is analysed any more"
    withdraw_revision(session, study, why)
    of_a_result = set(
        session.scalars(
            select(Revision.number).where(Revision.study_id == study.id, Revision.model_id.is_not(None))
        )
    )
    for delivery in deliveries_of(session, study.id):
        waits = delivery.state in (DeliveryState.PENDING, DeliveryState.PARKED)
        about = delivery.report
        if waits and about.revision in of_a_result and about.kind != Kind.REJECTION:
            withdraw(delivery, f"withdrawn: {why}")
    study.finding, study.result_reason, study.flags = said.finding, said.reason, []
    study.probability = study.threshold = study.pattern = study.review_share = None


def _open_revision(session: Session, study: Study, current: Sequence[Instance], model_id: int | None) -> None:
    """Make the next revision, unless the newest one already speaks of the same images and headers.

    A revision that was never built is not followed by another one: it speaks of the newer images now. Without
    a model it says that nothing was analysed; then the first image that its header calls a chest is new.
    """
    newest = newest_revision(session, study)
    analysed = {instance.id for instance in current if instance.state == InstanceState.ANALYSED}
    settings = (model_id, study.header_revision, study.build)
    if newest is not None and newest.state == RevisionState.REPORTED:
        same = (newest.model_id, newest.header_revision, newest.build) == settings
        chests = {instance.id for instance in current if instance.says_chest}
        known = set(newest.instance_ids)
        if same and analysed <= known and (model_id is not None or not chests or chests & known):
            study.state = StudyState.REPORTED
            _send_after_all(deliveries_of(session, study.id), newest.number)
            return
    if newest is None or newest.state == RevisionState.REPORTED:
        number = newest.number + 1 if newest else 1
        newest = Revision(study_id=study.id, number=number, lease_token=0, created_at=now())
        session.add(newest)
    else:
        newest.lease_token += 1
        newest.lease_owner = newest.lease_until = None
    newest.model_id, newest.header_revision, newest.build = settings
    newest.instance_ids, newest.state = [instance.id for instance in current], RevisionState.PENDING
    newest.attempts, newest.ready_at = 0, now()
    study.state, study.reason = StudyState.ANALYSING, None
    record_event(
        session, study, "concluded", f"revision {newest.number} of {len(analysed)} analysed image(s)"
    )


def _send_after_all(deliveries: Sequence[Outbox], revision: int) -> None:
    """Send what was withdrawn of a revision that holds again, unless another form went in its place."""
    sent = {(item.destination, item.report.kind) for item in deliveries if item.report.revision == revision}
    for item in deliveries:
        if item.state != DeliveryState.WITHDRAWN or item.report.revision != revision:
            continue
        if (item.destination, SECOND_FORMS.get(Kind(item.report.kind))) not in sent:
            item.state, item.ready_at = DeliveryState.PENDING, now()


def _prefer_presentation(instances: Sequence[Instance]) -> None:
    """Leave out For Processing films whose exposure is there For Presentation (PS3.3 C.8.11.1.1.1)."""
    for instance in instances:
        # Said anew each time: what stood in for it may have been rejected.
        if instance.state == InstanceState.NOT_ANALYSED and instance.reason == SUPERSEDED_BY_PRESENTATION:
            instance.state, instance.reason = InstanceState.ANALYSED, None
    shown = {
        (instance.acquired_at, instance.view_position)
        for instance in instances
        if instance.presentation_intent_type == "FOR PRESENTATION"
        and instance.state == InstanceState.ANALYSED
    }
    for instance in instances:
        if (
            instance.presentation_intent_type == "FOR PROCESSING"
            and instance.state == InstanceState.ANALYSED
            and instance.acquired_at
            and (instance.acquired_at, instance.view_position) in shown
        ):
            instance.state, instance.reason = InstanceState.NOT_ANALYSED, SUPERSEDED_BY_PRESENTATION
