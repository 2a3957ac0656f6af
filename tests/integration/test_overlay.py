"""Pixel for pixel: a bright square planted in the corner of a film is found again where it was planted.

From the received file through decoding, a stand-in network that lights up where its film is bright, the real
putting right of a film that hangs wrongly, to the outline in the SR and the colours in the heat map.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw
from pydicom import Dataset, dcmread

from model.hanging import HANGINGS
from model.predict import Predictor, Scores
from service.core.settings import load
from tests import factories
from tests.ledgers import migrated
from tests.pipeline import receive, reports, study, work
from worker.context import Context
from worker.tasks import infer

_ROWS, _COLUMNS = 1200, 800
# First and last row and column (both outside) of the square: upper right corner, on the cells' borders.
_SQUARE = (0, 200, 600, 800)
_CELLS = (12, 8)
_BRIGHT, _DARK = 4000, 1200  # of 12 bits, as displayed

Plane = npt.NDArray[Any]
Box = tuple[int, int, int, int]


class Lamp(Predictor):
    """A network that knows an upright film by where its brightest cell lies, and lights up there."""

    def __init__(self, context: Context) -> None:
        self.info = context.model().info

    def score(self, films: Any) -> Scores:
        """Score the films as they lie, which is all that the network itself does."""
        maps = np.stack([self._lit(film) for film in films])
        upright = np.array([self._is_upright(film) for film in films])
        high = np.full(len(films), 0.9)
        return Scores(high, high, np.where(upright, 0.1, 9.0), maps)

    @staticmethod
    def _lit(film: Plane) -> npt.NDArray[np.float32]:
        grey = Image.fromarray(np.asarray(film, np.float32)).resize(_CELLS[::-1], Image.Resampling.BOX)
        cells = np.asarray(grey)
        return np.asarray(cells > (cells.min() + cells.max()) / 2, np.float32)

    def _is_upright(self, film: Plane) -> bool:
        lit = self._lit(film)
        rows, columns = np.nonzero(lit)
        upper_right = rows.mean() < _CELLS[0] / 2 and columns.mean() > _CELLS[1] / 2
        return bool(film.shape[0] > film.shape[1] and upper_right and lit.mean() < 0.25)


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    settings = load(data_dir=tmp_path, study_quiet_seconds=0, min_free_bytes=0)
    migrated(settings.sqlalchemy_url)
    opened = Context.open(settings)
    lamp = Lamp(opened)
    monkeypatch.setattr(infer, "_predictor", lambda *_: lamp)
    yield opened
    opened.ledger.close()


def shown() -> Plane:
    """Return the upright film as displayed: dark, and the square bright."""
    pixels = np.full((_ROWS, _COLUMNS), _DARK, np.uint16)
    top, bottom, left, right = _SQUARE
    pixels[top:bottom, left:right] = _BRIGHT
    return pixels


def film_of(displayed: Plane, photometric_interpretation: str = "MONOCHROME1", **attributes: Any) -> Dataset:
    """Return a 12-bit film that looks like this."""
    dataset = factories.phantom_chest(
        rows=displayed.shape[0],
        columns=displayed.shape[1],
        photometric_interpretation=photometric_interpretation,
        **attributes,
    )
    stored = 4095 - displayed if photometric_interpretation == "MONOCHROME1" else displayed
    dataset.PixelData = stored.astype("<u2").tobytes()
    if "WindowCenter" not in attributes:
        del dataset.WindowCenter, dataset.WindowWidth
    return dataset


def planted(displayed: Plane) -> Box:
    """Return first and last row and column (both outside) of the bright square."""
    rows, columns = np.nonzero(displayed > (_BRIGHT + _DARK) // 2)
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


def outline(report: Dataset) -> npt.NDArray[np.float64]:
    """Return the one heat-map contour of the SR as (column, row), in pixels of the image."""
    found = []

    def walk(item: Dataset) -> None:
        if item.get("ValueType") == "SCOORD":
            points = np.array(item.GraphicData, float).reshape(-1, 2)
            found.append(points)
        for child in item.get("ContentSequence", []):
            walk(child)

    walk(report)
    # One is the whole image's, which the number of the film is inferred from.
    regions = [points for points in found if np.ptp(points, axis=0).prod() < 0.5 * _ROWS * _COLUMNS]
    assert regions
    for points in regions[1:]:
        np.testing.assert_array_equal(points, regions[0])
    return regions[0]


def overlap(first: Plane, second: Plane) -> float:
    """Return how much of the union of two masks they share."""
    return float((first & second).sum() / (first | second).sum())


def mask_of(points: npt.NDArray[np.float64], rows: int, columns: int) -> Plane:
    canvas = Image.new("1", (columns, rows))
    ImageDraw.Draw(canvas).polygon([tuple(point - 0.5) for point in points], fill=1)
    return np.asarray(canvas)


def lit(capture: Dataset, rows: int, columns: int) -> Plane:
    """Return where the film of the heat map is coloured, at the size of the source image."""
    pixels = capture.pixel_array.astype(int)
    height = round(capture.Columns * rows / columns)  # the legend is below
    coloured = (pixels[:height, :, 0] - pixels[:height, :, 2]) > 60
    return np.asarray(Image.fromarray(coloured).resize((columns, rows), Image.Resampling.NEAREST))


_TURNED_RIGHT = 1  # np.rot90 of what hangs so that HANGINGS[0] puts it right
_CASES: dict[str, tuple[Plane, dict[str, Any]]] = {
    "MONOCHROME1": (shown(), {}),
    "MONOCHROME1 by its photometric interpretation alone": (shown(), {"PresentationLUTShape": None}),
    "MONOCHROME2": (shown(), {"photometric_interpretation": "MONOCHROME2"}),
    "unequal pixel spacing": (shown(), {"PixelSpacing": [0.1, 0.3], "ImagerPixelSpacing": [0.1, 0.3]}),
    # As stored: MONOCHROME1 shows low values bright. Ends saturate, the square stays the brightest.
    "window": (shown(), {"WindowCenter": "1500", "WindowWidth": "2400"}),
    "head to the left": (np.rot90(shown(), _TURNED_RIGHT), {}),
    "head to the right": (np.rot90(shown(), -_TURNED_RIGHT), {}),
    "upside down": (np.rot90(shown(), 2), {}),
    "black and white exchanged": (5200 - shown(), {}),
}


@pytest.mark.parametrize("name", _CASES)
def test_a_bright_square_is_found_again_where_it_was_planted(name: str, context: Context) -> None:
    displayed, attributes = _CASES[name]
    rows, columns = displayed.shape
    exchanged = name == "black and white exchanged"
    top, bottom, left, right = planted(5200 - displayed if exchanged else displayed)
    receive(context, film_of(displayed, **attributes))
    work(context)
    assert study(context).finding == "present"
    turned = [hanging.flag for hanging in HANGINGS if hanging.flag in study(context).flags]
    assert len(turned) == (name.startswith(("head", "upside", "black")))
    made = {item.kind: dcmread(context.spool.absolute(item.path)) for item in reports(context)}

    points = outline(made["sr"])
    # A map of 12 by 8 cells, smoothed: the outline lies within 1 % of the film's longer side.
    near = 0.01 * max(rows, columns)
    assert points.min(axis=0) == pytest.approx((left, top), abs=near)
    assert points.max(axis=0) == pytest.approx((right, bottom), abs=near)

    square = np.zeros((rows, columns), bool)
    square[top:bottom, left:right] = True
    assert overlap(mask_of(points, rows, columns), square) > 0.9
    assert overlap(lit(made["heatmap"], rows, columns), square) > 0.75
    assert overlap(lit(made["heatmap"], rows, columns), mask_of(points, rows, columns)) > 0.75


def test_an_area_is_measured_with_the_spacing_of_rows_and_columns(context: Context) -> None:
    displayed, attributes = _CASES["unequal pixel spacing"]
    receive(context, film_of(displayed, **attributes))
    work(context)
    (report,) = [dcmread(context.spool.absolute(item.path)) for item in reports(context) if item.kind == "sr"]
    areas: list[float] = []

    def walk(item: Dataset) -> None:
        if item.get("ValueType") == "NUM" and item.ConceptNameCodeSequence[0].CodeValue == "42798000":
            areas.append(float(item.MeasuredValueSequence[0].NumericValue))
        for child in item.get("ContentSequence", []):
            walk(child)

    walk(report)
    top, bottom, left, right = planted(displayed)
    assert areas == [pytest.approx((bottom - top) * 0.1 * (right - left) * 0.3, rel=0.05)]
