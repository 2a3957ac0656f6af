"""Chests that hang wrongly: turned, upside down, black and white exchanged; how each is put right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[Any]

PUT_RIGHT = 0.8
"""Largest gate distance of a film that is put right: stricter than for a film as it lies (1), because four
hangings are tried. At 1 they let 2 to 3 % of the validation films' other counterexamples through, at 0.8 some
0.2 %, and 99 % of the wrongly hung films still; a margin to the second best hanging changed nothing."""


@dataclass(frozen=True)
class Hanging:
    """One way in which a film hangs wrongly.

    Attributes
    ----------
    flag
        What the report says of it.
    apply
        Puts the film right, (rows, columns) of any real dtype.
    take_back
        Brings an activation map of the film put right back over the film as it was given.
    """

    flag: str
    apply: Callable[[Plane], Plane]
    take_back: Callable[[Plane], Plane]


def _exchanged(film: Plane) -> Plane:
    # In float64, so that no integer overflows.
    return np.asarray(film.max() - film.astype(np.float64))


def _turned(quarters: int) -> Callable[[Plane], Plane]:
    return lambda plane: np.rot90(plane, quarters)


HANGINGS = (
    Hanging(
        "the film lay with the head to the left and was turned upright to be analysed",
        _turned(-1),
        _turned(1),
    ),
    Hanging(
        "the film lay with the head to the right and was turned upright to be analysed",
        _turned(1),
        _turned(-1),
    ),
    Hanging("the film hung upside down and was turned upright to be analysed", _turned(2), _turned(2)),
    Hanging("black and white were exchanged and were put right to be analysed", _exchanged, lambda map: map),
)
