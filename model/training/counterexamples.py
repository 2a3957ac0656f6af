"""Films that are no upright frontal chest, made from those that are: what the gate learns to refuse.

No film of another body part is needed. Turned, inverted, cut up and magnified chests share the grey values,
the noise and the bone texture of real radiographs, and differ in the one thing the gate is about, the layout
of a chest (the idea of Golan and El-Yaniv, NeurIPS 2018, and of outlier exposure, Hendrycks et al., ICLR
2019). Others are put together or drawn to resemble what a chest is mistaken for: lateral views, limbs,
slices, photographs. None of them is a claim to know how those really look; they are there in number so that
what is left is the chest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Film = npt.NDArray[Any]
Grey = npt.NDArray[np.float64]
Maker = Callable[[Film, np.random.Generator], Film]

SIDE = 112
"""Side of what is drawn, in pixels."""


def _turned(quarters: int) -> Maker:
    return lambda film, rng: np.rot90(film, quarters)


def _inverted(film: Film, rng: np.random.Generator) -> Film:
    return np.asarray(film.max() - film)


def _inverted_and_turned(film: Film, rng: np.random.Generator) -> Film:
    return np.rot90(_inverted(film, rng), int(rng.integers(1, 4)))


def _tilted(film: Film, rng: np.random.Generator) -> Film:
    return np.asarray(_plane(film).rotate(rng.uniform(35.0, 325.0), Image.Resampling.BILINEAR))


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
    side = int(film.shape[0] * rng.uniform(0.15, 0.45))
    top, left = rng.integers(0, film.shape[0] - side, 2)
    return film[top : top + side, left : left + side]


def _upper_or_lower_part(film: Film, rng: np.random.Generator) -> Film:
    """Neck and shoulders, or the abdomen."""
    rows = int(film.shape[0] * rng.uniform(0.3, 0.5))
    return film[:rows] if rng.random() < 0.5 else film[-rows:]


def _one_half_twice(film: Film, rng: np.random.Generator) -> Film:
    half, way = film.shape[0] // 2, int(rng.integers(3))
    if way == 0:
        return film[:, :half] if rng.random() < 0.5 else film[:, half:]
    pieces = (film[:, :half], film[half:]) if rng.random() < 0.5 else (film[:, half:], film[:half])
    return np.concatenate([pieces[way - 1]] * 2, axis=2 - way)


def _one_lung_over_the_other(film: Film, rng: np.random.Generator) -> Film:
    """Both lungs in one place, the spine to one side, air in front and behind: a lateral view."""
    half = int(film.shape[1] * rng.uniform(0.4, 0.6))
    share, span = rng.uniform(0.3, 0.7), _span(film)
    front = share * span[:, :half] + (1.0 - share) * span[:, ::-1][:, :half]
    behind = front[:, ::-1][:, : int(half * rng.uniform(0.1, 0.6))]
    air = [np.zeros((len(film), int(half * rng.uniform(0.0, 0.4)))) for _ in range(2)]
    view = np.concatenate([air[0], front, behind, air[1]], axis=1)
    return view if rng.random() < 0.5 else view[:, ::-1]


def _sheet(film: Film, rng: np.random.Generator) -> Film:
    """Many small images on one film, as a sheet of slices."""
    count = int(rng.integers(2, 5))
    small = np.asarray(_plane(film).resize((film.shape[1] // count,) * 2, Image.Resampling.BOX))
    sheet = np.tile(small, (count, count))
    sheet[rng.random(sheet.shape) < 0.002] = sheet.max()
    return sheet


def _slice(film: Film, rng: np.random.Generator) -> Film:
    """A round body on an empty ground: a slice, an image intensifier.

    Inside is a piece of the film, a drawing, or the two lungs at a hard window, flattened as the body lies.
    """
    way = rng.random()
    if way < 0.3:
        inside = _span(_magnified(film, rng) if way < 0.15 else np.rot90(film))
    elif way < 0.45:
        inside = drawn(film, rng)
    else:
        top, bottom = len(film) * rng.uniform(0.05, 0.2), len(film) * rng.uniform(0.7, 0.9)
        lungs = _span(film[int(top) : int(bottom)])
        inside = np.clip((lungs - rng.uniform(0.3, 0.5)) / rng.uniform(0.1, 0.4), 0.0, 1.0)
        inside = inside[::-1] if rng.random() < 0.3 else inside
    inside = _resized(inside, SIDE)
    rows, columns = _grid(SIDE)
    flat, wide = rng.uniform(0.6, 1.0), rng.uniform(0.8, 1.05)
    reach = np.hypot((2.0 * rows - 1.0) / flat, (2.0 * columns - 1.0) / wide)
    inside = np.where(reach > rng.uniform(0.8, 1.0), rng.uniform(0.3, 1.0), inside)
    return np.where(reach < 1.0, inside, rng.choice([0.0, 0.0, 1.0]))


def _piece_between_borders(film: Film, rng: np.random.Generator) -> Film:
    """A long narrow piece of the film between empty stripes: a limb on its cassette."""
    width = int(film.shape[1] * rng.uniform(0.15, 0.35))
    left = int(rng.integers(0, film.shape[1] - width))
    limb = _span(film[:, left : left + width])
    ground = np.full((limb.shape[0], int(width * rng.uniform(2.0, 4.0))), rng.choice([0.0, 0.0, 1.0]))
    at = int(rng.integers(0, ground.shape[1] - width))
    ground[:, at : at + width] = limb
    return ground if rng.random() < 0.6 else np.rot90(ground)


def _limbs(film: Film, rng: np.random.Generator) -> Film:
    """One to five long soft bodies with bones inside, on an empty ground, drawn."""
    rows, columns = _grid(SIDE)
    image = np.zeros((SIDE, SIDE))
    for _ in range(int(rng.integers(1, 6))):
        angle, at = rng.normal(0.0, 0.3), rng.uniform(0.2, 0.8, 2)
        across = (columns - at[1]) * np.cos(angle) + (rows - at[0]) * np.sin(angle)
        along = (rows - at[0]) * np.cos(angle) - (columns - at[1]) * np.sin(angle)
        wide = rng.uniform(0.06, 0.25) * (1.0 + rng.uniform(-0.5, 0.5) * along)
        body = 0.5 * np.clip(1.5 - 1.5 * np.abs(across / wide) ** 3, 0.0, 1.0)
        for _ in range(int(rng.integers(1, 3))):
            off, bone = rng.uniform(-0.4, 0.4) * wide, rng.uniform(0.15, 0.35) * wide
            inside = np.abs((across - off) / bone)
            gap = np.abs(along - rng.uniform(-0.4, 0.4)) > 0.02
            body += gap * (inside < 1.0) * (0.2 + 0.3 * inside**4) * (body > 0.0)
        image = np.maximum(image, body * (along > rng.uniform(-1.0, -0.3)))
    image += rng.uniform(0.0, 0.05) * rng.standard_normal(image.shape)
    return image if rng.random() < 0.6 else np.rot90(image)


def _photograph(film: Film, rng: np.random.Generator) -> Film:
    """Things that hide each other, each with a shade and a texture of its own.

    The dead leaves model of natural images (Lee, Mumford and Huang, IJCV 2001): sizes fall with the third
    power, so that it looks alike at every scale.
    """
    rows, columns = _grid(SIDE)
    image = clouds(SIDE, rng) + rng.uniform(-3.0, 3.0) * rows
    texture = clouds(SIDE, rng)
    smallest = rng.uniform(0.03, 0.2)
    for _ in range(int(rng.integers(5, 60))):
        size = min(smallest / np.sqrt(1.0 - rng.random()), 0.6)
        angle, shape = rng.uniform(0.0, np.pi), rng.uniform(0.3, 1.0)
        across, down = columns - rng.random(), rows - rng.random()
        along = (across * np.cos(angle) + down * np.sin(angle)) / size
        aside = (down * np.cos(angle) - across * np.sin(angle)) / (size * shape)
        inside = (along**2 + aside**2 if rng.random() < 0.6 else np.maximum(along**2, aside**2)) < 1.0
        light = rng.normal(0.0, 2.0) + rng.uniform(0.0, 1.0) * along
        image = np.where(inside, light + rng.uniform(0.0, 1.0) * texture, image)
    return image


def clouds(side: int, rng: np.random.Generator) -> Grey:
    """Draw noise whose amplitude falls with some power of the frequency: (side, side), spread 1."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    falling = (frequency + 1.0 / side) ** rng.uniform(0.5, 2.5)
    image = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) / falling, s=(side, side))
    return np.asarray(image / image.std(), np.float64)


def drawn(film: Film, rng: np.random.Generator) -> Grey:
    """Draw an image without anatomy: noise, clouds, gradients, soft bodies; `film` plays no part."""
    rows, columns = _grid(SIDE)
    way = int(rng.integers(5))
    if way == 0:
        return rng.random((SIDE, SIDE))
    if way == 1:
        return clouds(SIDE, rng)
    if way == 2:
        angle = rng.uniform(0.0, 2.0 * np.pi)
        return np.asarray(np.cos(angle) * columns + np.sin(angle) * rows, np.float64)
    if way == 3:
        return np.asarray(np.hypot(columns - rng.random(), rows - rng.random()), np.float64)
    image = 0.02 * rng.standard_normal((SIDE, SIDE))
    for _ in range(int(rng.integers(1, 6))):
        angle = rng.uniform(0.0, np.pi)
        across, down = columns - rng.random(), rows - rng.random()
        along = (across * np.cos(angle) + down * np.sin(angle)) / rng.uniform(0.05, 0.4)
        aside = (down * np.cos(angle) - across * np.sin(angle)) / rng.uniform(0.1, 0.9)
        image += rng.uniform(0.3, 1.0) * np.exp(-((along**2 + aside**2) ** rng.uniform(1.0, 4.0)))
    return image


KINDS: dict[str, Maker] = {
    "head to the left": _turned(1),
    "upside down": _turned(2),
    "head to the right": _turned(3),
    "inverted": _inverted,
    "inverted and turned": _inverted_and_turned,
    "tilted": _tilted,
    "shuffled": _shuffled,
    "magnified": _magnified,
    "upper or lower part": _upper_or_lower_part,
    "one half": _one_half_twice,
    "one lung over the other": _one_lung_over_the_other,
    "sheet": _sheet,
    "slice": _slice,
    "piece between borders": _piece_between_borders,
    "limbs": _limbs,
    "photograph": _photograph,
    "drawn": drawn,
}


def counterexample(kind: str, film: Film, rng: np.random.Generator) -> Film:
    """Make one film that is no upright frontal chest out of one that is.

    Parameters
    ----------
    kind
        One of `KINDS`.
    film
        (side, side), any real dtype.
    rng
        Decides what is left to chance.

    Returns
    -------
    numpy.ndarray
        2-D, of any shape and scale.
    """
    return np.ascontiguousarray(KINDS[kind](film, rng))


def _span(film: Film) -> Grey:
    low, high = float(film.min()), float(film.max())
    return (film.astype(np.float64) - low) / max(high - low, 1e-6)


def _grid(side: int) -> tuple[Grey, Grey]:
    rows, columns = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j]
    return rows, columns


def _resized(film: Film, side: int) -> Grey:
    return np.asarray(_plane(film).resize((side, side), Image.Resampling.BILINEAR), np.float64)


def _plane(film: Film) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(film, dtype=np.float32))
