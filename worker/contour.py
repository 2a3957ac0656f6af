"""From a class activation map to outlines on the source image.

Map and film both cover the source image edge to edge, so a point is the same fraction of width and height
in all three: what is drawn on the heat map and what the SR outlines cannot drift apart.
"""

from typing import cast

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray
from PIL import Image

# Fine enough that a step is under 1 % of the film, coarse enough to be traced in a millisecond.
_GRID = 192
_MOST_POINTS = 96
# A viewer takes a closed polyline of 4 or 5 points for an editable rectangle (OHIF 3.12).
_FEWEST_POINTS = 8
_MOST_REGIONS = 5
_SMALLEST_SHARE = 0.002  # of the film: below that it is a speck between two cells of the map


def resampled(activation: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """Return `activation` at another size, edge to edge, bicubic, within [0, 1].

    Parameters
    ----------
    activation
        float32 (h, w) in [0, 1].
    rows, columns
        Size wanted.
    """
    image = Image.fromarray(np.ascontiguousarray(activation, dtype=np.float32))
    resized = np.asarray(image.resize((columns, rows), Image.Resampling.BICUBIC), dtype=np.float32)
    return np.clip(resized, 0.0, 1.0)


def contour(activation: NDArray[np.float32], rows: int, columns: int) -> list[NDArray[np.float64]]:
    """Return the outlines of what lies at or above half of the map's maximum, largest area first.

    Half of the maximum, because a map may be scaled by its own maximum or not: the outlines are the same.

    Parameters
    ----------
    activation
        float32 (h, w) in [0, 1], covering the source image edge to edge.
    rows, columns
        Size of the source image in pixels.

    Returns
    -------
    list of float64 (n, 2)
        Closed polylines (first point repeated as the last), 9 to 97 points each, as (column, row) in pixel
        coordinates of the source image, where (0, 0) is the outer corner of the first pixel (PS3.3
        C.18.6.1.2). At most 5; empty for a map of zeros. Holes are not outlined.
    """
    level = float(np.max(activation, initial=0.0)) / 2
    if not level > 0:
        return []
    height, width = (round(_GRID * side / max(rows, columns)) for side in (rows, columns))
    height, width = max(height, 8), max(width, 8)
    # Two rings around the map: its own border at the film's very edge, and beyond it, at no distance,
    # nothing. So an outline that reaches the edge runs along the edge.
    values = np.pad(np.pad(resampled(activation, height, width), 1, mode="edge"), 1, constant_values=-1.0)
    x, y = (np.array([0.0, 0.0, *(np.arange(n) + 0.5), n, n]) for n in (width, height))
    traced = contour_generator(x, y, values, fill_type=FillType.OuterOffset).filled(level, np.inf)
    polygons, offsets = cast("tuple[list[NDArray[np.float64]], list[NDArray[np.uint32]]]", traced)
    outlines = [
        points[: offset[1]] * (columns / width, rows / height)  # the first ring is the outer one
        for points, offset in zip(polygons, offsets, strict=True)
    ]
    outlines.sort(key=area, reverse=True)
    smallest = _SMALLEST_SHARE * rows * columns
    kept = [line for index, line in enumerate(outlines) if index == 0 or area(line) >= smallest]
    return [_evenly(line) for line in kept[:_MOST_REGIONS] if area(line) > 0]


def area(outline: NDArray[np.float64]) -> float:
    """Return the area within a closed polyline, in pixels of the source image (shoelace formula)."""
    x, y = outline[:, 0], outline[:, 1]
    return float(abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2)


def _evenly(outline: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the outline with points at even distances along it, few enough for a small report."""
    steps = np.hypot(*np.diff(outline, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    count = int(np.clip(len(outline) - 1, _FEWEST_POINTS, _MOST_POINTS))
    at = np.linspace(0.0, along[-1], count + 1)
    even = np.column_stack([np.interp(at, along, outline[:, axis]) for axis in (0, 1)])
    even[-1] = even[0]
    return even.round(1)
