"""The machine-readable result: Comprehensive 3D SR by TID 1500 (PS3.16), as IHE AIR asks for.

Three findings with a real viewer (OHIF 3.12) decide its shape, beyond what validators ask: a measurement
group without spatial coordinates turns the viewport black, so every number, a negative's too, is inferred
from coordinates; the finding's code is never shown, only the Comment of a TID 1501 group, so the verdict is
said in a Comment; a polyline of 4 or 5 points becomes an editable rectangle, so ours have more.

::

    Imaging Measurement Report                      TID 1500
    ├── language, observer (device), procedure
    ├── Image Library                               TID 1600: every image, analysed or not
    ├── Imaging Measurements
    │   ├── Measurement Group                       TID 1501: one for each analysed image
    │   └── Measurement Group                       TID 1501: one for each heat-map contour of a positive
    └── Qualitative Evaluations                     the study's conclusion, images not analysed, limits
"""

from collections.abc import Sequence

from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    EnhancedSR,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
    TextContentItem,
)
from highdicom.sr import RelationshipTypeValues as Relationship
from pydicom.dataset import Dataset

from service.core.header import described_by
from service.core.results import suspicion
from worker import codes, wording
from worker.measurements import measurement_groups
from worker.report_context import (
    MANUFACTURER,
    ImageResult,
    Predecessor,
    ReportContext,
    identity,
    processing_algorithm,
    set_creation,
)
from worker.source import anonymous, inherit, local_time, normalised, requests

__all__ = [
    "ImageResult",
    "Predecessor",
    "ReportContext",
    "build_structured_report",
    "childless",
    "document",
    "headers_of",
    "leading_first",
    "observer_context",
    "place",
    "population",
    "predecessor_documents",
]

SERIES_NUMBER = 9001
SERIES_DESCRIPTION = "AI Pneumonia result (SR), not for diagnosis"


def build_structured_report(images: Sequence[ImageResult], context: ReportContext) -> Dataset:
    """Build the SR of one study; the same images and context give the same bytes.

    Parameters
    ----------
    images
        Every film that the report speaks of, analysed or not, in the order in which it numbers them. The
        first analysed one gives patient, study and order.
    context
        Identity of the report and of what made it.

    Returns
    -------
    Dataset
        Comprehensive 3D SR in Explicit VR Little Endian: complete, unverified, preliminary.

    Raises
    ------
    ValueError
        When no film was analysed (TID 1500 is for measurements), or the films are not of one study.
    """
    if not any(image.analysed for image in images):
        raise ValueError("a measurement report needs at least one analysed image")
    headers = headers_of(images)
    analysed = sum(image.analysed for image in images)
    numbered = [
        (image, header, wording.of_several(number, len(images), analysed))
        for number, (image, header) in enumerate(zip(images, headers, strict=True), start=1)
    ]
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer_context(context)),
        procedure_reported=codes.CHEST_X_RAY,
        imaging_measurements=[
            group
            # OHIF 3.12 shows the film of the first group only: the one that the conclusion is about.
            for image, header, of_several in sorted(
                numbered, key=lambda each: suspicion(each[0].result), reverse=True
            )
            if image.analysed
            for group in measurement_groups(image, header, context, of_several)
        ],
        title=codes.IMAGING_MEASUREMENT_REPORT,
        # In the order in which the text numbers them. An entry needs the size of its image (TID 1602);
        # evidence lists every image anyway.
        referenced_images=[
            anonymous(header) for header in headers if header.get("Rows") and header.get("Columns")
        ],
    )
    content[0].ContentSequence.append(_evaluations(images, headers, context))
    return document(
        Comprehensive3DSR, content, leading_first(images, headers), context, SERIES_NUMBER, SERIES_DESCRIPTION
    )


def headers_of(images: Sequence[ImageResult]) -> list[Dataset]:
    """Return the normalised headers of the films behind a result object, in their order.

    Raises
    ------
    ValueError
        When they are not of one study.
    """
    headers = [normalised(image.source) for image in images]
    if len({header.StudyInstanceUID for header in headers}) > 1:
        raise ValueError("the images behind one report belong to one study")
    return headers


def leading_first(images: Sequence[ImageResult], headers: Sequence[Dataset]) -> list[Dataset]:
    """Return the headers with those of analysed films first; the first of all gives patient and order."""
    return [
        header
        for analysed in (True, False)
        for image, header in zip(images, headers, strict=True)
        if image.analysed is analysed
    ]


def document(
    sop_class: type[Comprehensive3DSR | EnhancedSR],
    content: MeasurementReport | ContainerContentItem,
    evidence: Sequence[Dataset],
    context: ReportContext,
    series_number: int,
    series_description: str,
) -> Dataset:
    """Return a content tree as a document: complete, unverified, preliminary, by a device.

    Parameters
    ----------
    sop_class
        highdicom's class of the document.
    content
        The tree's root.
    evidence
        Normalised headers of every image behind it; the first one gives patient, study and order.
    """
    leading = evidence[0]
    at = local_time(leading, context.at)
    root = content[0] if isinstance(content, MeasurementReport) else content
    report = sop_class(
        evidence=[anonymous(header) for header in evidence],
        content=childless(root),
        is_complete=True,
        is_final=False,
        is_verified=False,  # no person has looked
        requested_procedures=requests(leading) or None,
        contributing_equipment=[processing_algorithm(context)],
        **identity(context, at, series_number, series_description),
    )
    report.ContentSequence = root.ContentSequence
    if context.predecessors:
        report.PredecessorDocumentsSequence = predecessor_documents(
            context.predecessors, leading.StudyInstanceUID
        )
    inherit(report, evidence, _texts(report))
    set_creation(report, at)
    return report


def childless(root: Dataset) -> Dataset:
    """Return the root of a tree alone.

    highdicom copies the tree, parses the copy and searches it for images that are no evidence: three quarters
    of a document's time, for a tree of its own items.
    """
    alone = Dataset()
    for element in root:
        if element.keyword != "ContentSequence":
            alone.add(element)
    alone.ContentSequence = []
    return alone


def observer_context(context: ReportContext) -> ObserverContext:
    """Return who observed: this installation, a device (TID 1002, TID 1004)."""
    return ObserverContext(
        observer_type=CodedConcept.from_code(codes.DEVICE),
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=context.device_uid,
            name=context.device_name,
            manufacturer_name=MANUFACTURER,
            model_name=MANUFACTURER,
            serial_number=context.device_serial_number,
        ),
    )


def _evaluations(
    images: Sequence[ImageResult], headers: Sequence[Dataset], context: ReportContext
) -> ContainerContentItem:
    """Return the Qualitative Evaluations container of TID 1500: the conclusion, and what was not analysed.

    An image without a number must not get a measurement group: it would have no coordinates. TID 1500 has
    no place for references here; the library holds the image.
    """
    conclusion = context.conclusion
    analysed = sum(image.analysed for image in images)
    items: list[CodeContentItem | TextContentItem] = [
        CodeContentItem(codes.FINDING, codes.PNEUMONIA, Relationship.CONTAINS),
        CodeContentItem(codes.PRESENCE, codes.PRESENCE_OF[conclusion.finding], Relationship.CONTAINS),
        TextContentItem(
            codes.CONCLUSION,
            wording.conclusion(conclusion, analysed, len(images), context.revision, beside=context.beside),
            Relationship.CONTAINS,
        ),
    ]
    if conclusion.pattern in codes.PATTERN_OF:
        pattern = codes.PATTERN_OF[conclusion.pattern]
        items.append(CodeContentItem(codes.IMPRESSION, pattern, Relationship.CONTAINS))
    said = [wording.limit(flag) for flag in conclusion.flags]
    # Not in a measurement group: a viewer writes those comments over the film.
    said += wording.feedback(context.feedback_url)
    items += [TextContentItem(codes.COMMENT, text, Relationship.CONTAINS) for text in said]
    for number, (image, header) in enumerate(zip(images, headers, strict=True), start=1):
        if image.analysed:
            said = population(number, images, context)
            items += [TextContentItem(codes.COMMENT, text, Relationship.CONTAINS) for text in said]
            continue
        text = wording.not_analysed(number, len(images), place(header), image.result.reason)
        items.append(TextContentItem(codes.COMMENT, text, Relationship.CONTAINS))
    container = ContainerContentItem(codes.QUALITATIVE_EVALUATIONS, relationship_type=Relationship.CONTAINS)
    container.ContentSequence = ContentSequence(items)
    return container


def population(number: int, images: Sequence[ImageResult], context: ReportContext) -> list[str]:
    """Return who and what is on image `number` beside what the network was validated on; may be nothing."""
    if context.population is None:
        return []
    film = described_by(images[number - 1].source)
    return [wording.population(number, len(images), film, context.population)]


def place(header: Dataset) -> str:
    """Return where a viewer shows the image, as far as its header tells: "series 1, image 2"."""
    numbers = ("series", header.get("SeriesNumber")), ("image", header.get("InstanceNumber"))
    return ", ".join(f"{level} {number}" for level, number in numbers if number is not None)


def predecessor_documents(predecessors: Sequence[Predecessor], study_instance_uid: str) -> list[Dataset]:
    """Return the items of Predecessor Documents Sequence (PS3.3 C.17.2), all of one study."""
    study = Dataset()
    study.StudyInstanceUID = study_instance_uid
    study.ReferencedSeriesSequence = []
    for series_instance_uid in dict.fromkeys(replaced.series_instance_uid for replaced in predecessors):
        series = Dataset()
        series.SeriesInstanceUID = series_instance_uid
        series.ReferencedSOPSequence = []
        for replaced in predecessors:
            if replaced.series_instance_uid == series_instance_uid:
                reference = Dataset()
                reference.ReferencedSOPClassUID = replaced.sop_class_uid
                reference.ReferencedSOPInstanceUID = replaced.sop_instance_uid
                series.ReferencedSOPSequence.append(reference)
        study.ReferencedSeriesSequence.append(series)
    return [study]


def _texts(report: Dataset) -> list[str]:
    """Return every text of ours in the content tree."""
    found: list[str] = []
    pending = [report]
    while pending:
        item = pending.pop()
        if "TextValue" in item:
            found.append(str(item.TextValue))
        pending.extend(item.get("ContentSequence") or [])
    return found
