"""Queue `report`: one revision of a study becomes DICOM objects with a row in each destination's outbox."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
from pydicom import Dataset, dcmread
from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.core.completion import result_of
from service.core.errors import LeaseLost
from service.core.identifiers import derived_uid, report_uid, series_uid
from service.core.leases import REPORT, Lease, claim, held, release_failed, renewed
from service.core.ledger import now, record_event
from service.core.results import Finding, ModelIdentity, Result, conclude
from service.core.states import AnalysisState, DeliveryState, RevisionState, StudyState
from service.core.tables import Analysis, Instance, Outbox, Report, Revision, Study
from worker.context import Context, discarding
from worker.heatmap import build_heatmap
from worker.structured_report import (
    ImageResult,
    Predecessor,
    ReportContext,
    build_structured_report,
)

_log = structlog.get_logger()


@dataclass(frozen=True)
class _Image:
    """One image of the revision as the ledger knows it."""

    sop_instance_uid: str
    digest: str
    spool_path: str
    film_path: str | None
    activation_path: str | None
    result: Result


@dataclass(frozen=True)
class _Job:
    """All that the ledger says of one revision, read before any file is touched."""

    study_instance_uid: str
    installation: str
    ae_title: str
    number: int
    header_revision: int
    build: int
    model: ModelIdentity
    activation_method: str
    images: tuple[_Image, ...]
    predecessors: dict[str, Predecessor]


@dataclass(frozen=True)
class _Object:
    """One object, built; `finding` is what it is about."""

    kind: str
    part: int
    finding: Finding
    dataset: Dataset


@dataclass(frozen=True)
class _Built(_Object):
    """One object, on disk."""

    path: str
    digest: str
    size: int


def run(context: Context) -> None:
    """Lease the revisions that wait, and build their objects."""
    for lease in claim(context.ledger, REPORT, 1):
        with renewed(context.ledger, [lease]):
            try:
                _report_one(context, lease)
            except LeaseLost as fault:
                _log.warning("report.lease_lost", reason=str(fault))
            except Exception as fault:
                _log.exception("report.failed", revision=lease.row_id)
                release_failed(context.ledger, lease, fault)


def _report_one(context: Context, lease: Lease) -> None:
    job = _read(context, lease)
    conclusion = conclude([image.result for image in job.images])
    built: list[_Built] = []
    with ExitStack() as kept:
        for item in _objects(context, job, conclusion):
            built.append(_written(context, item))
            kept.enter_context(discarding(context.spool, built[-1].path))
        with context.ledger.write() as session:
            revision, study = held(session, lease)
            _record(session, context, revision, study, job, conclusion, built)


def _read(context: Context, lease: Lease) -> _Job:
    installation = context.ledger.installation()
    with context.ledger.read() as session:
        revision = session.get_one(Revision, lease.row_id)
        study = session.get_one(Study, revision.study_id)
        images = [
            _image(session, session.get_one(Instance, instance_id), revision.model_id)
            for instance_id in revision.instance_ids
        ]
        earlier = session.scalars(
            select(Report)
            .where(Report.study_id == study.id, Report.revision < revision.number)
            .order_by(Report.revision, Report.part.desc())
        )
        return _Job(
            study_instance_uid=study.study_instance_uid,
            installation=installation,
            ae_title=context.settings.ae_title,
            number=revision.number,
            header_revision=revision.header_revision,
            build=revision.build,
            model=ModelIdentity(revision.model.name, revision.model.version, revision.model.sha256),
            activation_method=revision.model.activation_method,
            images=tuple(images),
            predecessors={
                report.kind: Predecessor(
                    report.sop_class_uid, report.sop_instance_uid, report.series_instance_uid
                )
                for report in earlier
            },
        )


def _image(session: Session, instance: Instance, model_id: int) -> _Image:
    analysis = session.scalars(
        select(Analysis).where(
            Analysis.instance_id == instance.id,
            Analysis.model_id == model_id,
            Analysis.state == AnalysisState.DONE,
        )
    ).one_or_none()
    assert instance.spool_path is not None, "a reported image was kept"
    return _Image(
        instance.sop_instance_uid,
        instance.digest,
        instance.spool_path,
        instance.film_path,
        analysis.activation_path if analysis else None,
        result_of(instance, analysis),
    )


def _objects(context: Context, job: _Job, conclusion: Result) -> Iterator[_Object]:
    """Build the structured report, and a heat map for each film that somebody wants one of."""
    at = now().astimezone(context.settings.zone)
    images = [_loaded(context, image) for image in job.images]
    settings = f"threshold={conclusion.threshold};population={context.settings.population}"

    def about(kind: str, sop_class: str, part: int) -> ReportContext:
        return _report_context(job, conclusion, kind, sop_class, f"{settings};part={part}", part, at)

    report = build_structured_report(images, about("sr", Comprehensive3DSRStorage, 1))
    yield _Object("sr", 1, conclusion.finding, report)
    wanted = [image for image in images if image.activation is not None and _wanted(context, image.result)]
    for part, image in enumerate(wanted, start=1):
        heatmap = build_heatmap(image, about("heatmap", SecondaryCaptureImageStorage, part))
        yield _Object("heatmap", part, image.result.finding, heatmap)


def _wanted(context: Context, result: Result) -> bool:
    """Return whether a film gets a heat map; a positive one does even before there is a destination."""
    return result.finding is Finding.PRESENT or any(
        destination.wants("heatmap", result.finding) for destination in context.settings.destinations
    )


def _report_context(
    job: _Job, conclusion: Result, kind: str, sop_class: str, settings: str, part: int, at: datetime
) -> ReportContext:
    series = series_uid(job.installation, job.study_instance_uid, job.model.sha256, kind, sop_class)
    sources = [(image.sop_instance_uid, image.digest) for image in job.images]
    predecessor = job.predecessors.get(kind)
    return ReportContext(
        conclusion=conclusion,
        model=job.model,
        activation_method=job.activation_method,
        series_instance_uid=series,
        sop_instance_uid=report_uid(series, settings, sources, job.header_revision, job.build),
        # Unique in the series: the revision's own number for the first object, the next hundreds for others.
        instance_number=job.number + 100 * (part - 1),
        revision=job.number,
        predecessors=(predecessor,) if predecessor else (),
        device_uid=derived_uid("device", job.installation),
        device_serial_number=job.installation,
        software_version=version("hilum"),
        at=at,
        device_name=job.ae_title,
    )


def _loaded(context: Context, image: _Image) -> ImageResult:
    header = dcmread(context.spool.absolute(image.spool_path), force=True, stop_before_pixels=True)
    return ImageResult(
        header,
        image.result,
        _array(context, image.activation_path),
        _array(context, image.film_path),
    )


def _array(context: Context, path: str | None) -> npt.NDArray[Any] | None:
    if path is None:
        return None
    array: npt.NDArray[Any] = np.load(context.spool.absolute(path))
    return array


def _written(context: Context, item: _Object) -> _Built:
    path = context.spool.write(
        "reports", ".dcm", lambda stream: item.dataset.save_as(stream, enforce_file_format=True)
    )
    content = context.spool.absolute(path).read_bytes()
    return _Built(**vars(item), path=path, digest=hashlib.sha256(content).hexdigest(), size=len(content))


def _record(
    session: Session,
    context: Context,
    revision: Revision,
    study: Study,
    job: _Job,
    conclusion: Result,
    built: list[_Built],
) -> None:
    moment = now()
    revision.state = RevisionState.REPORTED
    for item in built:
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
        session.add_all(
            Outbox(
                destination=destination.name,
                report_id=report.id,
                required=destination.required,
                state=DeliveryState.PENDING,
                ready_at=moment,
            )
            for destination in context.settings.destinations
            if destination.wants(item.kind, item.finding)
        )
    study.revision, study.model_id = job.number, revision.model_id
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
    record_event(session, study, "reported", f"revision {job.number}: {conclusion.finding}")
