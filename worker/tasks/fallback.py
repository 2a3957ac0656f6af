"""The second form of an object, for a destination that does not take the first.

It is made from the stored bytes of the first, once for all destinations that need it, and goes out in its
place; the first is withdrawn there.
"""

import hashlib
from functools import partial

from pydicom import dcmread
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.core.destination import Destination
from service.core.failpoints import failpoint
from service.core.leases import Lease, held
from service.core.ledger import now, record_event
from service.core.refusals import remember
from service.core.settlement import settle, withdraw
from service.core.states import SECOND_FORMS, DeliveryState, Kind
from service.core.tables import Model, Outbox, Report, Revision
from worker.context import Context, discarding
from worker.encoding import save
from worker.tasks.documents import earlier_documents, second_form

_WORDS = {
    Kind.SR: "sent as Comprehensive SR instead: the destination does not accept Comprehensive 3D SR",
    Kind.HEATMAP: "sent uncompressed instead: the destination does not accept JPEG",
}


def fall_back(context: Context, destination: Destination, lease: Lease, report: Report) -> None:
    """Send the object in its second form instead; a destination that was offered it before has it made."""
    kind = Kind(report.kind)
    installation = context.ledger.installation()
    with context.ledger.read() as session:
        earlier = earlier_documents(session, report.study_id, report.revision)
        sha256 = session.scalars(
            select(Model.sha256)
            .join(Revision)
            .where(Revision.study_id == report.study_id, Revision.number == report.revision)
        ).one()
    other = second_form(dcmread(context.spool.absolute(report.path)), kind, installation, sha256, earlier)
    path = context.spool.write("reports", ".dcm", partial(save, other))
    content = context.spool.absolute(path).read_bytes()
    remember(context.ledger, destination, kind)
    failpoint("deliver.form_written")
    with discarding(context.spool, path), context.ledger.write() as session:
        row, study = held(session, lease)
        made = _second(session, report)
        if made is None:
            made = Report(
                study_id=report.study_id,
                kind=SECOND_FORMS[kind],
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
        withdraw(row, _WORDS[kind])
        record_event(session, study, "other_form", f"{report.kind} for {row.destination}: {_WORDS[kind]}")
        settle(session, study)
    if made.path != path:
        context.spool.remove(path)  # another destination had it made


def _second(session: Session, report: Report) -> Report | None:
    """Return the second form of an object, when it was made already."""
    return session.scalars(
        select(Report).where(
            Report.study_id == report.study_id,
            Report.kind == SECOND_FORMS[Kind(report.kind)],
            Report.revision == report.revision,
            Report.part == report.part,
        )
    ).one_or_none()
