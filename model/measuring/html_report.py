"""An evaluation as one page for readers: nothing is loaded, everything is within."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import colormaps
from PIL import Image

from model.measuring.cases import Case, Left, Read
from model.measuring.plots import drawn, svg
from model.measuring.scoring import read_case
from model.predict import Predictor, shown
from model.preprocess import reduce
from model.weights import WeightsInfo

MOST_PICTURES = 12
MOST_LISTED = 100
_LONG_SIDE = 240  # pixels of a thumbnail
_OPACITY = 0.45


@dataclass(frozen=True)
class Picture:
    """A wrongly called film, by name: the film and its activation map, as data URIs."""

    file: str
    label: str
    probability: float
    film: str
    activation: str


def pictures(
    errors: Sequence[dict[str, Any]], cases: Sequence[Case], predictor: Predictor, read: Read
) -> list[Picture]:
    """Read some of a report's `errors` again and draw them; what cannot be read any more is left out."""
    by_name = {case.file: case for case in cases}
    drawings = []
    for error in errors:
        seen = read_case(by_name[error["file"]], read)
        if isinstance(seen, Left):
            continue
        grey = _thumbnail(seen.pixels)
        activation = shown(predictor.score([seen.pixels]).activation[0])
        drawings.append(Picture(**error, film=_jpeg(grey), activation=_jpeg(_overlaid(grey, activation))))
    return drawings


def html_report(
    report: dict[str, Any], info: WeightsInfo, worst: Sequence[Picture] = (), written: date | None = None
) -> str:
    """Return the page of a report.

    Parameters
    ----------
    report
        As returned by `model.measuring.evaluation.evaluate`.
    info
        Of the weights that were evaluated.
    worst
        Films to show, from `pictures`.
    written
        Default: today.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, span=_span, of_hundred=_of_hundred, figure=_figure)
    not_analysed = report["not_analysed"]["films"]
    return environment.get_template("evaluation.html.j2").render(
        report=report,
        info=info,
        worst=worst,
        written=(written or date.today()).isoformat(),
        figures={name: _uri("image/svg+xml", svg(figure)) for name, figure in drawn(report).items()},
        reasons=Counter(film["reason"] for film in not_analysed).most_common(),
        listed=not_analysed[:MOST_LISTED],
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{_of_hundred(value, 1)} %"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _span(edges: Sequence[float] | None, shape: str = "percent") -> str:
    """Say an interval: in percent, as a figure, or as so many of a hundred."""
    if edges is None:
        return ""
    if shape == "of_hundred":
        return " to ".join(_of_hundred(edge) for edge in edges)
    if shape == "figure":
        return f"{edges[0]:.3f} to {edges[1]:.3f}"
    return " to ".join(_of_hundred(edge, 1) for edge in edges)


def _of_hundred(share: float, decimals: int = 0) -> str:
    """Say how many of a hundred; never none or all of them unless it is so, to a hundred-thousandth."""
    for each in range(decimals, 4):
        said = f"{100 * share:.{each}f}"
        if float(said) not in (0.0, 100.0) or share in (0.0, 1.0):
            break
    return said


def _thumbnail(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Shrink a film and stretch its grey values between the first and the last percent: (h, w) uint8."""
    small = reduce(pixels, 4 * _LONG_SIDE)
    image = Image.fromarray(small)
    image.thumbnail((_LONG_SIDE, _LONG_SIDE), Image.Resampling.BOX)
    grey = np.asarray(image)
    low, high = np.percentile(grey, (1.0, 99.0))
    return np.asarray(np.clip((grey - low) * (255.0 / max(high - low, 1e-6)), 0, 255), dtype=np.uint8)


def _overlaid(grey: npt.NDArray[np.uint8], activation: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Lay an activation map in [0, 1] over a film, edge to edge: (h, w, 3) uint8."""
    size = (grey.shape[1], grey.shape[0])
    resized = np.asarray(Image.fromarray(activation).resize(size, Image.Resampling.BICUBIC))
    strength = np.clip(resized, 0.0, 1.0)
    opacity = _OPACITY * strength[..., None]
    colour = colormaps["turbo"](0.05 + 0.85 * strength)[..., :3] * 255.0
    return np.asarray(grey[..., None] * (1.0 - opacity) + colour * opacity, dtype=np.uint8)


def _jpeg(pixels: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return _uri("image/jpeg", buffer.getvalue())


def _uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
