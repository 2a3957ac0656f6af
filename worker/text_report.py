"""The result as a page of text: Enhanced SR, for viewers without TID 1500 and for studies without a number.

::

    Diagnostic Imaging Report                       TID 2000
    ├── language, observer (device), procedure
    ├── Conclusions                                 the study's verdict and limits
    ├── Findings                                    one text for each image, inferred from it
    └── Current Procedure Descriptions              the network

    Radiology Note                                  when no image was analysed
    ├── language, observer (device), procedure
    ├── Conclusions                                 NOT ANALYSED, which does not mean normal
    └── Current Procedure Descriptions              why, for each image; the network

The note has another title than the report: a (18748-4, LN, "Diagnostic Imaging Report") is what a reader
files as the reading of a film, and nothing was read; a (126000, DCM, "Imaging Measurement Report") measures,
and nothing was measured. CID 7000 is extensible and lists reports only; (75490-3, LN, "Radiology Note")
states no more than that the radiology has something to say about the study. It claims no template.
"""

from collections.abc import Iterator, Sequence

from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    EnhancedSR,
    ImageContentItem,
    LanguageOfContentItemAndDescendants,
    TextContentItem,
)
from highdicom.sr import RelationshipTypeValues as Relationship
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from service.core.header import described_by
from service.core.population import compared
from worker import codes, wording
from worker.report_context import ImageResult, ReportContext
from worker.structured_report import document, headers_of, leading_first, observer_context, place

SERIES_NUMBER = 9003
SERIES_DESCRIPTION = "AI Pneumonia text, not for diagnosis"
NOTE_SERIES_NUMBER = 9004
# A viewer cuts it after some 22 letters (OHIF 3.12).
NOTE_SERIES_DESCRIPTION = "AI: NOT ANALYSED (pneumonia), does not mean normal"

ENGLISH = Code("en-US", "RFC5646", "English (United States)")


def build_text_report(images: Sequence[ImageResult], context: ReportContext) -> Dataset:
    """Build the text of one study; the same images and context give the same bytes.

    Parameters
    ----------
    images
        Every film that the text speaks of, analysed or not, in the order in which it numbers them.
    context
        Identity of the object and of what made it. A note (no image analysed) and a report differ in number
        and description of their series: give them one series each.

    Returns
    -------
    Dataset
        Enhanced SR in Explicit VR Little Endian: complete, unverified, preliminary.

    Raises
    ------
    ValueError
        When there is no film, or the films are not of one study.
    """
    if not images:
        raise ValueError("a text report needs at least one image")
    headers = headers_of(images)
    analysed = any(image.analysed for image in images)
    root = ContainerContentItem(
        codes.DIAGNOSTIC_IMAGING_REPORT if analysed else codes.RADIOLOGY_NOTE,
        is_content_continuous=False,
        template_id="2000" if analysed else None,
    )
    root.ContentSequence = ContentSequence(
        [
            *LanguageOfContentItemAndDescendants(CodedConcept.from_code(ENGLISH)),
            *observer_context(context),
            CodeContentItem(codes.PROCEDURE_REPORTED, codes.CHEST_X_RAY, Relationship.HAS_CONCEPT_MOD),
            *(_sections if analysed else _sections_of_note)(images, headers, context),
        ]
    )
    return document(
        EnhancedSR,
        root,
        leading_first(images, headers),
        context,
        SERIES_NUMBER if analysed else NOTE_SERIES_NUMBER,
        SERIES_DESCRIPTION if analysed else NOTE_SERIES_DESCRIPTION,
    )


def _sections(
    images: Sequence[ImageResult], headers: Sequence[Dataset], context: ReportContext
) -> list[ContainerContentItem]:
    conclusion, analysed = context.conclusion, sum(image.analysed for image in images)
    said = wording.conclusion(conclusion, analysed, len(images), context.revision, beside=context.beside)
    # The first two of the comments are part of the conclusion.
    texts = (said, *wording.comments(conclusion)[2:], *wording.feedback(context.feedback_url))
    conclusions = [_text(codes.CONCLUSION, text) for text in texts]
    return [
        _section(codes.CONCLUSIONS, conclusions),
        _section(codes.FINDINGS, list(_told(images, headers, context, codes.FINDING))),
        _section(codes.PROCEDURE_DESCRIPTIONS, [_network(context)]),
    ]


def _sections_of_note(
    images: Sequence[ImageResult], headers: Sequence[Dataset], context: ReportContext
) -> list[ContainerContentItem]:
    said = wording.conclusion(context.conclusion, 0, len(images), context.revision, beside=context.beside)
    told = _told(images, headers, context, codes.PROCEDURE_DESCRIPTION)
    texts = (said, wording.NOT_ASSESSED, *wording.feedback(context.feedback_url))
    return [
        _section(codes.CONCLUSIONS, [_text(codes.CONCLUSION, text) for text in texts]),
        _section(codes.PROCEDURE_DESCRIPTIONS, [*told, _network(context)]),
    ]


def _told(
    images: Sequence[ImageResult], headers: Sequence[Dataset], context: ReportContext, name: Code
) -> Iterator[TextContentItem]:
    """Yield one text for each image, with a reference to that from which a number was inferred (TID 2001)."""
    for number, (image, header) in enumerate(zip(images, headers, strict=True), start=1):
        if not image.analysed:
            text = wording.not_analysed(number, len(images), place(header), image.result.reason)
            yield _text(name, text)
            continue
        called = wording.image(number, len(images), place(header))
        # Lines, as OHIF 3.12 wraps no Finding and cuts it off.
        lines = wording.comments(image.result)
        if context.population is not None:
            lines += [str(each) for each in compared(described_by(image.source), context.population)]
        item = _text(name, f"{called}: " + "\r\n".join(lines))
        reference = ImageContentItem(
            codes.SOURCE_OF_MEASUREMENT,
            header.SOPClassUID,
            header.SOPInstanceUID,
            relationship_type=Relationship.INFERRED_FROM,
        )
        item.ContentSequence = ContentSequence([reference])
        yield item


def _network(context: ReportContext) -> TextContentItem:
    return _text(codes.PROCEDURE_DESCRIPTION, wording.network(context.model))


def _text(name: Code, text: str) -> TextContentItem:
    return TextContentItem(name, text, Relationship.CONTAINS)


def _section(heading: Code, items: Sequence[ContentItem]) -> ContainerContentItem:
    section = ContainerContentItem(
        heading, is_content_continuous=False, relationship_type=Relationship.CONTAINS
    )
    section.ContentSequence = ContentSequence(items)
    return section
