"""Which objects one revision of a study is made of.

The report itself is always built: a structured report, or "not analysed" in words. Everything else is built
when some destination wants it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.uid import (
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    EnhancedSRStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
)

from service.core.destination import Destination
from service.core.identifiers import derived_uid, report_uid, series_uid
from service.core.ledger import now
from service.core.population import Population
from service.core.results import Finding, ModelIdentity, Result
from service.core.states import DOCUMENTS, Kind
from service.core.tables import Report
from worker.context import Context
from worker.document import build_document
from worker.heatmap import build_heatmap
from worker.presentation_state import build_presentation_state
from worker.rejection_note import build_rejection_note
from worker.report_context import ImageResult, ReportContext
from worker.source import identify
from worker.structured_report import build_structured_report
from worker.tasks.documents import predecessors, second_form
from worker.text_report import build_text_report

_CLASS = {
    Kind.SR: Comprehensive3DSRStorage,
    Kind.TEXT: EnhancedSRStorage,
    Kind.NOT_ANALYSED: EnhancedSRStorage,
    Kind.HEATMAP: SecondaryCaptureImageStorage,
    Kind.GSPS: GrayscaleSoftcopyPresentationStateStorage,
    Kind.PDF: EncapsulatedPDFStorage,
    Kind.REJECTION: KeyObjectSelectionDocumentStorage,
}

# Those that carry the link for feedback.
_LINKING = (Kind.SR, Kind.TEXT, Kind.NOT_ANALYSED, Kind.PDF)


@dataclass(frozen=True)
class Image:
    """One image of the revision as the ledger knows it."""

    sop_instance_uid: str
    digest: str
    spool_path: str
    film_path: str | None
    activation_path: str | None
    result: Result


@dataclass(frozen=True)
class Superseded:
    """What one set of destinations holds of earlier revisions, as paths of the objects by their UIDs."""

    destinations: frozenset[str]
    paths: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Job:
    """All that the ledger says of one revision, read before any file is touched.

    Attributes
    ----------
    rejected
        Whether its archive took all of the images out of use.
    says_chest
        Whether the header of one of the images calls it a chest radiograph.
    told
        Destinations that were sent an earlier revision, or may have been.
    refused
        Kinds that a destination is known not to take, by its name.
    beside
        Whether earlier revisions stand, because they speak of images whose files were removed.
    routed
        Destinations that the rules of the site send the result to; None: every one.
    feedback_url
        Where readers say what they think of the result; empty without a public address.
    population
        On whom the model was validated; None of what served before that was kept.
    identity
        Patient and order as an archive names them, by keyword, where that is not what the images say.
    withheld
        Whether nothing is built and sent: a back-fill fetched the study (`service.core.backfill`).
    """

    study_instance_uid: str
    installation: str
    ae_title: str
    number: int
    header_revision: int
    build: int
    model: ModelIdentity
    activation_method: str
    images: tuple[Image, ...]
    earlier: Sequence[Report]
    beside: bool
    rejected: bool
    says_chest: bool
    told: frozenset[str]
    refused: Mapping[str, frozenset[str]]
    identity: Mapping[str, str]
    superseded: tuple[Superseded, ...]
    routed: frozenset[str] | None
    feedback_url: str
    population: Population | None
    withheld: bool = False


@dataclass(frozen=True)
class Object:
    """One object, built; `finding` is what it is about, `destinations` the ones that get it."""

    kind: Kind
    part: int
    finding: Finding
    dataset: Dataset
    destinations: frozenset[str]


def objects(context: Context, job: Job, conclusion: Result) -> Iterator[Object]:
    """Build every object of the revision, one after the other."""
    at = now().astimezone(context.settings.zone)
    images = [_loaded(context, image, job.identity) for image in job.images]

    def about(kind: Kind, part: int = 1, more: str = "") -> ReportContext:
        settings = f"threshold={conclusion.threshold};population={context.settings.population};part={part}"
        if kind in _LINKING and context.settings.public_url:
            settings += f";feedback={context.settings.public_url}"
        return _report_context(job, conclusion, kind, settings + more, part, at)

    def wanting(kind: Kind, finding: Finding = conclusion.finding) -> frozenset[str]:
        return frozenset(
            destination.name
            for destination in context.settings.destinations
            if _is_for(job, destination)
            and destination.wants(kind, finding, job.refused.get(destination.name, ()))
        )

    # Where nobody is left that the rules name, a person is told by a parked delivery.
    there = {destination.name for destination in context.settings.destinations}
    gone = frozenset() if job.routed is None or job.routed & there else job.routed

    if conclusion.finding is Finding.NOT_ANALYSED:
        told = _told_not_analysed(context, job)
        note = build_text_report(images, about(Kind.NOT_ANALYSED))
        readers = frozenset(item.name for item in told if item.takes_documents)
        yield Object(Kind.NOT_ANALYSED, 1, conclusion.finding, note, readers | gone)
        if names := frozenset(item.name for item in told if "pdf" in item.objects):
            page = build_document(images, about(Kind.PDF))
            yield Object(Kind.PDF, 1, conclusion.finding, page, names)
    else:
        report = build_structured_report(images, about(Kind.SR))
        yield Object(Kind.SR, 1, conclusion.finding, report, wanting(Kind.SR) | gone)
        if names := wanting(Kind.COMPREHENSIVE_SR):
            again = second_form(report, Kind.SR, job.installation, job.model.sha256, job.earlier)
            yield Object(Kind.COMPREHENSIVE_SR, 1, conclusion.finding, again, names)
        for kind, build in (
            (Kind.TEXT, build_text_report),
            (Kind.GSPS, build_presentation_state),
            (Kind.PDF, build_document),
        ):
            if names := wanting(kind):
                yield Object(kind, 1, conclusion.finding, build(images, about(kind)), names)
        # A positive film gets a heat map even before there is a destination.
        mapped = [image for image in images if image.activation is not None]
        mapped = [
            image
            for image in mapped
            if image.result.finding is Finding.PRESENT
            or wanting(Kind.HEATMAP, image.result.finding)
            or wanting(Kind.PLAIN_HEATMAP, image.result.finding)
        ]
        for part, image in enumerate(mapped, start=1):
            finding = image.result.finding
            heatmap = build_heatmap(image, about(Kind.HEATMAP, part))
            yield Object(Kind.HEATMAP, part, finding, heatmap, wanting(Kind.HEATMAP, finding))
            if names := wanting(Kind.PLAIN_HEATMAP, finding):
                plain = second_form(heatmap, Kind.HEATMAP, job.installation, job.model.sha256, job.earlier)
                yield Object(Kind.PLAIN_HEATMAP, part, finding, plain, names)
    for part, superseded in enumerate(job.superseded, start=1):
        rejected = [
            dcmread(context.spool.absolute(path), stop_before_pixels=True) for _, path in superseded.paths
        ]
        named = ",".join(uid for uid, _ in superseded.paths)
        note = build_rejection_note(rejected, about(Kind.REJECTION, part, f";rejects={named}"))
        yield Object(Kind.REJECTION, part, conclusion.finding, note, superseded.destinations)


def _told_not_analysed(context: Context, job: Job) -> list[Destination]:
    """Return who is told that nothing was analysed: who wants to hear it, and who holds an earlier report.

    Beside images that were all rejected nothing is put but the correction of what stands there.
    """
    return [
        destination
        for destination in context.settings.destinations
        if destination.name in job.told
        or (_is_for(job, destination) and destination.wants_not_analysed(job.says_chest) and not job.rejected)
    ]


def _is_for(job: Job, destination: Destination) -> bool:
    """Return whether the rules send it there; who holds an earlier revision gets its correction as well."""
    return job.routed is None or destination.name in job.routed or destination.name in job.told


def _report_context(
    job: Job, conclusion: Result, kind: Kind, settings: str, part: int, at: datetime
) -> ReportContext:
    series = series_uid(job.installation, job.study_instance_uid, job.model.sha256, kind, _CLASS[kind])
    sources = [(image.sop_instance_uid, image.digest) for image in job.images]
    return ReportContext(
        conclusion=conclusion,
        model=job.model,
        activation_method=job.activation_method,
        series_instance_uid=series,
        sop_instance_uid=report_uid(series, settings, sources, job.header_revision, job.build),
        # Unique in the series: the revision's own number for the first object, the next hundreds for others.
        instance_number=job.number + 100 * (part - 1),
        revision=job.number,
        predecessors=predecessors(job.earlier, kind) if kind in DOCUMENTS else (),
        device_uid=derived_uid("device", job.installation),
        device_serial_number=job.installation,
        software_version=version("hilum"),
        at=at,
        device_name=job.ae_title,
        feedback_url=job.feedback_url,
        beside=job.beside,
        population=job.population,
    )


def _loaded(context: Context, image: Image, identity: Mapping[str, str]) -> ImageResult:
    header = dcmread(context.spool.absolute(image.spool_path), force=True, stop_before_pixels=True)
    identify(header, identity)
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
