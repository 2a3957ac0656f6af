"""Which SR documents replace which, and the second form of a report: Comprehensive SR.

A revision's document names as predecessors what of the same kind the newest earlier revision with documents
holds, and else all of its documents: an SR may follow a "not analysed", and the other way round.
"""

from collections.abc import Sequence

from pydicom import Dataset
from pydicom.uid import ComprehensiveSRStorage
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.core.identifiers import derived_uid, series_uid
from service.core.states import DOCUMENTS, Kind
from service.core.tables import Report
from worker.comprehensive import comprehensive_of
from worker.report_context import Predecessor


def earlier_documents(session: Session, study_id: int, number: int) -> Sequence[Report]:
    """Return the documents of the newest revision before `number` that has any."""
    found = session.scalars(
        select(Report)
        .where(Report.study_id == study_id, Report.revision < number, Report.kind.in_(DOCUMENTS))
        .order_by(Report.revision.desc(), Report.id)
    ).all()
    return [report for report in found if report.revision == found[0].revision]


def predecessors(earlier: Sequence[Report], kind: Kind) -> tuple[Predecessor, ...]:
    """Return what a document of `kind` replaces; see the module."""
    alike = [report for report in earlier if report.kind == kind]
    return tuple(
        Predecessor(report.sop_class_uid, report.sop_instance_uid, report.series_instance_uid)
        for report in alike or earlier
    )


def as_comprehensive(
    report: Dataset, installation: str, model_sha256: str, replaced: Sequence[Predecessor]
) -> Dataset:
    """Return the same report as Comprehensive SR, the same object whenever and for whomever it is made.

    Its SOP Instance UID follows from that of the 3D report, which stands for settings, sources, header
    revision and build already.
    """
    kind, sop_class = Kind.COMPREHENSIVE_SR, ComprehensiveSRStorage
    series = series_uid(installation, report.StudyInstanceUID, model_sha256, kind, sop_class)
    return comprehensive_of(
        report,
        series_instance_uid=series,
        sop_instance_uid=derived_uid("instance", series, report.SOPInstanceUID),
        predecessors=replaced,
    )
