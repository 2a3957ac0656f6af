"""Patient-grouped, stratified splits: no patient and no near-duplicate film on both sides."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

THUMBNAIL = 32
NEAR_DUPLICATE = 0.995
"""Correlation of two thumbnails from which on they are taken for one exposure."""

_PATIENT = re.compile(r"^(?:NORMAL2-)?(?P<normal>IM-\d+)|^(?P<person>person\d+)", re.IGNORECASE)


def patient_of(stem: str) -> str:
    """Read the patient from a file name of the public set.

    `person12_bacteria_46` and `person12_virus_47` are `person12`. `IM-0115-0001` and `NORMAL2-IM-0115-0001`
    are both `im-0115`: whether the second series of normals restarts the numbering is not published, and
    keeping the two on one side costs nothing. Any other name is cut at its last underscore (`00001299_000` of
    NIH).
    """
    found = _PATIENT.match(stem)
    if found:
        return (found["normal"] or found["person"]).lower()
    return stem.rpartition("_")[0] or stem


def fingerprints(films: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Reduce films to comparable rows: standardised thumbnails, whose dot product is their correlation.

    Parameters
    ----------
    films
        (n, rows, columns) uint8.

    Returns
    -------
    numpy.ndarray
        (n, THUMBNAIL**2) float32 of unit length.
    """
    size = (THUMBNAIL, THUMBNAIL)
    rows = np.stack(
        [
            np.asarray(Image.fromarray(film).resize(size, Image.Resampling.BOX), np.float32).ravel()
            for film in films
        ]
    )
    rows -= rows.mean(axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6), dtype=np.float32)


def near_duplicates(prints: npt.NDArray[np.float32], limit: float = NEAR_DUPLICATE) -> list[tuple[int, int]]:
    """List pairs of films whose thumbnails correlate at `limit` or above."""
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(prints), 1024):
        alike = prints[start : start + 1024] @ prints.T >= limit
        first, second = np.nonzero(alike)
        pairs += [(int(a) + start, int(b)) for a, b in zip(first, second, strict=True) if a + start < b]
    return pairs


def group(patients: Sequence[Hashable], pairs: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Number the groups that must stay together: one patient's films, and all films linked by `pairs`."""
    leader = list(range(len(patients)))

    def root(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    first_of: dict[Hashable, int] = {}
    for index, patient in enumerate(patients):
        leader[root(index)] = root(first_of.setdefault(patient, index))
    for a, b in pairs:
        leader[root(a)] = root(b)
    return np.array([root(index) for index in range(len(patients))], dtype=np.int64)


def grouped_fold(
    labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], folds: int, fold: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split into training and validation indices, grouped and stratified.

    Parameters
    ----------
    labels, groups
        (n,) each.
    folds, fold
        Number of folds, and which one (from 0) is the validation side.
    seed
        Shuffles the groups.

    Returns
    -------
    tuple of numpy.ndarray
        Indices for training and for validation; no group is in both.
    """
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    training, validation = list(splitter.split(np.zeros(len(labels)), labels, groups))[fold]
    return np.asarray(training, np.int64), np.asarray(validation, np.int64)
