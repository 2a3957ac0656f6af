"""Measurement groups, TID 1501 (PS3.16): one for each analysed image, one for each contour of a positive."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CoordinatesForMeasurement,
    FindingSite,
    Measurement,
    MeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    SourceImageForRegion,
    TextContentItem,
    TrackingIdentifier,
)
from highdicom.sr import RelationshipTypeValues as Relationship
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from service.core.identifiers import derived_uid
from service.core.results import Finding, Result
from worker import codes, wording
from worker.contour import area, contour
from worker.report_context import MANUFACTURER, ImageResult, ReportContext
from worker.source import spacing_mm

# Shares of the rows; the label of a region has three lines of a fiftieth each and hangs a little lower.
_VERDICT_LABEL, _LOWEST_LABEL = 0.76, 0.64


def measurement_groups(
    image: ImageResult, header: Dataset, context: ReportContext, of_several: str
) -> list[MeasurementsAndQualitativeEvaluations]:
    """Return the group of the whole image and, for a positive, one for each contour of its heat map.

    `of_several` says which of the study's images it is; empty for the only one.
    """
    result = image.result
    rows, columns = int(header.Rows), int(header.Columns)
    certainty = (codes.CERTAINTY_OF_FINDING, _certainty(result), codes.PERCENT)
    groups = [
        _group(
            header,
            context,
            result,
            tracking="AI pneumonia classification",
            value=certainty,
            outline=_whole_image(rows, columns),
            evaluations=[QualitativeEvaluation(codes.PRESENCE, codes.PRESENCE_OF[result.finding])],
            comments=wording.label(
                wording.comments(result, context.revision, beside=context.beside), of_several
            ),
        )
    ]
    if result.finding is not Finding.PRESENT or image.activation is None:
        return groups
    spacing = spacing_mm(header)
    for number, outline in enumerate(contour(image.activation, rows, columns), start=1):
        # Without a scale there is no area, and a group needs a number: the certainty once more.
        value = (
            certainty
            if spacing is None
            else (codes.AREA, _area_mm2(outline, spacing), codes.SQUARE_MILLIMETER)
        )
        groups.append(
            _group(
                header,
                context,
                result,
                tracking=f"AI pneumonia heatmap region {number}",
                value=value,
                outline=_labelled_below(outline, rows),
                evaluations=[],
                comments=wording.region(number),
            )
        )
    return groups


def _group(
    header: Dataset,
    context: ReportContext,
    result: Result,
    *,
    tracking: str,
    value: tuple[Code, float, Code],
    outline: NDArray[np.float64],
    evaluations: Sequence[QualitativeEvaluation],
    comments: Sequence[str],
) -> MeasurementsAndQualitativeEvaluations:
    """Return a TID 1501 group of one number, inferred from one closed polyline on the source image."""
    name, number, unit = value
    region = CoordinatesForMeasurement(
        graphic_type="POLYLINE",
        graphic_data=outline,
        source_image=SourceImageForRegion(header.SOPClassUID, header.SOPInstanceUID),
    )
    group = MeasurementsAndQualitativeEvaluations(
        # The same observation in every revision of the report, so the same UID.
        tracking_identifier=TrackingIdentifier(
            uid=derived_uid("tracking", context.series_instance_uid, header.SOPInstanceUID, tracking),
            identifier=tracking,
        ),
        finding_type=codes.PNEUMONIA,
        finding_sites=[FindingSite(codes.LUNG)],
        algorithm_id=_algorithm(
            context.model.name,
            context.model.version,
            f"Weights SHA-256={context.model.sha256}",
            f"Operating threshold={wording.threshold_percent(result)}",
            f"Class activation method={context.activation_method}",
        ),
        measurements=[Measurement(name, number, unit, referenced_coordinates=[region])],
        qualitative_evaluations=evaluations,
    )
    # highdicom has no argument for comments.
    for comment in comments:
        group[0].ContentSequence.append(TextContentItem(codes.COMMENT, comment, Relationship.CONTAINS))
    return group


@lru_cache(maxsize=64)
def _algorithm(name: str, version: str, *parameters: str) -> AlgorithmIdentification:
    """Return the items of TID 4019, which many groups share: nothing changes an item once it is made."""
    return AlgorithmIdentification(
        name=name,
        version=version,
        manufacturer=MANUFACTURER,
        family=codes.ARTIFICIAL_INTELLIGENCE,
        parameters=list(parameters),
    )


def _whole_image(rows: int, columns: int) -> NDArray[np.float64]:
    """Return the border of the image as a closed polyline of 10 points: corners, and more along the edges.

    It is what the number was inferred from; so many points keep viewers from taking it for a rectangle that
    the user drew. OHIF 3.12 writes its label where the first two points lie: low at the left edge, where it
    covers no lung and no line is cut off.
    """
    start, middle, centre = _VERDICT_LABEL * rows, rows / 2, columns / 2
    return np.array(
        [
            *((0, start), (0, start + rows / 50), (0, rows), (centre, rows), (columns, rows)),
            *((columns, middle), (columns, 0), (centre, 0), (0, 0), (0, start)),
        ],
        dtype=np.float64,
    )


def _labelled_below(outline: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """Let a closed polyline start low at its right side, where OHIF's label leaves what is outlined free.

    As low as it goes without writing over the label of the whole image; else at its highest point.
    """
    ring = outline[:-1]
    right = ring[:, 0] >= ring[:, 0].mean()
    free = np.flatnonzero(right & (ring[:, 1] <= _LOWEST_LABEL * rows))
    start = free[ring[free, 1].argmax()] if len(free) else ring[:, 1].argmin()
    ring = np.roll(ring, -int(start), axis=0)
    return np.vstack([ring, ring[:1]])


def _certainty(result: Result) -> float:
    """Return the probability in percent with two decimals, or as many as the verdict needs."""
    shown = float(wording.percent(result).removesuffix(" %"))
    exact = (result.probability or 0.0) * 100
    return round(exact, 2) if shown == round(exact, 1) else shown


def _area_mm2(outline: NDArray[np.float64], spacing: tuple[float, float]) -> int:
    return round(area(outline) * spacing[0] * spacing[1])
