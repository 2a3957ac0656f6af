"""The second form of an object, for a destination that does not take the first.

It is made from the stored bytes of the first, once for all destinations that need it, and goes out in its
place; the first is withdrawn there.
"""

import hashlib

from pydicom import dcmread
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.core.completion import settle, withdraw
from service.core.leases import Lease, held
from service.core.ledger import now, record_event
from service.core.refusals import remember
from service.core.settings import Destination
from service.core.states import DeliveryState, Kind
from service.core.tables import Model, Outbox, Report, Revision
from worker.context import Context, discarding
from worker.tasks.documents import as_comprehensive, earlier_documents, predecessors


def fall_back(context: Context, destination: Destination, lease: Lease, report: Report) -> None:
    """Send the report as Comprehensive SR instead; a destination that was offered it before has it made."""
    installation = context.ledger.installation()
    with context.ledger.read() as session:
        earlier = earlier_documents(session, report.study_id, report.revision)
        sha256 = session.scalars(
            select(Model.sha256)
            .join(Revision)
            .where(Revision.study_id == report.study_id, Revision.number == report.revision)
        ).one()
    other = as_comprehensive(
        dcmread(context.spool.absolute(report.path)),
        installation,
        sha256,
        predecessors(earlier, Kind.COMPREHENSIVE_SR),
    )
    path = context.spool.write(
        "reports", ".dcm", lambda stream: other.save_as(stream, enforce_file_format=True)
    )
    content = context.spool.absolute(path).read_bytes()
    remember(context.ledger, destination)
    why = "sent as Comprehensive SR instead: the destination does not accept Comprehensive 3D SR"
    with discarding(context.spool, path), context.ledger.write() as session:
        row, study = held(session, lease)
        made = _comprehensive(session, report)
        if made is None:
            made = Report(
                study_id=report.study_id,
                kind=Kind.COMPREHENSIVE_SR,
                revision=report.revision,
                part=report.part,
                sop_instance_uid=other.SOPInstanceUID,
                sop_class_uid=other.SOPClassUID,
                series_instance_uid=other.SeriesInstanceUID,
                transfer_syntax_uid=other.file_meta.TransferSyntaxUID,
                path=path,
                digest=hashlib.sha256(content).hexdigest(),
                size=len(content),
                created_at=now(),
            )
            session.add(made)
            session.flush()
        session.add(
            Outbox(
                destination=row.destination,
                report_id=made.id,
                required=row.required,
                state=DeliveryState.PENDING,
                ready_at=now(),
            )
        )
        withdraw(row, why)
        record_event(session, study, "other_form", f"{report.kind} for {row.destination}: {why}")
        settle(session, study)
    if made.path != path:
        context.spool.remove(path)  # another destination had it made


def _comprehensive(session: Session, report: Report) -> Report | None:
    """Return the Comprehensive SR of the same revision, when there is one."""
    return session.scalars(
        select(Report).where(
            Report.study_id == report.study_id,
            Report.kind == Kind.COMPREHENSIVE_SR,
            Report.revision == report.revision,
            Report.part == report.part,
        )
    ).one_or_none()
