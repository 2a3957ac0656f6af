"""Where the lungs lie on an upright frontal chest film: a fitted shape, no learned weights.

Two outlines, drawn once by hand over average films, are moved together (midline, tilt, width, apices, bases)
until the film is darker inside them than just outside, in as many places as possible. Every place has one
vote of bounded weight, and the outline keeps its shape: an opaque lung, whose own border has vanished, is
placed by the borders that are left, its rib cage and the other lung. The mask is therefore the lung field
with all that is opaque in it, without heart, mediastinum and what the diaphragm covers.

There is no ground truth here. The fit was judged by eye only: on 48 normals and 48 pneumonias of the public
training split, drawn at random, 47 and 44 outlines were good. What fails is an opaque or cut-off lung, or a
base taken for a rib. It teaches `model.locate` where the lungs lie, and `model.stress` takes them away by it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage  # type: ignore[import-untyped]

Plane = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_MEASURES = ("mass", "area", "peak")

SIDE = 128
"""Films are squashed to this side for the fit."""

_OUTER = [(0.98, 0.86), (0.93, 0.66), (0.83, 0.44), (0.69, 0.22), (0.52, 0.06)]
# (across, down): half widths from the midline, apices at 0, costophrenic angles at 1.
_SMALLER_BY_THE_HEART = [
    *[(0.33, 0.0), (0.22, 0.05), (0.19, 0.15), (0.22, 0.27), (0.33, 0.40), (0.45, 0.53), (0.55, 0.68)],
    *[(0.60, 0.84), (0.62, 0.92), (0.74, 0.91), (0.87, 0.95), (0.99, 1.02), *_OUTER],
]
_OTHER = [
    *[(0.33, 0.0), (0.22, 0.05), (0.17, 0.15), (0.17, 0.30), (0.20, 0.45), (0.25, 0.62), (0.28, 0.80)],
    *[(0.30, 0.88), (0.50, 0.85), (0.70, 0.87), (0.86, 0.93), (0.99, 1.00), *_OUTER],
]
OUTLINES: tuple[Plane, Plane] = (
    np.array(_OTHER) * (-1.0, 1.0),
    np.array(_SMALLER_BY_THE_HEART),
)
"""The patient's right lung, at the left of the film, and the left one beside the heart."""

# A pose: midline, its lean, half width, apices, costophrenic angles, as shares of the film's sides.
_USUAL = np.array([0.50, 0.0, 0.39, 0.13, 0.82])
_SPREAD = np.array([0.05, 0.05, 0.06, 0.09, 0.09])
_STEP = np.array([0.05, 0.06, 0.06, 0.075, 0.075])
_COARSE = _USUAL + _STEP * list(itertools.product(*(range(-n, n + 1) for n in (2, 1, 2, 2, 2))))
_AROUND = _STEP * list(itertools.product((-1.0, 0.0, 1.0), repeat=5))
_PRIOR = 0.02  # of half a squared deviation, against a mean contrast within ±1
_PLACES = 40  # along an outline
_REACHES = (3.0, 6.0)  # pixels to both sides of it
_BELOW = (10.0, 15.0)  # pixels below a base, where the film is still bright; below a rib it is not


def lung_mask(film: npt.NDArray[Any]) -> Mask:
    """Find both lung fields.

    Parameters
    ----------
    film
        (rows, columns) of any real dtype and scale, dark is low, an upright frontal chest.

    Returns
    -------
    numpy.ndarray
        (rows, columns) bool. A film without any contrast gets the usual place of the lungs.
    """
    rows, columns = film.shape
    mask = Image.new("1", (columns, rows))
    for outline in _placed(_fitted(_levelled(film))[None], OUTLINES):
        ImageDraw.Draw(mask).polygon([(x * columns - 0.5, y * rows - 0.5) for x, y in outline[0]], fill=1)
    return np.array(mask)


def lung_box(film: npt.NDArray[Any]) -> Plane:
    """Return the box about both lung fields: (4,) left, top, right, bottom in shares of the film's sides.

    Parameters
    ----------
    film
        As for `lung_mask`.
    """
    middle, _, width, top, bottom = _fitted(_levelled(film))
    return np.array([middle - width, top, middle + width, bottom])


def between(lungs: Mask) -> Mask:
    """Add to lung fields, (rows, columns) bool, what lies between them: heart, mediastinum, spine."""
    from_left = np.maximum.accumulate(lungs, axis=1)
    from_right = np.maximum.accumulate(lungs[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(from_left & from_right)


def activation_in_lungs(
    activation: npt.NDArray[np.float32], lungs: Sequence[Mask], resamples: int
) -> dict[str, Any]:
    """Measure how much of the positive activation lies inside the lung fields.

    Parameters
    ----------
    activation
        (n, h, w) contribution to the log-odds; each map covers its film edge to edge.
    lungs
        n masks, (rows, columns) each.
    resamples
        Of the films, for the interval.

    Returns
    -------
    dict
        As `model.stress.stress` says. A map without a positive cell is left out.
    """
    found = [_inside(map, mask) for map, mask in zip(activation, lungs, strict=True) if map.max() > 0.0]
    shares = np.array(found or np.zeros((1, 9)))
    rng = np.random.default_rng(0)
    means = shares[rng.integers(0, len(shares), (resamples, len(shares))), 0].mean(axis=1)
    names = [f"{what}{where}" for where in ("", "_within_a_tenth", "_in_chest") for what in _MEASURES]
    values = dict(zip(names, shares.mean(axis=0), strict=True))
    return {
        "mask": "classical: two outlines fitted to each film's contrasts, judged by eye only",
        "n": len(found),
        "mass_ci": [float(edge) for edge in np.percentile(means, (2.5, 97.5))] if found else None,
        **{name: float(value) if found else None for name, value in values.items()},
    }


def _inside(activation: npt.NDArray[np.float32], lungs: Mask) -> list[float]:
    rows, columns = lungs.shape
    image = Image.fromarray(np.maximum(activation, 0.0))
    spread = np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR), np.float64)
    peak = np.unravel_index(spread.argmax(), spread.shape)
    wider = ndimage.maximum_filter(lungs, size=(2 * (rows // 10) + 1, 2 * (columns // 10) + 1))
    return [
        float(value)
        for mask in (lungs, wider, between(lungs))
        for value in (spread[mask].sum() / spread.sum(), mask.mean(), mask[peak])
    ]


def _levelled(film: npt.NDArray[Any]) -> Plane:
    """Shrink a film, smooth its ribs, and bring every neighbourhood to one mean and one spread."""
    small = Image.fromarray(film.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BOX)
    plane = ndimage.gaussian_filter(np.asarray(small, np.float64), 1.5)
    plane = (plane - plane.min()) / max(float(np.ptp(plane)), 1e-6)
    above = plane - ndimage.gaussian_filter(plane, 12.0)
    spread = np.sqrt(ndimage.gaussian_filter(above**2, 12.0))
    return np.asarray(above / (spread + 0.03), np.float64)


def _fitted(plane: Plane) -> Plane:
    """Search coarsely, then three times as finely around the best three; return the best pose, (5,)."""
    poses = _COARSE
    for step in (0.5, 0.25, 0.125, 0.0):
        best = poses[np.argsort(-_scores(plane, poses), kind="stable")[:3]]
        poses = (best[:, None] + step * _AROUND).reshape(-1, 5)
    return np.asarray(best[0], np.float64)


def _scores(plane: Plane, poses: Plane) -> Plane:
    """Mean contrast across both outlines, less what makes a pose unusual; (k, 5) to (k,)."""
    score = -0.5 * _PRIOR * (((poses - _USUAL) / _SPREAD) ** 2).sum(axis=1)
    for places, outwards in zip(_placed(poses, _ALONG), _OUTWARDS, strict=True):
        at, base = places * SIDE - 0.5, outwards[:, 1] > 0.6
        pairs = [
            (_grey_at(plane, at + out * outwards), _grey_at(plane, at - out * outwards)) for out in _REACHES
        ]
        votes = np.sum([np.tanh(outside - inside) for outside, inside in pairs], axis=0)
        for reach in _BELOW:
            beyond = _grey_at(plane, (at + reach * outwards)[:, base])
            votes[:, base] += np.tanh(beyond - pairs[-1][1][:, base])
        score += votes.mean(axis=1) / 4.0
    return np.asarray(score, np.float64)


def _grey_at(plane: Plane, places: Plane) -> Plane:
    column, row = np.clip(np.rint(places), 0, SIDE - 1).astype(np.int64).transpose(2, 0, 1)
    return np.asarray(plane[row, column], np.float64)


def _placed(poses: Plane, outlines: tuple[Plane, Plane]) -> tuple[Plane, Plane]:
    """Put outlines (n, 2) where poses (k, 5) say; (k, n, 2) as shares (across, down) of the film's sides."""
    middle, lean, width, top, bottom = poses.T[:, :, None]

    def put(outline: Plane) -> Plane:
        across, down = outline.T
        return np.stack([middle + lean * (down - 0.5) + width * across, top + (bottom - top) * down], axis=-1)

    return put(outlines[0]), put(outlines[1])


def _evenly(outline: Plane) -> Plane:
    """Return `_PLACES` points at even distances along a closed outline."""
    ring = np.vstack([outline, outline[:1]])
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(ring, axis=0).T))])
    at = np.linspace(0.0, along[-1], _PLACES, endpoint=False)
    return np.column_stack([np.interp(at, along, ring[:, axis]) for axis in (0, 1)])


def _normals(points: Plane) -> Plane:
    """Unit vectors that point out of a closed outline as it usually lies on the film."""
    points = points * (_USUAL[2], _USUAL[4] - _USUAL[3])
    tangents = np.roll(points, -1, axis=0) - np.roll(points, 1, axis=0)
    following = np.roll(points, -1, axis=0)
    turning = np.sign(np.sum(points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]))
    normals = turning * np.column_stack([tangents[:, 1], -tangents[:, 0]])
    return np.asarray(normals / np.hypot(*normals.T)[:, None], np.float64)


_ALONG = (_evenly(OUTLINES[0]), _evenly(OUTLINES[1]))
_OUTWARDS = (_normals(_ALONG[0]), _normals(_ALONG[1]))
