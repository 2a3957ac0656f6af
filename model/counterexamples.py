"""Films that are no upright frontal chest, made from those that are: what the gate learns to refuse.

No film of another body part is needed. Turned, inverted, cut up and magnified chests share the grey values,
the noise and the bone texture of real radiographs, and differ in the one thing the gate is about, the layout
of a chest (the idea of Golan and El-Yaniv, NeurIPS 2018, and of outlier exposure, Hendrycks et al., ICLR
2019).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Film = npt.NDArray[Any]
Maker = Callable[[Film, np.random.Generator], Film]


def _upside_down(film: Film, rng: np.random.Generator) -> Film:
    return film[::-1] if rng.random() < 0.5 else film[::-1, ::-1]


def _on_its_side(film: Film, rng: np.random.Generator) -> Film:
    return np.rot90(film, 1 if rng.random() < 0.5 else 3)


def _inverted(film: Film, rng: np.random.Generator) -> Film:
    return np.asarray(film.max() - film)


def _shuffled(film: Film, rng: np.random.Generator) -> Film:
    cuts = int(rng.integers(2, 5))
    side = film.shape[0] // cuts
    starts = [(i * side, j * side) for i in range(cuts) for j in range(cuts)]
    tiles = [film[top : top + side, left : left + side] for top, left in starts]
    order = rng.permutation(len(tiles))
    if (order == np.arange(len(tiles))).all():
        order = order[::-1]
    return np.block([[tiles[order[i * cuts + j]] for j in range(cuts)] for i in range(cuts)])


def _magnified(film: Film, rng: np.random.Generator) -> Film:
    side = int(film.shape[0] * rng.uniform(0.15, 0.4))
    top, left = rng.integers(0, film.shape[0] - side, 2)
    return film[top : top + side, left : left + side]


def _one_half_twice(film: Film, rng: np.random.Generator) -> Film:
    half = film.shape[0] // 2
    kind = rng.integers(4)
    if kind == 0:
        return np.concatenate([film[:, :half], film[:, :half]], axis=1)
    if kind == 1:
        return np.concatenate([film[half:], film[half:]], axis=0)
    return film[:half] if kind == 2 else film[half:]


def _sheet(film: Film, rng: np.random.Generator) -> Film:
    """Many small images on one film, as a sheet of slices."""
    count = int(rng.integers(2, 5))
    small = np.asarray(_plane(film).resize((film.shape[1] // count,) * 2, Image.Resampling.BOX))
    sheet = np.tile(small, (count, count))
    sheet[rng.random(sheet.shape) < 0.002] = sheet.max()
    return sheet


def _round_field(film: Film, rng: np.random.Generator) -> Film:
    """A round image on an empty ground: an image intensifier, a slice."""
    source = _magnified(film, rng) if rng.random() < 0.5 else _on_its_side(film, rng)
    if rng.random() < 0.3:
        source = shapes(film.shape[0], rng)
    source = _span(source)
    rows, columns = np.mgrid[-1.0 : 1.0 : source.shape[0] * 1j, -1.0 : 1.0 : source.shape[1] * 1j]
    inside = (rows / rng.uniform(0.8, 1.05)) ** 2 + (columns / rng.uniform(0.8, 1.05)) ** 2 < 1.0
    return np.where(inside, source, rng.choice([0.0, 0.0, 1.0]))


def _lying_between_borders(film: Film, rng: np.random.Generator) -> Film:
    """A long narrow piece of the film between empty stripes: a limb on its cassette."""
    width = int(film.shape[1] * rng.uniform(0.15, 0.35))
    left = int(rng.integers(0, film.shape[1] - width))
    limb = _span(film[:, left : left + width])
    ground = np.full((limb.shape[0], int(width * rng.uniform(2.0, 4.0))), rng.choice([0.0, 0.0, 1.0]))
    at = int(rng.integers(0, ground.shape[1] - width))
    ground[:, at : at + width] = limb
    return ground if rng.random() < 0.6 else np.rot90(ground)


def _nothing(film: Film, rng: np.random.Generator) -> Film:
    return shapes(film.shape[0], rng)


MAKERS: tuple[Maker, ...] = (
    _upside_down,
    _upside_down,
    _on_its_side,
    _on_its_side,
    _inverted,
    _shuffled,
    _shuffled,
    _magnified,
    _one_half_twice,
    _sheet,
    _round_field,
    _lying_between_borders,
    _nothing,
)


def counterexample(film: Film, rng: np.random.Generator) -> Film:
    """Make one film that is no upright frontal chest out of one that is.

    Parameters
    ----------
    film
        (side, side), any real dtype.
    rng
        Decides what is made.

    Returns
    -------
    numpy.ndarray
        2-D, of any shape and scale.
    """
    maker = MAKERS[int(rng.integers(len(MAKERS)))]
    return np.ascontiguousarray(maker(film, rng))


def shapes(side: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw an image without anatomy: noise, clouds, gradients, soft bodies; (side, side) float64."""
    rows, columns = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j]
    kind = int(rng.integers(5))
    if kind == 0:
        return rng.random((side, side))
    if kind == 1:
        frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
        falling = (frequency + 1.0 / side) ** rng.uniform(0.5, 2.5)
        spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / falling
        return np.asarray(np.fft.irfft2(spectrum, s=(side, side)), np.float64)
    if kind == 2:
        angle = rng.uniform(0.0, 2.0 * np.pi)
        return np.asarray(np.cos(angle) * columns + np.sin(angle) * rows, np.float64)
    if kind == 3:
        return np.asarray(np.hypot(columns - rng.random(), rows - rng.random()), np.float64)
    image = 0.02 * rng.standard_normal((side, side))
    for _ in range(int(rng.integers(1, 6))):
        angle = rng.uniform(0.0, np.pi)
        across, down = columns - rng.random(), rows - rng.random()
        along = (across * np.cos(angle) + down * np.sin(angle)) / rng.uniform(0.05, 0.4)
        aside = (down * np.cos(angle) - across * np.sin(angle)) / rng.uniform(0.1, 0.9)
        image += rng.uniform(0.3, 1.0) * np.exp(-((along**2 + aside**2) ** rng.uniform(1.0, 4.0)))
    return image


def _span(film: Film) -> npt.NDArray[np.float64]:
    low, high = float(film.min()), float(film.max())
    return (film.astype(np.float64) - low) / max(high - low, 1e-6)


def _plane(film: Film) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(film, dtype=np.float32))
