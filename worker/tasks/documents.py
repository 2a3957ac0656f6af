"""Which SR documents replace which, and the second form of an object for who does not take the first.

A revision's document names as predecessors what of the same kind the newest earlier revision with documents
holds, and else all of its documents: an SR may follow a "not analysed", and the other way round. A revision
that cannot speak of an image that an earlier one speaks of, because its files were removed, replaces nothing.
"""

from collections.abc import Sequence

from pydicom import Dataset
from pydicom.uid import ComprehensiveSRStorage
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.core.identifiers import derived_uid, series_uid
from service.core.states import DOCUMENTS, REPORTABLE_INSTANCES, SECOND_FORMS, Kind
from service.core.tables import Instance, Report, Revision
from worker.comprehensive import comprehensive_of
from worker.heatmap import plain_of
from worker.report_context import Predecessor


def stands_beside(session: Session, study_id: int, number: int) -> bool:
    """Return whether an earlier revision speaks of an image that this one cannot speak of any more."""
    rows = session.execute(
        select(Revision.number, Revision.instance_ids).where(
            Revision.study_id == study_id, Revision.number <= number
        )
    )
    spoken_of = {row: set(instance_ids) for row, instance_ids in rows}
    earlier = set().union(*(found for row, found in spoken_of.items() if row < number))
    gone = select(Instance.id).where(
        Instance.study_id == study_id,
        Instance.state.in_(REPORTABLE_INSTANCES),
        Instance.spool_path.is_(None),
    )
    return bool(set(session.scalars(gone)) & earlier - spoken_of.get(number, set()))


def earlier_documents(session: Session, study_id: int, number: int) -> Sequence[Report]:
    """Return the documents of the newest revision before `number` that has any, if `number` replaces it."""
    if stands_beside(session, study_id, number):
        return ()
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


def second_form(
    first: Dataset, kind: Kind, installation: str, model_sha256: str, earlier: Sequence[Report]
) -> Dataset:
    """Return the object of `kind` in its second form, the same whenever and for whomever it is made.

    Its SOP Instance UID follows from that of the first form, which stands for settings, sources, header
    revision and build already.
    """
    other = SECOND_FORMS[kind]
    sop_class = ComprehensiveSRStorage if other is Kind.COMPREHENSIVE_SR else first.SOPClassUID
    series = series_uid(installation, first.StudyInstanceUID, model_sha256, other, sop_class)
    instance = derived_uid("instance", series, first.SOPInstanceUID)
    if other is Kind.PLAIN_HEATMAP:
        return plain_of(first, series_instance_uid=series, sop_instance_uid=instance)
    return comprehensive_of(
        first,
        series_instance_uid=series,
        sop_instance_uid=instance,
        predecessors=predecessors(earlier, other),
    )
