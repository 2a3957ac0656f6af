"""The result as one page to file or to print: Encapsulated PDF (PS3.3 A.45.1).

A name is written by the first of its component groups (alphabetic, ideographic, phonetic) that `worker.page`
can draw whole.
"""

from collections.abc import Sequence
from datetime import datetime

import numpy as np
from highdicom import SOPClass
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage

from service.core.results import Finding
from worker import codes, wording
from worker.colours import overlay
from worker.page import GREY, HEIGHT, LEADING, MARGIN, NOT_PRINTABLE, WHITE, WIDTH, Page, printable
from worker.report_context import (
    ImageResult,
    ReportContext,
    identity,
    names_of,
    processing_algorithm,
    reference,
    set_creation,
)
from worker.source import inherit, local_time
from worker.structured_report import headers_of, leading_first, place, population

SERIES_NUMBER = 9006
SERIES_DESCRIPTION = "AI Pneumonia page (PDF), not for diagnosis"
TITLE = "AI chest X-ray result: pneumonia"

_MOST_FILMS = 6
_MOST_LINES = 6  # of one fact
_FEEDBACK = "Feedback"
_YELLOW = (1.0, 0.84, 0.04)
# No green: a negative is no all-clear.
_BAND = {
    Finding.PRESENT: (0.60, 0.11, 0.13),
    Finding.INDETERMINATE: (0.50, 0.33, 0.04),
    Finding.ABSENT: (0.16, 0.27, 0.40),
    Finding.NOT_ANALYSED: (0.25, 0.25, 0.27),
}


def build_document(images: Sequence[ImageResult], context: ReportContext) -> Dataset:
    """Build the page of one study; the same images and context give the same bytes.

    Parameters
    ----------
    images
        Every film that the page speaks of, analysed or not, in the order in which it numbers them. Of those
        that have a picture six are shown, positive ones first: a positive one with its class activation over
        it, the others plain, as an activation relative to its own maximum looks suspicious on any film.
    context
        Identity of the object (its own series) and of what made it.

    Returns
    -------
    Dataset
        Encapsulated PDF of one A4 page in Explicit VR Little Endian.

    Raises
    ------
    ValueError
        When there is no film, or the films are not of one study.
    """
    if not images:
        raise ValueError("a document needs at least one image")
    headers = headers_of(images)
    ordered = leading_first(images, headers)
    leading = ordered[0]
    at = local_time(leading, context.at)
    document = SOPClass(
        study_instance_uid=leading.StudyInstanceUID,
        sop_class_uid=EncapsulatedPDFStorage,
        modality="DOC",
        **identity(context, at, SERIES_NUMBER, SERIES_DESCRIPTION),
    )
    document.ContributingEquipmentSequence = [processing_algorithm(context)]
    document.ConversionType = "WSD"
    document.AcquisitionDateTime = None
    document.BurnedInAnnotation = "YES"  # the page names the patient
    document.SourceInstanceSequence = [reference(header) for header in headers]
    document.DocumentTitle = TITLE
    title = (
        codes.DIAGNOSTIC_IMAGING_REPORT if any(image.analysed for image in images) else codes.RADIOLOGY_NOTE
    )
    document.ConceptNameCodeSequence = [CodedConcept.from_code(title)]
    document.VerificationFlag = "UNVERIFIED"
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    pdf = _pdf(images, headers, leading, context, at)
    document.EncapsulatedDocumentLength = len(pdf)
    document.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    inherit(document, ordered, names_of(context.model))
    set_creation(document, at)
    return document


def _pdf(
    images: Sequence[ImageResult],
    headers: Sequence[Dataset],
    leading: Dataset,
    context: ReportContext,
    at: datetime,
) -> bytes:
    page = Page(TITLE, f"Hilum {context.software_version}", context.at)
    conclusion = context.conclusion
    top = HEIGHT - MARGIN
    page.text(MARGIN, top - 15, TITLE, 16, bold=True)
    page.text(
        WIDTH - MARGIN,
        top - 15,
        wording.revision(context.revision, beside=context.beside),
        10,
        GREY,
        right=True,
    )
    top -= 26
    page.rule(top)
    for row, fields in enumerate(_patient(leading)):
        for column, (label, value) in enumerate(fields):
            left, baseline = MARGIN + column * 262, top - 16 - row * 14
            room = 160 if len(fields) > 1 else 400
            page.text(left, baseline, label, 8.5, GREY)
            page.text(left + 92, baseline, page.shortened(value, 9.5, room), 9.5, bold=not row)
    top -= 16 + 14 * 4

    verdict = page.wrapped(wording.verdict(conclusion), 13, WIDTH - 2 * MARGIN - 24, most=3, bold=True)
    said = _said(images, conclusion.finding)
    band = 32 + 19 * len(verdict) + 13 * len(said)
    page.rectangle(MARGIN, top - band, WIDTH - 2 * MARGIN, band, _BAND[conclusion.finding])
    top -= 25
    for line in verdict:
        page.text(MARGIN + 12, top, line, 13, WHITE, bold=True)
        top -= 19
    page.text(MARGIN + 12, top, wording.RESEARCH_USE_ONLY, 11, _YELLOW, bold=True)
    for line in said:
        top -= 13
        page.text(MARGIN + 12, top, line, 8.5, WHITE)
    top -= 7

    facts = [
        (label, page.wrapped(text, 8.5, WIDTH - 2 * MARGIN - 90, most=_MOST_LINES))
        for label, text in _facts(images, context, at)
    ]
    bottom = MARGIN + 44
    height = sum(len(lines) for _, lines in facts) * 8.5 * LEADING + 3 * len(facts)
    _films(page, images, headers, top - 10, bottom + height + 8)
    top = bottom + height
    for label, lines in facts:
        page.text(MARGIN, top - 8.5, label, 8.5, GREY)
        for line in lines:
            page.text(
                MARGIN + 90, top - 8.5, line, 8.5, url=context.feedback_url if label == _FEEDBACK else ""
            )
            top -= 8.5 * LEADING
        top -= 3
    page.rule(MARGIN + 32)
    page.text(MARGIN, MARGIN + 18, f"{wording.RESEARCH_USE_ONLY} {wording.UNVERIFIED}", 8.5, bold=True)
    page.text(MARGIN, MARGIN + 6, f"Document {context.sop_instance_uid}", 7, GREY)
    return page.finished()


def _said(images: Sequence[ImageResult], finding: Finding) -> list[str]:
    """Return what stands below the verdict: on how many images it rests, and what it is not."""
    analysed = sum(image.analysed for image in images)
    lines = [wording.images_analysed(analysed, len(images))]
    if analysed > 1:
        lines.append(wording.RULE)
    if finding is Finding.NOT_ANALYSED:
        lines.append(wording.NOT_ASSESSED)
    return lines


def _patient(header: Dataset) -> list[list[tuple[str, str]]]:
    """Return what names patient and study: rows of label and value."""
    return [
        [("Patient", _name(str(header.PatientName)))],
        [("Patient ID", str(header.PatientID)), ("Born", _date(header.PatientBirthDate))],
        [("Accession number", str(header.AccessionNumber)), ("Sex", str(header.PatientSex))],
        [("Study date", _date(header.StudyDate)), ("Study", str(header.get("StudyDescription", "")))],
    ]


def _facts(images: Sequence[ImageResult], context: ReportContext, at: datetime) -> list[tuple[str, str]]:
    conclusion = context.conclusion
    coloured = any(_is_coloured(image) for image in images)
    facts = [
        ("Pattern", wording.pattern(conclusion.pattern) if conclusion.pattern else ""),
        ("Limits", wording.limits(conclusion.flags).removeprefix("Limits: ")),
        ("Population", " ".join(_populations(images, context))),
        ("Network", f"{context.model.name} {context.model.version}"),
        ("Weights SHA-256", context.model.sha256),
        ("Heat map", f"{context.activation_method}. {wording.COLOUR}." if coloured else ""),
        (_FEEDBACK, context.feedback_url),
        ("Written", f"{at:%Y-%m-%d %H:%M} by Hilum {context.software_version} ({context.device_name})"),
    ]
    return [(label, text) for label, text in facts if text]


def _populations(images: Sequence[ImageResult], context: ReportContext) -> list[str]:
    """Return each different sentence on who was looked at: films of one visit mostly share theirs."""
    said = [population(number, images, context) for number, image in enumerate(images, 1) if image.analysed]
    shared = {line.partition(": ")[2] if len(images) > 1 else line for lines in said for line in lines}
    return sorted(shared) if len(shared) == 1 else [line for lines in said for line in lines]


def _films(
    page: "Page", images: Sequence[ImageResult], headers: Sequence[Dataset], top: float, bottom: float
) -> None:
    """Draw the films side by side between two heights, each with its number and its verdict below."""
    shown = [
        (wording.image(number, len(images), place(header)), image)
        for number, (image, header) in enumerate(zip(images, headers, strict=True), start=1)
        if image.film is not None
    ]
    shown.sort(key=lambda film: film[1].result.finding is not Finding.PRESENT)
    more = len(images) - len(shown[:_MOST_FILMS])
    if more and shown:
        page.text(MARGIN, bottom + 3, wording.not_shown(more), 8, GREY)
        bottom += 12
    shown = shown[:_MOST_FILMS]
    columns = min(len(shown), 3)
    for index, (called, image) in enumerate(shown):
        width = (WIDTH - 2 * MARGIN - 10 * (columns - 1)) / columns
        height = (top - bottom) / -(-len(shown) // columns)
        left = MARGIN + (index % columns) * (width + 10)
        upper = top - (index // columns) * height
        caption = [called, *page.wrapped(wording.verdict(image.result), 8, width, most=3)]
        room = height - len(caption) * 8 * LEADING - 8
        left, drawn = page.picture(left, upper, width, room, _pixels(image))
        for line in caption:
            drawn -= 8 * LEADING
            page.text(left, drawn, line, 8, bold=line is called)


def _pixels(image: ImageResult) -> NDArray[np.uint8]:
    """Return the film as shown: uint8 (h, w) or, with its activation, (h, w, 3)."""
    assert image.film is not None
    if _is_coloured(image):
        assert image.activation is not None
        return overlay(image.film, image.activation)
    return (image.film >> 8).astype(np.uint8)


def _is_coloured(image: ImageResult) -> bool:
    return image.result.finding is Finding.PRESENT and image.film is not None and image.activation is not None


def _name(name: str) -> str:
    """Return a person's name (PS3.5 6.2.1) by the first component group that can be drawn."""
    groups = [group for group in name.split("=") if group.strip("^ ")]
    for group in groups:
        family, _, given = group.partition("^")
        if printable(group):
            return ", ".join(part for part in (family, " ".join(given.split("^")).strip()) if part)
    return NOT_PRINTABLE if groups else ""


def _date(value: object) -> str:
    text = str(value or "")
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 else text
