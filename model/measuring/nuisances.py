"""What is done to films for the stress table: nuisances, the style of the other class, and taking lungs away.

A nuisance leaves the disease as visible as it was, so the network's answer should not move. A film in the
style of the other class carries its own lungs and another film's grey values, sharpness or surroundings. A
deprived film has no lungs of its own left, so the network should be left with nothing; `lungs only` is the
counterpart.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage  # type: ignore[import-untyped]

from model.training.augment import borrowed_histogram, borrowed_spectrum, borrowed_surround
from model.training.lungs import between, lung_mask

Film = npt.NDArray[np.uint8]
Grey = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
Box = tuple[float, float, float, float]

RING = 1 / 8
"""Width of the border ring as a share of the film's side."""

CORNER = 3 / 16
"""Side of a corner as a share of the film's side."""

FLAT = 128
"""The grey that stands for nothing."""


class Case(NamedTuple):
    """A film and what its perturbations need to know.

    Attributes
    ----------
    film
        (rows, columns) uint8.
    lungs
        (rows, columns) bool, from `model.training.lungs.lung_mask`.
    label
        1 for pneumonia.
    partner
        A film of the other class, of the same shape.
    seed
        Decides what is random (the noise, the shape of a borrowed surround).
    """

    film: Film
    lungs: Mask
    label: int
    partner: Film
    seed: int


class Perturbation(NamedTuple):
    """A row of the stress table; `apply` returns a film of the same shape and dtype, always the same one."""

    name: str
    kind: Literal["plain", "nuisance", "style", "deprived"]
    stands_for: str
    apply: Callable[[Case], Film]


def _eight_bit(grey: Grey) -> Film:
    return np.asarray(np.clip(np.rint(grey * 255.0), 0, 255), np.uint8)


def _greys(change: Callable[[Grey], Grey]) -> Callable[[Case], Film]:
    """Change grey values in [0, 1]."""
    return lambda case: _eight_bit(change(case.film / 255.0))


def _window(grey: Grey) -> Grey:
    low, high = np.percentile(grey, (5, 95))
    return np.asarray((grey - low) / max(high - low, 1e-6))


def _sharpened(grey: Grey) -> Grey:
    return np.asarray(2.0 * grey - ndimage.gaussian_filter(grey, 2.0))


def _noisy(case: Case) -> Film:
    noise = np.random.default_rng(case.seed).standard_normal(case.film.shape)
    return _eight_bit(case.film / 255.0 + 0.025 * noise)


def _jpeg(case: Case) -> Film:
    packed = io.BytesIO()
    Image.fromarray(case.film).save(packed, "JPEG", quality=30)
    return np.array(Image.open(packed))


def _seen(left: float, top: float, right: float, bottom: float) -> Callable[[Case], Film]:
    """Show a part of the film (shares of its sides) as the whole; what lies beyond the film is black."""

    def show(case: Case) -> Film:
        rows, columns = case.film.shape
        part = (left * columns, top * rows, right * columns, bottom * rows)
        size, bilinear = (columns, rows), Image.Resampling.BILINEAR
        return np.array(Image.fromarray(case.film).transform(size, Image.Transform.EXTENT, part, bilinear))

    return show


def _normals_alone(change: Callable[[Case], Film]) -> Callable[[Case], Film]:
    return lambda case: case.film if case.label else change(case)


def _rotated(degrees: float) -> Callable[[Case], Film]:
    return lambda case: np.array(Image.fromarray(case.film).rotate(degrees, Image.Resampling.BILINEAR))


def _halved(case: Case) -> Film:
    image = Image.fromarray(case.film)
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return np.array(half.resize(image.size, Image.Resampling.BILINEAR))


def _inner(shape: tuple[int, ...], margin: float) -> tuple[slice, slice]:
    down, across = (round(margin * side) for side in shape)
    return slice(down, shape[0] - down), slice(across, shape[1] - across)


def _collimated(case: Case) -> Film:
    film, inner = np.zeros_like(case.film), _inner(case.film.shape, 0.08)
    film[inner] = case.film[inner]
    return film


def _wider(mask: Mask) -> Mask:
    """Add a margin of a 28th of the film's height."""
    return np.asarray(ndimage.binary_dilation(mask, iterations=max(mask.shape[0] // 28, 1)))


def _markers_erased(case: Case) -> Film:
    """Fill what is small and bright, outside the chest, with the ground that it stands on."""
    film, side = case.film, case.film.shape[0]
    ground = ndimage.grey_opening(film, size=max(side // 20, 3))
    bright = (film.astype(np.int16) - ground > 40) & ~_wider(between(case.lungs))
    found, _ = ndimage.label(ndimage.binary_dilation(bright, iterations=2))
    erased = film.copy()
    for number, box in enumerate(ndimage.find_objects(found), 1):
        if all(edge.stop - edge.start < side / 3 for edge in box):
            marker = found[box] == number
            erased[box][marker] = ground[box][marker]
    return erased


def _written(film: Film, texts: tuple[tuple[str, float, float, float], ...]) -> Film:
    """Write (text, left, top, height), all but the text as shares of the film's sides."""
    image = Image.fromarray(film)
    draw = ImageDraw.Draw(image)
    for text, left, top, height in texts:
        font = ImageFont.load_default(max(height * image.height, 6.0))
        draw.text((left * image.width, top * image.height), text, fill=235, font=font)
    return np.array(image)


def _markers_added(case: Case) -> Film:
    return _written(case.film, (("L", 0.9, 0.1, 0.12), ("08:15:30", 0.02, 0.01, 0.05)))


_AS_NORMALS = (("R", 0.0, 0.45, 0.07),)
_AS_PNEUMONIAS = (("R", 0.02, 0.06, 0.13), ("21:10:21", 0.78, 0.0, 0.05), ("KV59", 0.86, 0.94, 0.05))


def _markers_exchanged(case: Case) -> Film:
    return _written(_markers_erased(case), _AS_NORMALS if case.label else _AS_PNEUMONIAS)


def _in_style(*steps: Callable[[Any, Any], Any]) -> Callable[[Case], Film]:
    def borrow(case: Case) -> Film:
        grey, partner = (np.asarray(each / 255.0, np.float32) for each in (case.film, case.partner))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.seed)
            for step in steps:
                grey = step(grey, partner)
        return _eight_bit(grey)

    return borrow


def _histogram(grey: Any, partner: Any) -> Any:
    return borrowed_histogram(grey, partner, 0.7)


def _spectrum(grey: Any, partner: Any) -> Any:
    return borrowed_spectrum(grey, partner, 0.8)


def _ring_only(case: Case) -> Film:
    film = case.film.copy()
    film[_inner(film.shape, RING)] = FLAT
    return film


def _corners_only(case: Case) -> Film:
    film = case.film.copy()
    down, across = _inner(film.shape, CORNER)
    film[down], film[:, across] = FLAT, FLAT
    return film


def _softly(lungs: Mask) -> Grey:
    """1 on the lungs and their margin, fading to 0."""
    return np.asarray(ndimage.gaussian_filter(_wider(lungs).astype(np.float64), lungs.shape[0] / 75.0))


def _lungs_masked_out(case: Case) -> Film:
    """Fill the lungs from what surrounds them, by a normalised convolution."""
    grey, kept = case.film / 255.0, (~_wider(case.lungs)).astype(np.float64)
    reach = case.film.shape[0] / 12.0
    weight = ndimage.gaussian_filter(kept, reach)
    around = ndimage.gaussian_filter(grey * kept, reach) / np.maximum(weight, 1e-6)
    covered = _softly(case.lungs)
    return _eight_bit(covered * around + (1.0 - covered) * grey)


def _chest_masked_out(case: Case) -> Film:
    return _lungs_masked_out(case._replace(lungs=between(case.lungs)))


def _chest_exchanged(case: Case) -> Film:
    put_in = _softly(between(case.lungs | lung_mask(case.partner)))
    return _eight_bit((put_in * case.partner + (1.0 - put_in) * case.film) / 255.0)


def _box_masked_out(case: Case) -> Film:
    film = case.film.copy()
    boxes = ndimage.find_objects(_wider(case.lungs).astype(np.int8))
    film[boxes[0]] = FLAT
    return film


def _lungs_only(case: Case) -> Film:
    grey, kept = case.film / 255.0, _softly(case.lungs)
    return _eight_bit(kept * grey + (1.0 - kept) * grey[case.lungs].mean())


def _mean_only(case: Case) -> Film:
    return np.full_like(case.film, round(float(case.film.mean())))


def _mirrored(case: Case) -> Film:
    return np.ascontiguousarray(case.film[:, ::-1])


PLAIN = Perturbation("plain", "plain", "the films as they are", lambda case: case.film)

PERTURBATIONS: tuple[Perturbation, ...] = (
    Perturbation("mirrored", "nuisance", "left and right exchanged", _mirrored),
    Perturbation("markers erased", "nuisance", "letters, times, clips outside the chest", _markers_erased),
    Perturbation("markers added", "nuisance", "an L and a time in the upper corners", _markers_added),
    Perturbation("markers exchanged", "nuisance", "erased; the other class's put there", _markers_exchanged),
    Perturbation("gamma 0.7", "nuisance", "a maker's brighter curve", _greys(lambda grey: grey**0.7)),
    Perturbation("gamma 1.4", "nuisance", "a maker's darker curve", _greys(lambda grey: grey**1.4)),
    Perturbation(
        "S-curve",
        "nuisance",
        "more contrast in the middle greys",
        _greys(lambda grey: grey - 0.1 * np.sin(2.0 * np.pi * grey)),
    ),
    Perturbation(
        "inverse S-curve",
        "nuisance",
        "less contrast in the middle greys",
        _greys(lambda grey: grey + 0.1 * np.sin(2.0 * np.pi * grey)),
    ),
    Perturbation("window narrowed", "nuisance", "5 % of the pixels clipped at both ends", _greys(_window)),
    Perturbation("JPEG quality 30", "nuisance", "stronger compression", _jpeg),
    Perturbation("crop 5 %", "nuisance", "tighter framing, each side", _seen(0.05, 0.05, 0.95, 0.95)),
    Perturbation("crop 10 %", "nuisance", "tighter framing, each side", _seen(0.1, 0.1, 0.9, 0.9)),
    Perturbation(
        "zoomed out", "nuisance", "black border of 8 % each side", _seen(-0.095, -0.095, 1.095, 1.095)
    ),
    Perturbation("rotated +5°", "nuisance", "a child held obliquely", _rotated(5.0)),
    Perturbation("rotated -5°", "nuisance", "a child held obliquely", _rotated(-5.0)),
    Perturbation(
        "blurred",
        "nuisance",
        "a coarser detector",
        _greys(lambda grey: np.asarray(ndimage.gaussian_filter(grey, 1.5))),
    ),
    Perturbation("sharpened", "nuisance", "edge enhancement (unsharp mask)", _greys(_sharpened)),
    Perturbation("noise", "nuisance", "a lower dose", _noisy),
    Perturbation("half size and back", "nuisance", "another copy's resampling", _halved),
    Perturbation(
        "aspect 4:3", "nuisance", "an eighth cut at top and bottom, stretched", _seen(0.0, 0.125, 1.0, 0.875)
    ),
    Perturbation(
        "aspect 3:4", "nuisance", "an eighth cut at left and right, stretched", _seen(0.125, 0.0, 0.875, 1.0)
    ),
    Perturbation(
        "aspect 3:2", "nuisance", "a sixth cut at top and bottom, stretched", _seen(0.0, 1 / 6, 1.0, 5 / 6)
    ),
    Perturbation(
        "normals at 3:2",
        "nuisance",
        "the normals alone cut to 3:2: framing that goes with the label, another way than in training",
        _normals_alone(_seen(0.0, 1 / 6, 1.0, 5 / 6)),
    ),
    Perturbation("collimated", "nuisance", "outer 8 % black", _collimated),
    Perturbation("histogram", "style", "grey values of the other class", _in_style(_histogram)),
    Perturbation("spectrum", "style", "sharpness and noise of the other class", _in_style(_spectrum)),
    Perturbation(
        "surround", "style", "what surrounds the chest, of the other class", _in_style(borrowed_surround)
    ),
    Perturbation(
        "all three", "style", "all of these at once", _in_style(_histogram, _spectrum, borrowed_surround)
    ),
    Perturbation("border only", "deprived", "outer eighth, the rest flat grey", _ring_only),
    Perturbation("corners only", "deprived", "four corners of 3/16, the rest flat grey", _corners_only),
    Perturbation("lungs masked out", "deprived", "filled from their surroundings", _lungs_masked_out),
    Perturbation("chest masked out", "deprived", "heart and mediastinum too", _chest_masked_out),
    Perturbation("box masked out", "deprived", "a box around both lungs flat grey", _box_masked_out),
    Perturbation("lungs only", "deprived", "the opposite: all but the lungs flat grey", _lungs_only),
    Perturbation(
        "chest exchanged",
        "deprived",
        "lungs and heart of the other class put in: 0 where the answer follows them, 1 where the rest",
        _chest_exchanged,
    ),
    Perturbation("mean only", "deprived", "one grey", _mean_only),
)
"""The rows of the stress table, in its order."""
