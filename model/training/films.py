"""Labelled films in the public data set's own folder layout."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.preprocess import ImageError, read_image

CLASSES = ("NORMAL", "PNEUMONIA")
SUFFIXES = {".jpeg", ".jpg", ".png"}
_PATTERN = re.compile(r"_(bacteria|virus)_", re.IGNORECASE)


class DataError(Exception):
    """A data folder that cannot be used; the message says what is missing and what was expected."""


@dataclass(frozen=True)
class LabelledFilm:
    """One image file and its label (1 for pneumonia)."""

    path: Path
    label: int

    @property
    def bacterial(self) -> int:
        """1 for a bacterial, 0 for a viral pneumonia, -1 where the file name does not say (public set)."""
        found = _PATTERN.search(self.path.stem)
        return -1 if self.label == 0 or found is None else int(found[1].lower() == "bacteria")


@dataclass(frozen=True, eq=False)
class Films:
    """Films in memory and what is known of them.

    Attributes
    ----------
    planes
        (n, side, side) uint8.
    labels
        (n,) int64, 1 for pneumonia.
    bacterial
        (n,) int64: 1 for bacterial, 0 for viral, -1 for unknown or no pneumonia.
    """

    planes: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    bacterial: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.planes)

    def at(self, indices: npt.NDArray[np.int64]) -> Films:
        """Return some of the films."""
        return Films(self.planes[indices], self.labels[indices], self.bacterial[indices])


def find_films(data: Path, splits: tuple[str, ...]) -> list[LabelledFilm]:
    """List the films of some splits.

    Parameters
    ----------
    data
        `data/{train,test,val}/{NORMAL,PNEUMONIA}/*.jpeg`, or `data/{NORMAL,PNEUMONIA}` alone.
    splits
        Folders to read where `data` has splits; a folder without splits is read whole.

    Returns
    -------
    list of LabelledFilm
        Sorted by path, so that one seed means one result on every file system.

    Raises
    ------
    DataError
        When the folder is missing, has another layout, or has no image of one of the two classes.
    """
    if not data.is_dir():
        raise DataError(f"{data}: no such folder")
    if any((data / name).is_dir() for name in CLASSES):
        roots = [data]
    else:
        roots = [data / split for split in splits if (data / split).is_dir()]
        if not roots:
            raise DataError(
                f"{data}: expected the folders {' and '.join(CLASSES)}, "
                f"or {' or '.join(splits)} with these two inside"
            )
    films = [
        LabelledFilm(path, label)
        for root in roots
        for label, name in enumerate(CLASSES)
        for path in sorted((root / name).glob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    for label, name in enumerate(CLASSES):
        if not any(film.label == label for film in films):
            raise DataError(f"{', '.join(str(root / name) for root in roots)}: no JPEG or PNG images there")
    return sorted(films, key=lambda film: film.path)


def load_films(
    films: list[LabelledFilm], side: int, on_progress: Callable[[int, int], None] | None = None
) -> npt.NDArray[np.uint8]:
    """Decode films once into memory, squashed to a square.

    Parameters
    ----------
    films
        What to read.
    side
        Side of the squares in pixels; films that have this size already (the public 224-pixel copies) are
        taken as they are.
    on_progress
        Called with (films done, films in all).

    Returns
    -------
    numpy.ndarray
        (n, side, side) uint8.

    Raises
    ------
    DataError
        When a file cannot be read.
    """
    stack = np.empty((len(films), side, side), dtype=np.uint8)
    for index, film in enumerate(films):
        try:
            stack[index] = _squashed(read_image(film.path), side)
        except ImageError as fault:
            raise DataError(str(fault)) from fault
        if on_progress is not None:
            on_progress(index + 1, len(films))
    return stack


def _squashed(grey: npt.NDArray[Any], side: int) -> npt.NDArray[np.uint8]:
    if grey.dtype == np.uint8 and grey.shape == (side, side):
        return grey
    low, high = float(grey.min()), float(grey.max())
    if grey.dtype != np.uint8:
        grey = (grey - low) * (255.0 / max(high - low, 1.0))
    plane = Image.fromarray(grey.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(np.clip(np.rint(np.asarray(plane)), 0, 255), dtype=np.uint8)
