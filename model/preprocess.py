"""From a film of any size and grey scale to the network's input, the same for training and serving.

Nothing here imports torch: the decode pool, which parses hostile bytes, runs without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

Grey = npt.NDArray[Any]
Film = npt.NDArray[np.float32]

MAX_IMAGE_PIXELS = 100_000_000
"""Largest JPEG or PNG that is opened; a detector of 43 cm at 0.1 mm has 18 million pixels."""

SIDE = 224
"""Side in pixels to which every film is squashed first: that of the public training copies."""

CENTRE = 0.8
"""Share of each side whose grey values set the stretch: collimation and burnt-in text sit outside it."""

PERCENTILES = (1.0, 99.0)
_BAND = 48
_MOST_ADDED = 128
"""So many squared pixels of 16 bits fit into 31 bits."""

MEAN, SPREAD = 0.5, 0.25


class ImageError(Exception):
    """An image file that cannot be read; the message says which and why."""


def read_image(path: Path) -> Grey:
    """Read a JPEG or PNG as one grey plane.

    Parameters
    ----------
    path
        The file. Colour is reduced to luma (ITU-R BT.601), EXIF orientation is applied, 16-bit PNG keeps
        its 16 bits.

    Returns
    -------
    numpy.ndarray
        (rows, columns), uint8, or uint16/int32 for deeper PNGs; dark is low.

    Raises
    ------
    ImageError
        When the file is missing, is no image, is cut short or has more than `MAX_IMAGE_PIXELS` pixels.
    """
    try:
        with warnings.catch_warnings():
            # The bound below decides, not Pillow's process-wide one.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=("JPEG", "PNG")) as opened:
                if opened.width * opened.height > MAX_IMAGE_PIXELS:
                    raise ImageError(
                        f"{path}: {opened.width} x {opened.height} pixels is more than a film has"
                    )
                upright = ImageOps.exif_transpose(opened)
                if upright.mode not in ("L", "I", "I;16"):
                    upright = upright.convert("L")
                return np.array(upright)
    except Image.DecompressionBombError as fault:
        raise ImageError(f"{path}: more pixels than a film has") from fault
    except UnidentifiedImageError as fault:
        raise ImageError(f"{path}: not a JPEG or PNG image") from fault
    except (OSError, SyntaxError, ValueError) as fault:
        raise ImageError(f"{path}: cannot be read ({fault})") from fault


def reduce(grey: Grey, long_side: int = 1024, through: Callable[[Grey], Grey] | None = None) -> Film:
    """Shrink a film by whole-number block means until its long side fits; never enlarge it.

    The mean of a block is an area mean, so nothing aliases, and it is several times faster than any
    resampling filter on full-resolution film. Small whole numbers are added as such, a band that fits the
    cache at a time.

    Parameters
    ----------
    grey
        (rows, columns), any real dtype.
    long_side
        Upper bound of the result's longer side, in pixels.
    through
        What every pixel goes through before the mean, such as a clip or a lookup: from (n, columns) to an
        array of the same shape.

    Returns
    -------
    numpy.ndarray
        float32, C-contiguous, in the unit of `grey`, or of what `through` gives. A last block that is cut by
        the film's edge is the mean of the pixels it has.

    Raises
    ------
    ValueError
        When `grey` is not a non-empty 2-D array of finite real numbers.
    """
    film = _checked(grey)
    factor = -(-max(film.shape) // long_side)
    reduced = np.empty([-(-side // factor) for side in film.shape], dtype=np.float32)
    for top in range(0, len(reduced), _BAND):
        band = film[top * factor : (top + _BAND) * factor]
        band = band if through is None else through(band)
        kind = _sum_type(band, factor)
        # Rows before columns, which keeps memory access contiguous.
        reduced[top : top + _BAND] = _block_sums(_block_sums(band, factor, kind).T, factor, kind).T
    if factor > 1:
        down, across = (np.minimum(factor, side - np.arange(0, side, factor)) for side in film.shape)
        reduced /= np.outer(down, across).astype(np.float32)
    return reduced


def squashed(film: Grey, side: int = SIDE) -> Film:
    """Squash a whole film to a square, as the public training copies are.

    Taking the minimum off and dividing by the peak makes an affine change of grey values, such as another bit
    depth or rescale slope, vanish; nothing is quantised on the way.

    Parameters
    ----------
    film
        (rows, columns), any real dtype, any scale; dark is low (MONOCHROME2).
    side
        Of the result, in pixels.

    Returns
    -------
    numpy.ndarray
        (side, side) float32 within [0, 1]. A film of one single grey gives zeros.

    Raises
    ------
    ValueError
        When `film` is not a non-empty 2-D array of finite real numbers.
    """
    grey = _checked(film)
    # Taking the minimum off first keeps float32 exact for a large offset (-1024 HU, 32768 of signed data).
    grey = np.subtract(grey, grey.min(), dtype=np.float64 if grey.dtype.itemsize > 2 else np.float32)
    peak = float(grey.max())
    if peak == 0.0:
        return np.zeros((side, side), dtype=np.float32)
    plane = Image.fromarray((grey / peak).astype(np.float32))
    return np.asarray(plane.resize((side, side), Image.Resampling.BILINEAR))


def framed(square: Grey, frame: npt.NDArray[np.floating[Any]], side: int | None = None) -> Grey:
    """Show a part of a film as the whole.

    Parameters
    ----------
    square
        (n, n) uint8 or float32.
    frame
        (4,): left, top, right and bottom of the part in shares of the film's sides. What lies beyond the film
        is black.
    side
        Of the result, in pixels; default: that of `square`.

    Returns
    -------
    numpy.ndarray
        (side, side) of the dtype of `square`.
    """
    side = side or len(square)
    part = tuple(float(edge) * len(square) for edge in frame)
    image = Image.fromarray(np.ascontiguousarray(square))
    shown = image.transform((side, side), Image.Transform.EXTENT, part, Image.Resampling.BILINEAR)
    return np.array(shown)


def model_input(film: Grey, size: int) -> Film:
    """Turn a film, or a part of one, into a network's input.

    It is squashed to a square, its grey values are stretched between two percentiles of the central part,
    clipped and standardised by constants. An affine change of grey values therefore gives the same input.

    Parameters
    ----------
    film
        As for `squashed`.
    size
        Side of the result in pixels.

    Returns
    -------
    numpy.ndarray
        (size, size) float32 within [-2, 2]. A film of one single grey gives zeros.

    Raises
    ------
    ValueError
        When `film` is not a non-empty 2-D array of finite real numbers.
    """
    square = squashed(film, size)
    margin = round(size * (1.0 - CENTRE) / 2.0)
    low, high = np.percentile(square[margin : size - margin, margin : size - margin], PERCENTILES)
    if high - low < 1e-6:
        low, high = float(square.min()), float(square.max())
        if high - low < 1e-6:
            return np.zeros((size, size), dtype=np.float32)
    stretched = np.clip((square - low) / (high - low), 0.0, 1.0)
    return np.asarray((stretched - MEAN) / SPREAD, dtype=np.float32)


def _checked(grey: Grey) -> Grey:
    if grey.ndim != 2 or grey.size == 0:
        raise ValueError(f"a film is a non-empty array of rows and columns, not of shape {grey.shape}")
    if grey.dtype.kind not in "buif":
        raise ValueError(f"a film holds real numbers, not {grey.dtype}")
    if grey.dtype.kind == "f" and not np.isfinite(grey).all():
        raise ValueError("the film holds values that are not finite")
    return grey.astype(np.uint8) if grey.dtype.kind == "b" else grey


def _sum_type(grey: Grey, factor: int) -> npt.DTypeLike:
    """The narrowest type that holds the sum of `factor` x `factor` of these pixels: the fastest one."""
    if grey.dtype.kind == "f" or grey.dtype.itemsize > 2 or factor > _MOST_ADDED:
        return np.float32
    if grey.dtype.kind == "u" and factor * factor * int(grey.max()) <= np.iinfo(np.uint16).max:
        return np.uint16
    return np.int32


def _block_sums(grey: Grey, factor: int, kind: npt.DTypeLike) -> Grey:
    """Sum of every `factor` rows; the last block may have fewer."""
    if factor == 1:
        return grey
    whole = len(grey) // factor * factor
    sums = np.add(grey[:whole:factor], grey[1:whole:factor], dtype=kind)
    for offset in range(2, factor):
        sums += grey[offset:whole:factor]
    if whole < len(grey):
        sums = np.concatenate([sums, grey[whole:].sum(axis=0, dtype=kind, keepdims=True)])
    return sums
