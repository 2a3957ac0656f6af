"""The files of a study that people look at: stored PNGs and objects as they were made. Nothing is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastapi import HTTPException
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from pydicom.uid import JPEGBaseline8Bit
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.core.content_tree import ContentItem, content_tree
from service.core.spool import Spool
from service.core.states import DOCUMENTS, AnalysisState, InstanceState, Kind
from service.core.tables import Analysis, Instance, Report, Study

_SHOWN = (Kind.HEATMAP, Kind.PDF, *DOCUMENTS)
_NOT_SHOWN = (InstanceState.SUPERSEDED, InstanceState.IGNORED)
# Concept names (PS3.16) of what a reader looks for first.
_CONCLUSION, _COMMENT = "121077", "121106"


@dataclass(frozen=True)
class Picture:
    """A film to be shown and what is said of it; `overlay`: there is an activation map."""

    instance_id: int
    sop_instance_uid: str
    state: str
    overlay: bool
    said: str


@dataclass(frozen=True)
class Document:
    """An object made for a study that can be shown."""

    report_id: int
    kind: str
    revision: int


def pictures_of(session: Session, study_instance_uid: str) -> list[Picture]:
    """Return the films of a study that have a picture, in the order of their arrival."""
    rows = session.scalars(
        select(Instance)
        .join(Study)
        .where(
            Study.study_instance_uid == study_instance_uid,
            Instance.picture_path.is_not(None),
            Instance.state.not_in(_NOT_SHOWN),
        )
        .order_by(Instance.id)
    ).all()
    found = []
    for row in rows:
        analysis = _newest_analysis(session, row.id)
        said = row.reason or row.state.replace("_", " ")
        if analysis is not None and analysis.probability is not None:
            said = f"pneumonia {analysis.finding}, {100 * analysis.probability:.1f} %"
        overlay = analysis is not None and analysis.overlay_path is not None
        found.append(Picture(row.id, row.sop_instance_uid, row.state, overlay, said))
    return found


def documents_of(session: Session, study_instance_uid: str) -> list[Document]:
    """Return the objects made for a study that can be shown, the newest revision first."""
    rows = session.scalars(
        select(Report)
        .join(Study)
        .where(Study.study_instance_uid == study_instance_uid, Report.path != "", Report.kind.in_(_SHOWN))
        .order_by(Report.revision.desc(), Report.id)
    ).all()
    return [Document(row.id, row.kind, row.revision) for row in rows]


def film_file(session: Session, spool: Spool, study_instance_uid: str, instance_id: int) -> Path:
    """Return the picture of a film, or answer 404."""
    row = _instance(session, study_instance_uid, instance_id)
    return _there(spool, row.picture_path if row else None)


def overlay_file(session: Session, spool: Spool, study_instance_uid: str, instance_id: int) -> Path:
    """Return the activation map of a film, or answer 404."""
    row = _instance(session, study_instance_uid, instance_id)
    analysis = _newest_analysis(session, row.id) if row else None
    return _there(spool, analysis.overlay_path if analysis else None)


def object_of(session: Session, spool: Spool, study_instance_uid: str, report_id: int) -> tuple[str, Dataset]:
    """Return the kind of an object made for a study and the object as it is sent, or answer 404."""
    row = session.scalars(
        select(Report)
        .join(Study)
        .where(
            Report.id == report_id,
            Study.study_instance_uid == study_instance_uid,
            Report.kind.in_(_SHOWN),
        )
    ).one_or_none()
    return (row.kind if row else ""), dcmread(_there(spool, row.path if row else None))


def jpeg_of(heatmap: Dataset) -> bytes:
    """Return the JPEG within a heat map, as it lies there."""
    if heatmap.file_meta.TransferSyntaxUID != JPEGBaseline8Bit:
        raise HTTPException(404, "this heat map is no JPEG")
    return next(generate_frames(heatmap.PixelData, number_of_frames=1))


def pdf_of(document: Dataset) -> bytes:
    """Return the PDF within a document."""
    content = bytes(document.EncapsulatedDocument)
    return content[: int(document.get("EncapsulatedDocumentLength") or len(content))]


def lines_of(document: Dataset) -> tuple[list[str], Sequence[ContentItem]]:
    """Return what a structured report concludes and comments, and its whole content."""
    items = list(content_tree(document))
    first = [item.value for item in items if item.name_code[0] == _CONCLUSION]
    comments = [item.value for item in items if item.name_code[0] == _COMMENT]
    others = [item for item in comments if not any(item in said for said in first)]
    return list(dict.fromkeys([*first, *others])), items


def _instance(session: Session, study_instance_uid: str, instance_id: int) -> Instance | None:
    return session.scalars(
        select(Instance)
        .join(Study)
        .where(Instance.id == instance_id, Study.study_instance_uid == study_instance_uid)
    ).one_or_none()


def _newest_analysis(session: Session, instance_id: int) -> Analysis | None:
    return session.scalars(
        select(Analysis)
        .where(Analysis.instance_id == instance_id, Analysis.state == AnalysisState.DONE)
        .order_by(Analysis.id.desc())
        .limit(1)
    ).first()


def _there(spool: Spool, relative: str | None) -> Path:
    path = spool.absolute(relative) if relative else None
    if path is None or not path.is_file():
        raise HTTPException(404, "no such picture, or its file is not kept any more")
    return path
