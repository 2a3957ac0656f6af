"""The result as one page to file or to print: Encapsulated PDF (PS3.3 A.45.1).

matplotlib writes the page (text that can be searched and copied, its own DejaVu fonts within), with the films
as JPEG. DejaVu has Latin, Greek and Cyrillic letters, no East Asian ones, and nothing here can set a line
from right to left. So a name is written by the first of its component groups (alphabetic, ideographic,
phonetic) that can be drawn whole, and any text that cannot be drawn says so instead of becoming boxes.
"""

# mypy: disallow-untyped-calls=False
# (matplotlib's PDF backend has no annotations)

import unicodedata
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from highdicom import SOPClass
from highdicom.sr import CodedConcept
from matplotlib.backends.backend_pdf import Name, PdfFile, RendererPdf, pdfRepr
from matplotlib.font_manager import FontProperties, get_font
from matplotlib.path import Path as Outline
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage

from service.core.results import Finding
from worker import codes, wording
from worker.heatmap import overlay
from worker.report_context import (
    ImageResult,
    ReportContext,
    identity,
    processing_algorithm,
    reference,
    set_creation,
)
from worker.source import inherit, local_time
from worker.structured_report import headers_of, leading_first, place

SERIES_NUMBER = 9006
SERIES_DESCRIPTION = "AI Pneumonia page (PDF), not for diagnosis"
TITLE = "AI chest X-ray result: pneumonia"
JPEG_QUALITY = 85

NOT_PRINTABLE = "(not printable with this font)"

_WIDTH, _HEIGHT, _MARGIN = 595.0, 842.0, 42.0  # A4, in points of 1/72 inch
_DOTS_PER_POINT = 200 / 72
_MOST_FILMS = 6
_MOST_LINES = 6  # of one fact
_LEADING = 1.35
_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
_BLACK, _WHITE, _GREY, _RULE = (0.1, 0.1, 0.12), (1.0, 1.0, 1.0), (0.4, 0.4, 0.44), (0.75, 0.75, 0.78)
_YELLOW = (1.0, 0.84, 0.04)
# No green: a negative is no all-clear.
_BAND = {
    Finding.PRESENT: (0.60, 0.11, 0.13),
    Finding.INDETERMINATE: (0.50, 0.33, 0.04),
    Finding.ABSENT: (0.16, 0.27, 0.40),
    Finding.NOT_ANALYSED: (0.25, 0.25, 0.27),
}

Colour = tuple[float, float, float]


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
    inherit(document, ordered, [])
    set_creation(document, at)
    return document


def _pdf(
    images: Sequence[ImageResult],
    headers: Sequence[Dataset],
    leading: Dataset,
    context: ReportContext,
    at: datetime,
) -> bytes:
    page = _Page(context)
    conclusion = context.conclusion
    top = _HEIGHT - _MARGIN
    page.text(_MARGIN, top - 15, TITLE, 16, bold=True)
    page.text(_WIDTH - _MARGIN, top - 15, wording.revision(context.revision), 10, _GREY, right=True)
    top -= 26
    page.rule(top)
    for row, fields in enumerate(_patient(leading)):
        for column, (label, value) in enumerate(fields):
            left, baseline = _MARGIN + column * 262, top - 16 - row * 14
            room = 160 if len(fields) > 1 else 400
            page.text(left, baseline, label, 8.5, _GREY)
            page.text(left + 92, baseline, page.shortened(value, 9.5, room), 9.5, bold=not row)
    top -= 16 + 14 * 4

    verdict = page.wrapped(wording.verdict(conclusion), 13, _WIDTH - 2 * _MARGIN - 24, most=3, bold=True)
    said = _said(images, conclusion.finding)
    band = 32 + 19 * len(verdict) + 13 * len(said)
    page.rectangle(_MARGIN, top - band, _WIDTH - 2 * _MARGIN, band, _BAND[conclusion.finding])
    top -= 25
    for line in verdict:
        page.text(_MARGIN + 12, top, line, 13, _WHITE, bold=True)
        top -= 19
    page.text(_MARGIN + 12, top, wording.RESEARCH_USE_ONLY, 11, _YELLOW, bold=True)
    for line in said:
        top -= 13
        page.text(_MARGIN + 12, top, line, 8.5, _WHITE)
    top -= 7

    facts = [
        (label, page.wrapped(text, 8.5, _WIDTH - 2 * _MARGIN - 90, most=_MOST_LINES))
        for label, text in _facts(images, context, at)
    ]
    bottom = _MARGIN + 44
    height = sum(len(lines) for _, lines in facts) * 8.5 * _LEADING + 3 * len(facts)
    _films(page, images, headers, top - 10, bottom + height + 8)
    top = bottom + height
    for label, lines in facts:
        page.text(_MARGIN, top - 8.5, label, 8.5, _GREY)
        for line in lines:
            page.text(_MARGIN + 90, top - 8.5, line, 8.5)
            top -= 8.5 * _LEADING
        top -= 3
    page.rule(_MARGIN + 32)
    page.text(_MARGIN, _MARGIN + 18, f"{wording.RESEARCH_USE_ONLY} {wording.UNVERIFIED}", 8.5, bold=True)
    page.text(_MARGIN, _MARGIN + 6, f"Document {context.sop_instance_uid}", 7, _GREY)
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
        ("Network", f"{context.model.name} {context.model.version}"),
        ("Weights SHA-256", context.model.sha256),
        ("Heat map", f"{context.activation_method}. {wording.COLOUR}." if coloured else ""),
        ("Written", f"{at:%Y-%m-%d %H:%M} by Hilum {context.software_version} ({context.device_name})"),
    ]
    return [(label, text) for label, text in facts if text]


def _films(
    page: "_Page", images: Sequence[ImageResult], headers: Sequence[Dataset], top: float, bottom: float
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
        page.text(_MARGIN, bottom + 3, wording.not_shown(more), 8, _GREY)
        bottom += 12
    shown = shown[:_MOST_FILMS]
    columns = min(len(shown), 3)
    for index, (called, image) in enumerate(shown):
        width = (_WIDTH - 2 * _MARGIN - 10 * (columns - 1)) / columns
        height = (top - bottom) / -(-len(shown) // columns)
        left = _MARGIN + (index % columns) * (width + 10)
        upper = top - (index // columns) * height
        caption = [called, *page.wrapped(wording.verdict(image.result), 8, width, most=3)]
        room = height - len(caption) * 8 * _LEADING - 8
        left, drawn = page.picture(left, upper, width, room, _pixels(image))
        for line in caption:
            drawn -= 8 * _LEADING
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
        if _printable(group):
            return ", ".join(part for part in (family, " ".join(given.split("^")).strip()) if part)
    return NOT_PRINTABLE if groups else ""


def _date(value: object) -> str:
    text = str(value or "")
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 else text


@lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    return frozenset(get_font(_FONTS / "DejaVuSans.ttf").get_charmap())


def _printable(text: str) -> bool:
    """Return whether the font has each letter, and each stands for itself from left to right."""
    return all(
        ord(letter) in _letters()
        and unicodedata.bidirectional(letter) not in ("R", "AL")
        and not unicodedata.combining(letter)
        for letter in unicodedata.normalize("NFC", text)
    )


class _JpegPdfFile(PdfFile):
    """matplotlib's PDF with its pictures as JPEG, a fifth of the size of the lossless ones it writes."""

    def _writeImg(self, data: NDArray[np.uint8], id: int, smask: object = None) -> None:  # noqa: N802
        height, width, colours = data.shape
        jpeg = BytesIO()
        Image.fromarray(data.squeeze()).save(jpeg, "JPEG", quality=JPEG_QUALITY)
        dictionary = {
            "Type": Name("XObject"),
            "Subtype": Name("Image"),
            "Width": width,
            "Height": height,
            "ColorSpace": Name("DeviceGray" if colours == 1 else "DeviceRGB"),
            "BitsPerComponent": 8,
            "Filter": Name("DCTDecode"),
            "Length": jpeg.tell(),
        }
        self.recordXref(id)
        self.write(b"%d 0 obj\n%s\nstream\n" % (id, pdfRepr(dictionary)))
        self.write(jpeg.getvalue())
        self.write(b"\nendstream\nendobj\n")


class _Page:
    """One A4 page; lengths in points, from its lower left corner."""

    def __init__(self, context: ReportContext) -> None:
        self._buffer = BytesIO()
        metadata = {
            "Title": TITLE,
            "Creator": f"Hilum {context.software_version}",
            "CreationDate": context.at,
        }
        self._file = _JpegPdfFile(self._buffer, metadata)
        self._file.newPage(_WIDTH / 72, _HEIGHT / 72)
        self._renderer = RendererPdf(self._file, 72, _HEIGHT / 72, _WIDTH / 72)

    def text(
        self,
        left: float,
        baseline: float,
        text: str,
        size: float,
        colour: Colour = _BLACK,
        *,
        bold: bool = False,
        right: bool = False,
    ) -> None:
        """Write one line; `left` is its right end when `right`."""
        line = _drawable(text)
        if right:
            left -= self._width(line, size, bold)
        self._renderer.draw_text(self._gc(colour), left, baseline, line, _font(size, bold), 0)

    def wrapped(self, text: str, size: float, width: float, *, most: int, bold: bool = False) -> list[str]:
        """Return the text as lines that fit, at most so many; an ellipsis says that some is left out."""
        lines: list[str] = []
        for word in _pieces(_drawable(text)):
            if lines and self._width(f"{lines[-1]} {word}", size, bold) <= width:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
        return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1]} …"]

    def shortened(self, text: str, size: float, width: float) -> str:
        """Return the text, cut off with an ellipsis where it does not fit on one line."""
        line = _drawable(text)
        if self._width(line, size, True) <= width:
            return line
        while line and self._width(f"{line}…", size, True) > width:
            line = line[:-1]
        return f"{line}…"

    def rectangle(self, left: float, bottom: float, width: float, height: float, colour: Colour) -> None:
        """Fill a rectangle."""
        box = Affine2D().scale(width, height).translate(left, bottom)
        gc = self._gc(colour)
        gc.set_linewidth(0)
        self._renderer.draw_path(gc, Outline.unit_rectangle(), box, colour)

    def rule(self, height: float) -> None:
        """Draw a thin line across the page."""
        self.rectangle(_MARGIN, height, _WIDTH - 2 * _MARGIN, 0.6, _RULE)

    def picture(
        self, left: float, top: float, width: float, height: float, pixels: NDArray[np.uint8]
    ) -> tuple[float, float]:
        """Draw a picture as large as fits, centred, in its own aspect ratio; return its lower left corner."""
        rows, columns = pixels.shape[:2]
        scale = max(min(width / columns, height / rows), 0.01)
        left += (width - columns * scale) / 2
        width, height = columns * scale, rows * scale
        size = (
            max(round(min(columns, width * _DOTS_PER_POINT)), 1),
            max(round(min(rows, height * _DOTS_PER_POINT)), 1),
        )
        shrunk = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
        shrunk = shrunk if shrunk.ndim == 3 else shrunk[..., None]
        box = Affine2D().scale(width, height)
        # matplotlib has the first row at the bottom.
        self._renderer.draw_image(self._gc(_BLACK), left, top - height, shrunk[::-1], box)
        return left, top - height

    def finished(self) -> bytes:
        """Return the PDF."""
        self._renderer.finalize()
        self._file.finalize()
        self._file.close()
        return self._buffer.getvalue()

    def _width(self, text: str, size: float, bold: bool) -> float:
        return float(self._renderer.get_text_width_height_descent(text, _font(size, bold), False)[0])

    def _gc(self, colour: Colour) -> Any:
        gc = self._renderer.new_gc()
        gc.set_foreground(colour, isRGBA=False)
        return gc


def _drawable(text: str) -> str:
    line = unicodedata.normalize("NFC", " ".join(text.split()))
    return line if _printable(line) else NOT_PRINTABLE


def _pieces(text: str) -> Iterator[str]:
    """Yield the words, the longest cut into pieces that fit on a line."""
    for word in text.split():
        yield from (word[start : start + 80] for start in range(0, len(word), 80))


@lru_cache
def _font(size: float, bold: bool) -> FontProperties:
    return FontProperties(fname=_FONTS / f"DejaVuSans{'-Bold' if bold else ''}.ttf", size=size)
