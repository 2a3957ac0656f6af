"""What Hilum holds of a study, and shows: images as they stand, and the newest results.

A study has each SOP instance once. Left out is what nobody should read from by accident:

- of one image that came with several headers all but the one that stands, and what is quarantined;
- what an archive took out of use by a rejection note (IHE RAD-66), and results that speak of it;
- results that a later revision replaced, the second forms of a result that is there in its first, and the
  notes by which we tell archives so;
- what readers say of results: it names them, and goes where the site sends it;
- a study that is held because two patients are in it: it would be shown as one person's.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException
from pydicom.uid import UID
from sqlalchemy import ColumnElement, and_, exists, select
from sqlalchemy.orm import Session

from service.core.spool import Spool
from service.core.states import REPORTABLE_INSTANCES, SECOND_FORMS, InstanceState, Kind, StudyState
from service.core.tables import Instance, Report, Revision, Study, Subject
from service.core.tombstones import tombstone_of

SHOWN = (InstanceState.RECEIVED, InstanceState.DECODED, *REPORTABLE_INSTANCES)
MODALITIES = {
    **dict.fromkeys((Kind.SR, Kind.COMPREHENSIVE_SR, Kind.TEXT, Kind.NOT_ANALYSED), "SR"),
    **dict.fromkeys((Kind.HEATMAP, Kind.PLAIN_HEATMAP), "OT"),
    Kind.GSPS: "PR",
    Kind.PDF: "DOC",
}
_FIRST_FORMS = {second: first for first, second in SECOND_FORMS.items()}
_CHUNK = 500


@dataclass(frozen=True)
class Item:
    """One object that is held.

    Attributes
    ----------
    path
        Of its Part 10 file, relative to the data folder.
    modality
        Empty where the object names one that is no standard term.
    picture_path
        Of a PNG of it, None without one.
    kind
        Of one that we made; None of one that came.
    """

    study_id: int
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    modality: str
    path: str
    picture_path: str | None
    kind: Kind | None
    patient_id: str
    issuer_of_patient_id: str

    @property
    def resource(self) -> str:
        """Its path below the base URL of the service (PS3.18 table 10.4.1-1)."""
        return (
            f"/studies/{self.study_instance_uid}/series/{self.series_instance_uid}"
            f"/instances/{self.sop_instance_uid}"
        )


def is_open() -> ColumnElement[bool]:
    """Return the condition for studies of which contents would be shown."""
    return and_(Study.expired_at.is_(None), Study.removing.is_(None), Study.state != StudyState.HELD)


def is_shown() -> ColumnElement[bool]:
    """Return the condition for studies that have contents."""
    return and_(
        is_open(),
        exists().where(
            Instance.study_id == Study.id, Instance.state.in_(SHOWN), Instance.spool_path.is_not(None)
        ),
    )


def contents(session: Session, study_ids: Collection[int]) -> dict[int, list[Item]]:
    """Return what there is of each study, images first and in the order of their arrival."""
    found: dict[int, list[Item]] = {study_id: [] for study_id in study_ids}
    ids = list(study_ids)
    for begin in range(0, len(ids), _CHUNK):
        some = ids[begin : begin + _CHUNK]
        for item in _received(session, some):
            found[item.study_id].append(item)
        for item in _made(session, some, found):
            found[item.study_id].append(item)
    return found


def study_contents(session: Session, study_instance_uid: UID) -> list[Item]:
    """Return what there is of one study.

    Raises
    ------
    HTTPException
        404 when there is nothing, 409 when it is held, 410 when there was something.
    """
    study = session.scalars(select(Study).where(Study.study_instance_uid == study_instance_uid)).one_or_none()
    if study is None:
        if tombstone_of(session, study_instance_uid) is not None:
            raise HTTPException(410, "the study was erased")
        raise HTTPException(404, "no such study")
    if study.removing or study.expired_at is not None:
        raise HTTPException(410, "the files of the study were removed: its archive has them")
    if study.state == StudyState.HELD:
        raise HTTPException(
            409, f"the study is held and not shown: {study.reason or 'see the page of the study'}"
        )
    found = contents(session, [study.id])[study.id]
    if not found:
        raise HTTPException(404, "nothing of the study is kept: no radiograph, or all were taken out of use")
    return found


def why_not(session: Session, study_instance_uid: UID, sop_instance_uid: UID) -> HTTPException:
    """Return the answer for an instance that is not among what its study has."""
    states = set(
        session.scalars(
            select(Instance.state)
            .join(Study)
            .where(
                Study.study_instance_uid == study_instance_uid, Instance.sop_instance_uid == sop_instance_uid
            )
        )
    )
    if InstanceState.REJECTED in states:
        return HTTPException(410, "its archive took the instance out of use (a rejection note)")
    if InstanceState.IGNORED in states:
        return HTTPException(404, "the instance came and was not kept: it is no radiograph")
    report = session.scalars(select(Report).where(Report.sop_instance_uid == sop_instance_uid)).one_or_none()
    if report is not None:
        return HTTPException(410, f"revision {report.revision} of this result does not hold any more")
    return HTTPException(404, "no such instance in this study")


def there(spool: Spool, items: Iterable[Item]) -> list[Item]:
    """Return those whose file is where the ledger says."""
    return [item for item in items if spool.absolute(item.path).is_file()]


def _received(session: Session, study_ids: Sequence[int]) -> Iterable[Item]:
    rows: Sequence[Any] = session.execute(
        select(
            Instance.id,
            Instance.state,
            Study.study_instance_uid,
            Instance.study_id,
            Instance.series_instance_uid,
            Instance.sop_instance_uid,
            Instance.sop_class_uid,
            Instance.transfer_syntax_uid,
            Instance.modality,
            Instance.spool_path,
            Instance.picture_path,
            Subject.patient_id,
            Subject.issuer_of_patient_id,
        )
        .join(Study, Study.id == Instance.study_id)
        .join(Subject, Subject.id == Instance.subject_id)
        .where(
            Instance.study_id.in_(study_ids),
            Instance.state.in_(SHOWN),
            Instance.spool_path.is_not(None),
        )
        .order_by(Instance.id)
    ).all()
    standing: dict[tuple[int, str], Any] = {}
    for row in rows:
        # Whose pixels nobody has compared yet stands for no image that is there already.
        rank = (row.state != InstanceState.RECEIVED, row.id)
        other = standing.get((row.study_id, row.sop_instance_uid))
        if other is None or rank > (other.state != InstanceState.RECEIVED, other.id):
            standing[row.study_id, row.sop_instance_uid] = row
    for row in sorted(standing.values(), key=lambda row: row.id):
        yield Item(
            study_id=row.study_id,
            study_instance_uid=row.study_instance_uid,
            series_instance_uid=row.series_instance_uid,
            sop_instance_uid=row.sop_instance_uid,
            sop_class_uid=row.sop_class_uid,
            transfer_syntax_uid=row.transfer_syntax_uid,
            modality=row.modality,
            path=row.spool_path,
            picture_path=row.picture_path,
            kind=None,
            patient_id=row.patient_id,
            issuer_of_patient_id=row.issuer_of_patient_id,
        )


def _made(session: Session, study_ids: Sequence[int], received: dict[int, list[Item]]) -> Iterable[Item]:
    rejected = set(
        session.scalars(
            select(Instance.id).where(
                Instance.study_id.in_(study_ids), Instance.state == InstanceState.REJECTED
            )
        )
    )
    rows = session.execute(
        select(Report, Revision.instance_ids, Revision.model_id)
        .join(Revision, and_(Revision.study_id == Report.study_id, Revision.number == Report.revision))
        .where(Report.study_id.in_(study_ids), Report.path != "", Report.kind.in_(MODALITIES))
        .order_by(Report.id)
    ).all()
    newest: dict[int, int] = {}
    for report, _, _ in rows:
        newest[report.study_id] = max(report.revision, newest.get(report.study_id, 0))
    forms = {
        (report.study_id, report.kind, report.part)
        for report, _, _ in rows
        if report.revision == newest[report.study_id]
    }
    for report, instance_ids, model_id in rows:
        images = received[report.study_id]
        if not images or report.revision != newest[report.study_id]:
            continue
        # That nothing is analysed may be said of what was rejected.
        if model_id is not None and rejected & set(instance_ids):
            continue
        kind = Kind(report.kind)
        if (report.study_id, _FIRST_FORMS.get(kind), report.part) in forms:
            continue
        yield Item(
            study_id=report.study_id,
            study_instance_uid=images[0].study_instance_uid,
            series_instance_uid=report.series_instance_uid,
            sop_instance_uid=report.sop_instance_uid,
            sop_class_uid=report.sop_class_uid,
            transfer_syntax_uid=report.transfer_syntax_uid,
            modality=MODALITIES[kind],
            path=report.path,
            picture_path=None,
            kind=kind,
            patient_id=images[0].patient_id,
            issuer_of_patient_id=images[0].issuer_of_patient_id,
        )
