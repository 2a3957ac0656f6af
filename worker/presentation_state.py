"""The heat map as annotation over the original films: Grayscale Softcopy Presentation State (PS3.3 A.33.1).

For classic workstations. A presentation state replaces how an image asks to be shown, it adds nothing to it
(PS3.4 N.2): so each film's grey-scale pipeline, the first one its header has, goes over unchanged, its
display shutter too, and nothing is rotated or zoomed. Modality LUT and polarity are said once for all images
of a state; films that need others, which hardly happens in one study, are left out, and the description says
how many are shown. A shutter is also said once: films with different ones are shown without.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from highdicom import SOPClass
from highdicom.color import CIELabColor
from highdicom.pr import GraphicAnnotation, GraphicLayer, GraphicObject, TextObject
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage
from pydicom.valuerep import DA, TM, format_number_as_ds

from service.core.results import Finding
from worker import wording
from worker.contour import contour
from worker.greyscale import lookup_table
from worker.report_context import (
    ImageResult,
    ReportContext,
    identity,
    names_of,
    processing_algorithm,
    reference,
    set_creation,
)
from worker.source import inherit, local_time, spacing_mm
from worker.structured_report import headers_of

SERIES_NUMBER = 9005
SERIES_DESCRIPTION = "AI Pneumonia marks (GSPS), not for diagnosis"

_YELLOW = CIELabColor(l_star=88.0, a_star=0.0, b_star=83.0)
_HEATMAP = GraphicLayer("AI HEATMAP", 1, "AI class activation, not the outline of a lesion", _YELLOW)
_VERDICT = GraphicLayer("AI VERDICT", 2, "Verdict on the image. Research use only.", _YELLOW)

_SHUTTER = (
    "ShutterShape",
    "ShutterLeftVerticalEdge",
    "ShutterRightVerticalEdge",
    "ShutterUpperHorizontalEdge",
    "ShutterLowerHorizontalEdge",
    "CenterOfCircularShutter",
    "RadiusOfCircularShutter",
    "VerticesOfThePolygonalShutter",
    "ShutterPresentationValue",
)

# Of the image: between the corners, where workstations write their own text, and above the lower edge, where
# it covers no lung.
_LEFT, _TOP, _RIGHT, _BOTTOM = 0.08, 0.90, 0.92, 0.97


def build_presentation_state(images: Sequence[ImageResult], context: ReportContext) -> Dataset:
    """Build the presentation state of one study; the same images and context give the same bytes.

    Parameters
    ----------
    images
        The films behind the report; those not analysed are not referred to.
    context
        Identity of the object (its own series) and of what made it.

    Returns
    -------
    Dataset
        Grayscale Softcopy Presentation State in Explicit VR Little Endian: for each film its whole area and
        its verdict, for a positive the outlines of its heat map as closed polylines in pixels of the film.

    Raises
    ------
    ValueError
        When no film was analysed, or the films are not of one study.
    """
    headers = headers_of(images)
    films = [film for film in zip(images, headers, strict=True) if film[0].analysed]
    if not films:
        raise ValueError("a presentation state needs at least one analysed image")
    leading = _leading(films, context)
    modality_lut, shape = _modality_lut(leading[0].source), _shape(leading[0].source)
    shown = [
        film
        for film in films
        if (_modality_lut(film[0].source), _shape(film[0].source)) == (modality_lut, shape)
    ]
    header = leading[1]
    at = local_time(header, context.at)
    made_by = identity(context, at, SERIES_NUMBER, SERIES_DESCRIPTION)
    # The module has times of its own.
    made_by.pop("content_date"), made_by.pop("content_time")
    state = SOPClass(
        study_instance_uid=header.StudyInstanceUID,
        sop_class_uid=GrayscaleSoftcopyPresentationStateStorage,
        modality="PR",
        **made_by,
    )
    state.ContributingEquipmentSequence = [processing_algorithm(context)]
    state.BodyPartExamined = "CHEST"  # unpaired, so that no laterality is asked for
    state.ContentLabel = "AI_PNEUMONIA"
    state.ContentDescription = f"AI pneumonia, {len(shown)} of {len(images)} images shown"
    state.ContentCreatorName = None  # no person
    state.PresentationCreationDate, state.PresentationCreationTime = DA(at.date()), TM(at.time())
    state.ReferencedSeriesSequence = _references([header for _, header in shown])
    state.GraphicLayerSequence = [_HEATMAP, _VERDICT]
    state.GraphicAnnotationSequence = [
        annotation for image, header in shown for annotation in _annotations(image, header)
    ]
    state.DisplayedAreaSelectionSequence = [_displayed_area(image.source, header) for image, header in shown]
    state.update(modality_lut)
    shutters = [_shutter(image.source) for image, _ in shown]
    if all(shutter == shutters[0] for shutter in shutters):
        state.update(shutters[0])
    voi_luts = [item for image, header in shown for item in _voi_lut(image.source, header)]
    if voi_luts:
        state.SoftcopyVOILUTSequence = voi_luts
    state.PresentationLUTShape = shape
    inherit(state, [header, *(other for _, other in shown if other is not header)], names_of(context.model))
    set_creation(state, at)
    return state


Film = tuple[ImageResult, Dataset]


def _leading(films: Sequence[Film], context: ReportContext) -> Film:
    """Return the film that the study's conclusion is about."""
    conclusion = context.conclusion
    return next(
        (film for film in films if film[0].result.probability == conclusion.probability),
        films[0],
    )


def _annotations(image: ImageResult, header: Dataset) -> Iterator[GraphicAnnotation]:
    rows, columns = int(header.Rows), int(header.Columns)
    if image.result.finding is Finding.PRESENT and image.activation is not None:
        outlines = [
            GraphicObject("POLYLINE", outline, "PIXEL")
            for outline in contour(image.activation, rows, columns)
        ]
        if outlines:
            yield GraphicAnnotation([header], _HEATMAP, graphic_objects=outlines)
    box = (_LEFT * columns, _TOP * rows, _RIGHT * columns, _BOTTOM * rows)
    said = f"{wording.verdict(image.result)}\r\n{wording.RESEARCH_USE_ONLY}"
    yield GraphicAnnotation([header], _VERDICT, text_objects=[TextObject(said, "PIXEL", bounding_box=box)])


def _displayed_area(source: Dataset, header: Dataset) -> Dataset:
    """Return the whole image, scaled to fit, with pixels of its own shape (PS3.3 C.10.4)."""
    area = Dataset()
    area.ReferencedImageSequence = [reference(header)]
    area.DisplayedAreaTopLeftHandCorner = [1, 1]
    area.DisplayedAreaBottomRightHandCorner = [int(header.Columns), int(header.Rows)]
    area.PresentationSizeMode = "SCALE TO FIT"
    spacing = spacing_mm(header)
    if spacing is None:
        area.PresentationPixelAspectRatio = _aspect_ratio(source)
    else:
        area.PresentationPixelSpacing = [format_number_as_ds(value) for value in spacing]
    return area


def _references(headers: Sequence[Dataset]) -> list[Dataset]:
    """Return Referenced Series Sequence (PS3.3 C.11.11)."""
    items = []
    for series_instance_uid in dict.fromkeys(header.SeriesInstanceUID for header in headers):
        item = Dataset()
        item.SeriesInstanceUID = series_instance_uid
        item.ReferencedImageSequence = [
            reference(header) for header in headers if header.SeriesInstanceUID == series_instance_uid
        ]
        items.append(item)
    return items


def _aspect_ratio(source: Dataset) -> list[int]:
    """Return the shape of a pixel as height to width, square unless the header says otherwise."""
    try:
        height, width = (int(value) for value in source.PixelAspectRatio)
    except (AttributeError, TypeError, ValueError):
        return [1, 1]
    return [height, width] if height > 0 and width > 0 else [1, 1]


def _shutter(source: Dataset) -> Dataset:
    """Return the Display Shutter module (PS3.3 C.7.6.11), empty without one."""
    module = Dataset()
    if source.get("ShutterShape"):
        for keyword in _SHUTTER:
            if keyword in source:
                module.add(source[keyword])
        module.setdefault("ShutterPresentationValue", 0)
    return module


def _modality_lut(source: Dataset) -> Dataset:
    """Return the Modality LUT module (PS3.3 C.11.1), empty for the identity."""
    module = Dataset()
    if source.get("ModalityLUTSequence"):
        lut = source.ModalityLUTSequence[0]
        entries, first, _ = lookup_table(lut, signed=_is_signed(source))
        item = _lut(entries, first)
        item.ModalityLUTType = lut.get("ModalityLUTType") or "US"
        module.ModalityLUTSequence = [item]
        return module
    slope, intercept = _number(source, "RescaleSlope"), _number(source, "RescaleIntercept")
    if slope and intercept is not None and (slope, intercept) != (1, 0):
        module.RescaleIntercept = format_number_as_ds(intercept)
        module.RescaleSlope = format_number_as_ds(slope)
        module.RescaleType = source.get("RescaleType") or "US"
    return module


def _voi_lut(source: Dataset, header: Dataset) -> Iterator[Dataset]:
    """Yield the item of Softcopy VOI LUT Sequence (PS3.3 C.11.8), none without a usable LUT or window."""
    item = Dataset()
    item.ReferencedImageSequence = [reference(header)]
    if source.get("VOILUTSequence"):
        signed = _is_signed(source) or (_number(source, "RescaleIntercept") or 0) < 0
        try:
            entries, first, bits = lookup_table(source.VOILUTSequence[0], signed=signed)
        except (ArithmeticError, AttributeError, TypeError, ValueError):
            pass  # passed over in favour of the window, as where the film was read
        else:
            # Here 8 and 16 are the only numbers of bits; the film looks the same.
            item.VOILUTSequence = [_lut(np.rint(entries * (0xFFFF / ((1 << bits) - 1))), first)]
            yield item
            return
    center, width = _number(source, "WindowCenter"), _number(source, "WindowWidth")
    if center is not None and width is not None and width >= 1:
        item.WindowCenter, item.WindowWidth = format_number_as_ds(center), format_number_as_ds(width)
        if source.get("VOILUTFunction"):
            item.VOILUTFunction = source.VOILUTFunction
        yield item


def _lut(entries: NDArray[np.float64], first: int) -> Dataset:
    """Return a look-up table of 16 bits an entry (PS3.3 C.11.1.1)."""
    item = Dataset()
    descriptor = np.array([len(entries) & 0xFFFF, first & 0xFFFF, 16], np.uint16)
    # The VR says how to read the first value mapped; the count has it too.
    vr, numbers = ("SS", descriptor.astype(np.int16)) if first < 0 else ("US", descriptor)
    item.add_new("LUTDescriptor", vr, numbers.tolist())
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


def _is_signed(source: Dataset) -> bool:
    return bool(source.get("PixelRepresentation") == 1)


def _shape(source: Dataset) -> str:
    """Return the Presentation LUT Shape: which end is white, as the film is read everywhere here."""
    shape = source.get("PresentationLUTShape")
    if shape in ("IDENTITY", "INVERSE"):
        return str(shape)
    return "INVERSE" if source.get("PhotometricInterpretation") == "MONOCHROME1" else "IDENTITY"


def _number(source: Dataset, keyword: str) -> float | None:
    """Return the first value of a decimal string, None when there is none or it is no number."""
    try:
        value = source.get(keyword)
        number = float(value if isinstance(value, str | int | float) else value[0])
    except (ArithmeticError, IndexError, TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
