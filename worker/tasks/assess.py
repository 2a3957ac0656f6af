"""Queue `report`: what readers say of results becomes SRs, for the destinations that ask for them.

One series a study and model, one instance an entry. An entry that replaces what the same reader said before
names that as its predecessor.
"""

from collections.abc import Sequence
from importlib.metadata import version

import structlog
from pydicom import Dataset, dcmread
from pydicom.uid import EnhancedSRStorage
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.core.claims import claim
from service.core.destination import Destination
from service.core.errors import LeaseLost
from service.core.failpoints import failpoint
from service.core.identifiers import derived_uid, series_uid
from service.core.leases import (
    ASSESS,
    Lease,
    held,
    leased,
    named_in_logs,
    release_failed,
    renewed,
)
from service.core.ledger import now, record_event
from service.core.results import Finding, ModelIdentity, Result
from service.core.settlement import settle
from service.core.states import DOCUMENTS, Assessment, AssessmentState, DeliveryState, Kind
from service.core.tables import AssessmentReport, Feedback, Model, Outbox, Report, Study, Subject
from worker.assessment import Reading, build_assessment
from worker.context import Context, discarding
from worker.report_context import Predecessor, ReportContext
from worker.source import identify
from worker.tasks.written import written

_log = structlog.get_logger()


def run(context: Context) -> None:
    """Lease the entries that wait for their SR, and build it."""
    for lease in claim(context.ledger, ASSESS, 1):
        with renewed(context.ledger, [lease]), named_in_logs(context.ledger, lease):
            try:
                _build_one(context, lease)
            except LeaseLost as fault:
                _log.warning("assess.lease_lost", reason=str(fault))
            except Exception as fault:
                _log.exception("assess.failed")
                release_failed(context.ledger, lease, fault)


def assessment_of(context: Context, session: Session, entry: Feedback) -> Dataset | None:
    """Return the SR of an entry, the same bytes whenever it is made; None when what it is about is not kept.

    Raises
    ------
    FileNotFoundError
        When a report that should be kept is not there.
    """
    study = session.get_one(Study, entry.study_id)
    about = _assessed(session, entry)
    if not about:
        return None
    model = _model(session, entry)
    headers = [
        dcmread(context.spool.absolute(report.path), stop_before_pixels=True, force=True) for report in about
    ]
    for header in headers:
        identify(header, _told(session, study.id))
    installation = context.ledger.installation()
    series = _series(session, installation, entry)
    reading = Reading(
        Result(Finding(entry.finding), entry.probability, entry.threshold, study.result_reason),
        Assessment(entry.assessment),
        Finding(entry.own_finding) if entry.own_finding else None,
        entry.note or "",
        entry.reader,
    )
    return build_assessment(
        headers,
        reading,
        ReportContext(
            conclusion=reading.result,
            model=ModelIdentity(model.name, model.version, model.sha256),
            activation_method=model.activation_method,
            series_instance_uid=series,
            sop_instance_uid=_instance(series, entry),
            instance_number=_number(session, entry),
            revision=entry.revision,
            predecessors=_predecessors(session, installation, entry),
            device_uid=derived_uid("device", installation),
            device_serial_number=installation,
            software_version=version("hilum"),
            at=entry.at.astimezone(context.settings.zone),
            device_name=context.settings.ae_title,
        ),
    )


def stored_assessment(session: Session, entry: Feedback) -> str | None:
    """Return the path of the SR that was made of an entry, None without one."""
    path = session.scalars(
        select(Report.path)
        .join(AssessmentReport, AssessmentReport.report_id == Report.id)
        .where(AssessmentReport.feedback_id == entry.id)
    ).first()
    return path or None


def _build_one(context: Context, lease: Lease) -> None:
    with context.ledger.read() as session:
        waiting: AssessmentReport = leased(session, lease)
        entry = session.get_one(Feedback, waiting.feedback_id)
        made = assessment_of(context, session, entry)
        number = _number(session, entry)
    if made is None:
        with context.ledger.write() as session:
            row, _ = held(session, lease)
            row.state, row.last_error = AssessmentState.FAILED, "the report that it is about is not kept"
        return
    path, digest, size = written(context, made)
    failpoint("assess.written")
    with discarding(context.spool, path), context.ledger.write() as session:
        row, study = held(session, lease)
        moment = now()
        report = Report(
            study_id=study.id,
            kind=Kind.ASSESSMENT,
            revision=entry.revision,
            part=number,
            sop_instance_uid=made.SOPInstanceUID,
            sop_class_uid=made.SOPClassUID,
            series_instance_uid=made.SeriesInstanceUID,
            transfer_syntax_uid=made.file_meta.TransferSyntaxUID,
            path=path,
            digest=digest,
            size=size,
            created_at=moment,
        )
        session.add(report)
        session.flush()
        row.state, row.report_id = AssessmentState.BUILT, report.id
        for destination in _wanting(session, context, study.id, entry):
            session.add(
                Outbox(
                    destination=destination.name,
                    report_id=report.id,
                    required=False,  # the study's own report is not less there without it
                    state=DeliveryState.PENDING,
                    ready_at=moment,
                )
            )
        settle(session, study)
        record_event(session, study, "assessed", f"a reader's assessment of revision {entry.revision}")


def _assessed(session: Session, entry: Feedback) -> Sequence[Report]:
    """Return the documents that say the result, the machine-readable one first."""
    found = session.scalars(
        select(Report)
        .where(
            Report.study_id == entry.study_id,
            Report.revision == entry.revision,
            Report.kind.in_(DOCUMENTS),
            Report.path != "",
        )
        .order_by(Report.id)
    ).all()
    return sorted(found, key=lambda report: DOCUMENTS.index(Kind(report.kind)))


def _wanting(session: Session, context: Context, study_id: int, entry: Feedback) -> Sequence[Destination]:
    """Return who asks for assessments and was meant to get the report that this one is about."""
    meant = set(
        session.scalars(
            select(Outbox.destination)
            .join(Report)
            .where(
                Report.study_id == study_id,
                Report.revision == entry.revision,
                Report.kind != Kind.ASSESSMENT,
                Outbox.state != DeliveryState.WITHDRAWN,
            )
        )
    )
    return [
        item for item in context.settings.destinations if "assessment" in item.objects and item.name in meant
    ]


def _told(session: Session, study_id: int) -> dict[str, str]:
    """Return what an archive says of patient and order, where that is not what the images say."""
    for told in session.scalars(
        select(Subject.told).where(Subject.study_id == study_id).order_by(Subject.id)
    ):
        if told:
            return dict(told)
    return {}


def _predecessors(session: Session, installation: str, entry: Feedback) -> tuple[Predecessor, ...]:
    """Return the SR of what the same reader said before, whether it is made already or can be."""
    for before in session.scalars(
        select(Feedback)
        .where(
            Feedback.study_id == entry.study_id,
            Feedback.reader == entry.reader,
            Feedback.user == entry.user,
            Feedback.id < entry.id,
        )
        .order_by(Feedback.id.desc())
    ):
        made = session.scalars(
            select(Report)
            .join(AssessmentReport, AssessmentReport.report_id == Report.id)
            .where(AssessmentReport.feedback_id == before.id)
        ).first()
        if made is not None:
            return (Predecessor(made.sop_class_uid, made.sop_instance_uid, made.series_instance_uid),)
        if _assessed(session, before):
            series = _series(session, installation, before)
            return (Predecessor(EnhancedSRStorage, _instance(series, before), series),)
    return ()


def _number(session: Session, entry: Feedback) -> int:
    """Return which entry of its study it is, from 1 on."""
    count = select(func.count()).where(Feedback.study_id == entry.study_id, Feedback.id <= entry.id)
    return session.scalar(count) or 1


def _model(session: Session, entry: Feedback) -> Model:
    return session.get_one(Model, entry.model_id or session.get_one(Study, entry.study_id).model_id)


def _series(session: Session, installation: str, entry: Feedback) -> str:
    study, model = session.get_one(Study, entry.study_id), _model(session, entry)
    return series_uid(
        installation, study.study_instance_uid, model.sha256, Kind.ASSESSMENT, EnhancedSRStorage
    )


def _instance(series: str, entry: Feedback) -> str:
    # Its moment too: a restored ledger gives the numbers of rows again.
    return derived_uid("instance", series, str(entry.id), entry.at.isoformat())
