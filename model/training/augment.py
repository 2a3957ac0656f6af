"""Augmentation made for radiographs: what differs between hospitals, machines and years, and not the disease.

First a film borrows from another one, of either class, what is style and no disease (`Borrow`): its
histogram, its power spectrum, its surroundings. What one class has more often than the other in this set
(sharper films, blacker backgrounds, other collimation) then says nothing about the label. Everything after
that works on one film before the percentile stretch, as torchvision v2 transforms on a (1, H, W) float32
tensor in [0, 1]. What each stands for:

- framing: what `model.locate` leaves of it (crop, aspect, shift), rotation and shear of a child that was not
  held straight;
- grey scale: window, gamma and smooth curves (each maker's own processing), film veil, background that is not
  black;
- image quality: noise of a lower dose, blur of motion and of other resampling, sharpening by edge
  enhancement, JPEG blocks;
- things that are no anatomy: collimator edges, markers, text and lines put over or erased.

The horizontal flip is on. It mirrors the heart, which no real film does unless it was hung wrongly or the
child has situs inversus; but pneumonia has no preferred side that would justify learning one, the side of the
"R" marker differs between the two classes of the public set, and from scratch on 1,341 normals the doubled
variety is worth more than the situs.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

import model.torchvision_ops  # noqa: F401

# isort: split
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

Tensor = torch.Tensor
Grey = npt.NDArray[np.float32]

RINGS_KEPT = 6
"""Rings of the slowest spatial frequencies (under two periods a film) that no film borrows: the layout."""

IN_FRAME = (0.9, 1.1)
"""Reach of what is kept of a film that is cut about its lungs: they fill more of it than of a whole film."""


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


class _FilmTransform(v2.Transform):  # type: ignore[misc]
    """A transform of one grey tensor; the random draw is torch's, so that one seed gives one film."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self.film(inpt)

    def film(self, film: Tensor) -> Tensor:
        raise NotImplementedError


class Curve(_FilmTransform):
    """Gamma and a smooth S-curve or its inverse, as makers' look-up tables differ."""

    def film(self, film: Tensor) -> Tensor:
        film = film.clamp(1e-4, 1.0) ** math.exp(_uniform(-0.6, 0.6))
        wave = torch.sin(2.0 * math.pi * film) * _uniform(-0.08, 0.08)
        return film + wave + torch.sin(math.pi * film) * _uniform(-0.1, 0.1)


class Window(_FilmTransform):
    """Clip the grey scale at other ends, and lift the black as scatter and film veil do."""

    def film(self, film: Tensor) -> Tensor:
        low, high = _uniform(0.0, 0.12), _uniform(0.85, 1.0)
        veil = _uniform(0.0, 0.2)
        return veil + (1.0 - veil) * ((film - low) / (high - low)).clamp(0.0, 1.0)


class Shading(_FilmTransform):
    """A slow gradient over the film: heel effect, tilted detector, uneven light of a digitiser."""

    def film(self, film: Tensor) -> Tensor:
        rows = torch.linspace(-1.0, 1.0, film.shape[-2])[:, None]
        columns = torch.linspace(-1.0, 1.0, film.shape[-1])[None, :]
        return film * (1.0 + _uniform(-0.2, 0.2) * rows + _uniform(-0.2, 0.2) * columns)


class Jpeg(_FilmTransform):
    """JPEG at low quality. Pillow's encoder, for torchvision's needs its compiled operators."""

    def film(self, film: Tensor) -> Tensor:
        grey = (film[0].clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).numpy()
        packed = io.BytesIO()
        Image.fromarray(grey).save(packed, "JPEG", quality=int(_uniform(15, 80)))
        return torch.from_numpy(np.array(Image.open(packed), dtype=np.float32))[None] / 255.0


class Resample(_FilmTransform):
    """Down and up again: another pixel pitch, another resizing by whoever made the copy."""

    def film(self, film: Tensor) -> Tensor:
        side = int(film.shape[-1] * _uniform(0.35, 0.8))
        small = functional.resize(film, [side, side], antialias=bool(torch.rand(()) < 0.7))
        restored: Tensor = functional.resize(small, list(film.shape[-2:]), antialias=True)
        return restored


class Sharpen(_FilmTransform):
    """Unsharp mask, the edge enhancement of computed radiography."""

    def film(self, film: Tensor) -> Tensor:
        amount = _uniform(0.3, 1.5)
        blurred: Tensor = functional.gaussian_blur(film, [7, 7], [_uniform(1.0, 2.5)] * 2)
        return film + amount * (film - blurred)


class Noise(_FilmTransform):
    """Noise of a lower dose; half of the time correlated, as detectors and resizing make it."""

    def film(self, film: Tensor) -> Tensor:
        noise = torch.randn_like(film)
        if torch.rand(()) < 0.5:
            noise = functional.gaussian_blur(noise, [3, 3], [0.8, 0.8]) * 1.5
        return film + noise * _uniform(0.003, 0.03)


class Collimate(_FilmTransform):
    """Cover up to a sixth of each side with one grey, as shutters, borders and scanner lids do."""

    def film(self, film: Tensor) -> Tensor:
        film = film.clone()
        grey = 0.0 if torch.rand(()) < 0.6 else _uniform(0.0, 1.0)
        reach = film.shape[-1] / 6.0
        top, bottom, left, right = (
            int(_uniform(0.0, reach)) if torch.rand(()) < 0.5 else 0 for _ in range(4)
        )
        film[..., :top, :] = grey
        film[..., film.shape[-2] - bottom :, :] = grey
        film[..., :, :left] = grey
        film[..., :, film.shape[-1] - right :] = grey
        return film


class Markers(_FilmTransform):
    """Put letters and flat patches near the border, so that markers appear and vanish on both classes."""

    def film(self, film: Tensor) -> Tensor:
        film = film.clone()
        rows, columns = film.shape[-2:]
        for _ in range(int(_uniform(1, 5))):
            height, width = int(_uniform(3, rows / 8)), int(_uniform(3, columns / 8))
            along = _uniform(0.0, 1.0)
            depth = _uniform(0.0, 0.2) if torch.rand(()) < 0.5 else _uniform(0.8, 1.0)
            down, right = (along, depth) if torch.rand(()) < 0.5 else (depth, along)
            top, left = int(down * (rows - height)), int(right * (columns - width))
            patch = film[..., top : top + height, left : left + width]
            if torch.rand(()) < 0.5:
                patch.copy_(patch.mean().expand_as(patch))
            else:
                strokes = torch.rand(1, max(height // 3, 1), max(width // 3, 1)) < 0.5
                nearest = v2.InterpolationMode.NEAREST
                letters = functional.resize(strokes.float(), [height, width], interpolation=nearest)
                patch.copy_(torch.maximum(patch, letters * _uniform(0.6, 1.0)))
        return film


class Borrow:
    """Give a film the style of another one, so that no style goes with a class.

    Each of three is done by chance, with a partner drawn from all films:

    - the histogram of grey values, wholly or in part;
    - the power spectrum by spatial frequency (sharpness, edge enhancement, noise, pixel pitch of the source),
      with the film's own phases and directions (the idea of Fourier domain adaptation, Yang and Soatto, CVPR
      2020, without the other film's anatomy);
    - the surroundings: all that lies outside a soft oval about the middle of the film is the partner's.

    Parameters
    ----------
    films
        (n, side, side) uint8, the films that borrow and lend.
    histogram, spectrum, surround
        Chance of each.
    """

    def __init__(
        self, films: npt.NDArray[np.uint8], histogram: float, spectrum: float, surround: float
    ) -> None:
        self._films = films
        self._steps = ((borrowed_histogram, histogram), (borrowed_spectrum, spectrum))
        self._surround = surround

    def __call__(self, index: int) -> Tensor:
        """Turn one of the films into (1, side, side) float32 around [0, 1]."""
        grey = _unit(self._films[index])
        for step, share in self._steps:
            if torch.rand(()) < share:
                grey = step(grey, self._partner(), _uniform(0.2, 0.8))
        if torch.rand(()) < self._surround:
            grey = borrowed_surround(grey, self._partner(), IN_FRAME)
        return torch.from_numpy(np.ascontiguousarray(grey, np.float32))[None]

    def _partner(self) -> Grey:
        return _unit(self._films[int(torch.randint(len(self._films), ()))])


def _unit(plane: npt.NDArray[np.uint8]) -> Grey:
    return np.asarray(plane.astype(np.float32) / 255.0)


def borrowed_histogram(film: Grey, partner: Grey, strength: float) -> Grey:
    """Move the grey values by `strength` (0 to 1) of the way to the partner's histogram."""
    levels = np.linspace(0.0, 1.0, 257)
    shares = [np.cumsum(np.histogram(each, levels)[0]) / each.size for each in (film, partner)]
    middles = (levels[:-1] + levels[1:]) / 2.0
    matched = np.interp(np.interp(film, middles, shares[0]), shares[1], middles)
    return np.asarray(film + strength * (matched - film), np.float32)


def borrowed_spectrum(film: Grey, partner: Grey, strength: float) -> Grey:
    """Scale each ring of spatial frequencies to the partner's amplitude, to the power of `strength`."""
    rings = _rings(film.shape[0], film.shape[1])
    spectra = [np.fft.rfft2(each) for each in (film, partner)]
    # The same number of coefficients in each ring on both sides, so that sums compare as means do.
    own, other = (np.bincount(rings.ravel(), np.abs(each).ravel()) for each in spectra)
    gain = np.clip(other / np.maximum(own, 1e-6), 0.1, 10.0) ** strength
    gain[:RINGS_KEPT] = 1.0
    return np.asarray(np.fft.irfft2(spectra[0] * gain[rings], s=film.shape), np.float32)


@cache
def _rings(rows: int, columns: int) -> npt.NDArray[np.int64]:
    """Number of the ring of spatial frequency of every coefficient of `rfft2`; rings widen as octaves do."""
    radius = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None]) * max(rows, columns)
    return np.asarray(np.rint(4.0 * np.log2(1.0 + radius)), np.int64)


def borrowed_surround(film: Grey, partner: Grey, reach: tuple[float, float] = (0.8, 1.0)) -> Grey:
    """Keep an oval (a squircle) about the lungs; it reaches `reach` of the half sides."""
    rows, columns = film.shape
    down = np.abs(np.linspace(-1.0, 1.0, rows) - _uniform(-0.05, 0.05)) / _uniform(*reach)
    across = np.abs(np.linspace(-1.0, 1.0, columns) - _uniform(-0.05, 0.05)) / _uniform(*reach)
    place = (down[:, None] ** 4 + across[None] ** 4) ** 0.25
    own = np.clip((1.0 - place) / _uniform(0.02, 0.2) + 0.5, 0.0, 1.0)
    return np.asarray(own * film + (1.0 - own) * partner, np.float32)


def _sometimes(transform: Any, share: float) -> Any:
    return v2.RandomApply([transform], p=share)


def film_augmentation(side: int, flip: bool = True) -> v2.Compose:
    """Compose the training augmentation.

    Parameters
    ----------
    side
        Side of the square films in pixels; the result has the same.
    flip
        Mirror half of the films.

    Returns
    -------
    torchvision.transforms.v2.Compose
        From (1, side, side) float32 in [0, 1] to the same shape, values roughly in [0, 1].
    """
    steps: Sequence[Any] = [
        v2.RandomHorizontalFlip(0.5 if flip else 0.0),
        _sometimes(Markers(), 0.5),
        _sometimes(v2.RandomAffine(degrees=8, translate=(0.04, 0.04), scale=(0.9, 1.08), shear=4), 0.6),
        v2.RandomResizedCrop(side, scale=(0.8, 1.0), ratio=(0.85, 1.18), antialias=True),
        _sometimes(Collimate(), 0.3),
        _sometimes(Shading(), 0.4),
        _sometimes(Curve(), 0.8),
        _sometimes(Window(), 0.5),
        v2.RandomChoice([Sharpen(), v2.GaussianBlur(7, (0.4, 2.0)), Resample(), v2.Identity()]),
        _sometimes(Noise(), 0.5),
        _sometimes(Jpeg(), 0.3),
    ]
    return v2.Compose(steps)


def augmented(films: npt.NDArray[np.uint8], seed: int, copy: int, flip: bool) -> npt.NDArray[np.uint8]:
    """Return an augmented copy of films, (n, side, side) uint8; the same copy number gives the same films."""
    augment = film_augmentation(films.shape[1], flip)
    changed = np.empty_like(films)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 7919 + copy)
        for index, film in enumerate(films):
            plane = augment(torch.from_numpy(film)[None].float() / 255.0)[0].numpy()
            low, high = float(plane.min()), float(plane.max())
            changed[index] = np.rint((plane - low) * (255.0 / max(high - low, 1e-6)))
    return changed
