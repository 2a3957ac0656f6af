"""Queue `report`: one revision of a study becomes DICOM objects with a row in each destination's outbox."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from service.core import tally
from service.core.backfill import withholds
from service.core.claims import claim_live_first
from service.core.completion import result_of
from service.core.destination import Destination
from service.core.errors import LeaseLost
from service.core.failpoints import failpoint
from service.core.feedback_link import links_of
from service.core.leases import (
    REPORT,
    Lease,
    held,
    leased,
    named_in_logs,
    release,
    release_failed,
    renewed,
)
from service.core.ledger import now, record_event
from service.core.population import Population
from service.core.refusals import refusals
from service.core.results import Finding, ModelIdentity, Result, conclude
from service.core.review import review_share
from service.core.rules import Decision, union
from service.core.settings import Settings
from service.core.settlement import settle, withdraw
from service.core.states import (
    DELIVERED_STATES,
    AnalysisState,
    DeliveryState,
    InstanceState,
    Kind,
    RevisionState,
    StudyState,
)
from service.core.tables import Analysis, Instance, Model, Outbox, Rejection, Report, Revision, Study, Subject
from worker import wording
from worker.context import Context, discarding, read_weights
from worker.iod import remember
from worker.tasks import assess
from worker.tasks.documents import earlier_documents, stands_beside
from worker.tasks.objects import Image, Job, Object, Superseded, objects
from worker.tasks.written import written

_log = structlog.get_logger()


@dataclass(frozen=True)
class _Built(Object):
    """One object, on disk."""

    path: str
    digest: str
    size: int


# Another process may have taken up a newer configuration than this one.
_PATIENCE = timedelta(seconds=60)


class _NotYet(Exception):
    """The revision cannot be built at this moment; that costs no attempt."""


def check(settings: Settings) -> None:
    """Stop the start of a pool whose reports could not name their model, and read what all of them need.

    Raises
    ------
    ConfigurationError
        With what is wrong with the weights.
    """
    read_weights(settings)
    remember()


def run(context: Context) -> None:
    """Lease the revisions that wait, and build their objects; then what readers said of others."""
    for lease in claim_live_first(context.ledger, REPORT, 1):
        failpoint("report.claimed")
        with renewed(context.ledger, [lease]), named_in_logs(context.ledger, lease):
            try:
                _report_one(context, lease)
            except LeaseLost as fault:
                _log.warning("report.lease_lost", reason=str(fault))
            except _NotYet as fault:
                release(context.ledger, lease, str(fault), 2.0, attempts=lease.attempts - 1)
            except Exception as fault:
                _log.exception("report.failed")
                release_failed(context.ledger, lease, fault)
    assess.run(context)


def _report_one(context: Context, lease: Lease) -> None:
    job, model_id = _read(context, lease)
    conclusion = conclude([image.result for image in job.images])
    if job.beside:
        conclusion = replace(conclusion, flags=(*conclusion.flags, wording.later_only(job.number)))
    built: list[_Built] = []
    with ExitStack() as kept:
        for item in () if job.withheld else objects(context, job, conclusion):
            built.append(_written(context, item))
            kept.enter_context(discarding(context.spool, built[-1].path))
        failpoint("report.objects_written")
        with context.ledger.write() as session:
            revision, study = held(session, lease)
            if study.backfill_id is None:
                tally.since(tally.STAGE_SECONDS, revision.ready_at, "report", session=session)
                tally.add(tally.RESULTS, conclusion.finding, session=session)
                if job.number == 1:
                    tally.since(tally.STUDY_SECONDS, study.received_at, "reported", session=session)
            _supersede(session, context, study, job)
            revision.state = RevisionState.REPORTED
            revision.finding = conclusion.finding
            revision.probability, revision.threshold = conclusion.probability, conclusion.threshold
            moment = now()
            for item in built:
                _put_out(session, context, study, job, item, moment)
            _record_result(study, job, conclusion, model_id, moment)
            # Readers review what they were sent.
            study.review_share = (
                review_share(
                    session, study.study_instance_uid, conclusion.finding, context.settings.review_share
                )
                if study.backfill_id is None
                else None
            )
            settle(session, study)
            record_event(session, study, "reported", f"revision {job.number}: {conclusion.finding}")
    failpoint("report.recorded")


def _read(context: Context, lease: Lease) -> tuple[Job, int]:
    """Return the revision with all that is needed to build it, and the row of the model it speaks for."""
    installation, served = context.ledger.installation(), context.model().id
    names = [destination.name for destination in context.settings.destinations]
    with context.ledger.read() as session:
        revision: Revision = leased(session, lease)
        study = session.get_one(Study, revision.study_id)
        # What no model has looked at is reported by the gateway that serves this one.
        model = session.get_one(Model, revision.model_id or served)
        images = [session.get_one(Instance, instance_id) for instance_id in revision.instance_ids]
        earlier = Report.study_id == study.id, Report.revision < revision.number
        # An archive that rejected our own objects too knows already, and wants nothing put beside them.
        named = select(Rejection.sop_instance_uid).where(Rejection.study_id == study.id)
        told = (
            select(Outbox.destination)
            .join(Report)
            .where(
                *earlier,
                Outbox.attempts > 0,
                Report.kind != Kind.ASSESSMENT,
                Report.sop_instance_uid.not_in(named),
            )
        )
        job = Job(
            study_instance_uid=study.study_instance_uid,
            installation=installation,
            ae_title=context.settings.ae_title,
            number=revision.number,
            header_revision=revision.header_revision,
            build=revision.build,
            model=ModelIdentity(model.name, model.version, model.sha256),
            activation_method=model.activation_method,
            images=tuple(_image(session, instance, model.id) for instance in images),
            earlier=earlier_documents(session, study.id, revision.number),
            beside=stands_beside(session, study.id, revision.number),
            rejected=all(instance.state == InstanceState.REJECTED for instance in images),
            says_chest=any(
                instance.says_chest and Decision.of(instance.decision).destinations != ()
                for instance in images
            ),
            told=frozenset(session.scalars(told.where(Outbox.destination.in_(names)))),
            identity=_identity(session, images),
            refused=_refused(session, context),
            superseded=_superseded(session, context, study.id, revision.number),
            routed=None,
            feedback_url=_feedback_url(session, context, study, revision.number),
            population=Population.of(model.population) if model.population else None,
            withheld=withholds(session, study),
        )
        job = replace(job, routed=_routed(images, job.images))
        if not job.withheld:
            _check_routed(job, context, revision)
        return job, model.id


def _routed(instances: Sequence[Instance], images: Sequence[Image]) -> frozenset[str] | None:
    """Return where the result goes: the rules of the analysed images say it, else those of all of them."""
    decisions = [Decision.of(instance.decision) for instance in instances]
    analysed = [
        decision
        for decision, image in zip(decisions, images, strict=True)
        if image.result.finding is not Finding.NOT_ANALYSED
    ]
    return union(analysed or decisions)


def _check_routed(job: Job, context: Context, revision: Revision) -> None:
    """Wait for a destination that this process has not heard of yet.

    Raises
    ------
    _NotYet
        While somebody else may know it.
    """
    missing = [name for name in job.routed or () if context.settings.destination(name) is None]
    if missing and now() - revision.created_at < _PATIENCE:
        raise _NotYet(f"no destination {', '.join(missing)} is configured here")


def _feedback_url(session: Session, context: Context, study: Study, number: int) -> str:
    """Return where readers of this revision say what they think of it."""
    public = context.settings.public_url
    return links_of(session).url(public, study.study_instance_uid, number) if public else ""


def _refused(session: Session, context: Context) -> Mapping[str, frozenset[str]]:
    """Return the kinds that each destination is known not to take."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for row in refusals(session, context.settings.destinations):
        kinds[row.destination].add(row.kind)
    return {name: frozenset(found) for name, found in kinds.items()}


def _identity(session: Session, images: Sequence[Instance]) -> Mapping[str, str]:
    """Return what an archive says of patient and order, where that is not what the images say."""
    told = (
        session.get_one(Subject, image.subject_id).told for image in images if image.subject_id is not None
    )
    return next(filter(None, told), {})


def _image(session: Session, instance: Instance, model_id: int) -> Image:
    analysis = session.scalars(
        select(Analysis).where(
            Analysis.instance_id == instance.id,
            Analysis.model_id == model_id,
            Analysis.state == AnalysisState.DONE,
        )
    ).one_or_none()
    assert instance.spool_path is not None, "a reported image was kept"
    return Image(
        instance.sop_instance_uid,
        instance.digest,
        instance.spool_path,
        instance.film_path,
        analysis.activation_path if analysis else None,
        result_of(instance, analysis),
    )


def _rejecting(context: Context) -> list[str]:
    return [item.name for item in context.settings.destinations if "rejection" in item.objects]


def _superseded(session: Session, context: Context, study_id: int, number: int) -> tuple[Superseded, ...]:
    """Return what destinations that want rejection notes hold of earlier revisions and no note names yet.

    What stands beside this revision is not rejected; a note that names objects is built from their bytes.
    """
    if stands_beside(session, study_id, number):
        return ()
    delivered: dict[str, list[Report]] = defaultdict(list)
    note_that_goes = and_(Report.kind == Kind.REJECTION, Outbox.state != DeliveryState.WITHDRAWN)
    for name in _rejecting(context):
        rows = session.scalars(
            select(Report)
            .join(Outbox)
            .where(
                Report.study_id == study_id,
                Report.revision < number,
                Report.kind != Kind.ASSESSMENT,  # what a person said of it stands
                Report.path != "",
                Outbox.destination == name,
                or_(Outbox.state.in_(DELIVERED_STATES), note_that_goes),
            )
            .order_by(Report.id)
        ).all()
        noted = max((row.revision for row in rows if row.kind == Kind.REJECTION), default=0)
        delivered[name] = [row for row in rows if row.kind != Kind.REJECTION and row.revision >= noted]
    sets: dict[tuple[tuple[str, str], ...], set[str]] = defaultdict(set)
    for name, reports in delivered.items():
        sets[tuple((report.sop_instance_uid, report.path) for report in reports)].add(name)
    return tuple(Superseded(frozenset(names), paths) for paths, names in sorted(sets.items()) if paths)


def _supersede(session: Session, context: Context, study: Study, job: Job) -> None:
    """Where rejection notes go, send nothing more of earlier revisions: no note would name it.

    Raises
    ------
    _NotYet
        When a delivery of an earlier revision is under way or came in between.
    """
    rejecting = _rejecting(context)
    if not rejecting:
        return
    rows = session.scalars(
        select(Outbox)
        .join(Report)
        .where(
            Report.study_id == study.id,
            Report.revision < job.number,
            Report.kind.not_in((Kind.REJECTION, Kind.ASSESSMENT)),
            Outbox.destination.in_(rejecting),
            Outbox.state.in_((DeliveryState.PENDING, DeliveryState.PARKED)),
        )
        .with_for_update(of=Outbox)
    ).all()
    under_way = any(row.lease_until is not None and row.lease_until > now() for row in rows)
    if under_way or _superseded(session, context, study.id, job.number) != job.superseded:
        raise _NotYet("an earlier revision is being delivered")
    for row in rows:
        withdraw(row, f"withdrawn: revision {job.number} replaces it")


def _written(context: Context, item: Object) -> _Built:
    path, digest, size = written(context, item.dataset)
    return _Built(**vars(item), path=path, digest=digest, size=size)


def _put_out(
    session: Session, context: Context, study: Study, job: Job, item: _Built, moment: datetime
) -> None:
    """Write an object into the ledger, and into the outbox of every destination that gets it."""
    report = Report(
        study_id=study.id,
        kind=item.kind,
        revision=job.number,
        part=item.part,
        sop_instance_uid=item.dataset.SOPInstanceUID,
        sop_class_uid=item.dataset.SOPClassUID,
        series_instance_uid=item.dataset.SeriesInstanceUID,
        transfer_syntax_uid=item.dataset.file_meta.TransferSyntaxUID,
        path=item.path,
        digest=item.digest,
        size=item.size,
        created_at=moment,
    )
    session.add(report)
    session.flush()
    for name in sorted(item.destinations):
        destination = context.settings.destination(name)
        if destination is None:
            gone = f"no destination {name} is configured any more"
            session.add(
                Outbox(
                    destination=name,
                    report_id=report.id,
                    required=True,
                    state=DeliveryState.PARKED,
                    last_error=gone,
                    ready_at=moment,
                )
            )
            record_event(session, study, "parked", f"{item.kind} for {name}: {gone}")
            continue
        # Who holds an earlier revision gets its correction, however late.
        why = None if destination.name in job.told else _expired(destination, moment - study.received_at)
        session.add(
            Outbox(
                destination=destination.name,
                report_id=report.id,
                required=destination.required,
                state=DeliveryState.PARKED if why else DeliveryState.PENDING,
                last_error=why,
                ready_at=moment,
            )
        )
        if why:
            record_event(session, study, "parked", f"{item.kind} for {destination.name}: {why}")


def _expired(destination: Destination, age: timedelta) -> str | None:
    """Return why a report of this age is not sent, or None."""
    limit = destination.expires_after
    if limit is None or age <= limit:
        return None
    return (
        f"not sent: made {_hours(age)} after the study's first image came, and expires_after is "
        f"{_hours(limit)}; `hilum retry` sends it after all"
    )


def _hours(time: timedelta) -> str:
    return f"{time.total_seconds() / 3600:.3g} h"


def _record_result(study: Study, job: Job, conclusion: Result, model_id: int, moment: datetime) -> None:
    study.revision, study.model_id = job.number, model_id
    study.finding, study.probability, study.threshold = (
        conclusion.finding,
        conclusion.probability,
        conclusion.threshold,
    )
    study.result_reason, study.pattern = conclusion.reason, conclusion.pattern
    study.flags = list(conclusion.flags)
    study.reported_at, study.delivered_at, study.confirmed_at = moment, None, None
    if study.due_at is None:  # else a later image is on its way and the study goes on receiving
        study.state, study.reason = StudyState.REPORTED, None
