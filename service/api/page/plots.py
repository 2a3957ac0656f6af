"""Plots as plain values for inline SVG: they need no script, no library, and follow the page's colours.

Each is 640 wide; the template draws it, and a table beside it says the same in words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 616, 12, 168
_LONGEST = 16
_LABELS = 8


@dataclass(frozen=True)
class Bar:
    """A share in [0, 1] of one group with its interval; None where there is none."""

    label: str
    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Dot:
    """Mean probability and observed share of some answers."""

    x: float
    y: float
    answers: int


@dataclass(frozen=True)
class Mark:
    """One mark: its middle, and the ends of its interval where it has one (y runs down)."""

    x: float
    y: float
    top: float | None
    bottom: float | None
    size: float
    said: str


@dataclass(frozen=True)
class Plot:
    """What the template draws: marks, lines of the grid and their labels, labels below, maybe a diagonal."""

    title: str
    marks: Sequence[Mark]
    grid: Sequence[tuple[float, str]]
    labels: Sequence[tuple[float, str]]
    has_diagonal: bool = False


def bars(title: str, given: Sequence[Bar]) -> Plot:
    """Return shares side by side; of many groups every so many is named."""
    step = (_RIGHT - _LEFT) / max(1, len(given))
    every = max(1, -(-len(given) // _LABELS))
    marks, labels = [], []
    for place, bar in enumerate(given):
        x = round(_LEFT + (place + 0.5) * step, 1)
        if place % every == 0:
            # The end tells scanners of one maker apart.
            labels.append((x, bar.label if len(bar.label) <= _LONGEST else f"…{bar.label[1 - _LONGEST :]}"))
        if bar.value is None:
            continue
        top = None if bar.high is None else _y(bar.high)
        bottom = None if bar.low is None else _y(bar.low)
        marks.append(Mark(x, _y(bar.value), top, bottom, 4, f"{bar.label}: {100 * bar.value:.1f} %"))
    return Plot(title, marks, _grid(), labels)


def calibration_plot(title: str, given: Sequence[Dot]) -> Plot:
    """Return observed shares over mean probabilities, with the line of perfect calibration."""
    marks = [
        Mark(
            _x(dot.x), _y(dot.y), None, None, 5, f"{100 * dot.x:.0f} %: {100 * dot.y:.0f} % of {dot.answers}"
        )
        for dot in given
    ]
    return Plot(title, marks, _grid(), [(_x(part / 4), f"{25 * part} %") for part in range(5)], True)


def _grid() -> list[tuple[float, str]]:
    return [(_y(part / 4), f"{25 * part} %") for part in range(5)]


def _x(value: float) -> float:
    return round(_LEFT + value * (_RIGHT - _LEFT), 1)


def _y(value: float) -> float:
    return round(_BOTTOM - value * (_BOTTOM - _TOP), 1)
