"""From labelled films to their scores, a batch at a time, so that a set may be larger than the memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.measuring.cases import Case, Left, Read, Seen, described
from model.predict import BATCH, Predictor


@dataclass(frozen=True, eq=False)
class Scored:
    """The n films that were scored, and those that were not.

    Attributes
    ----------
    cases
        The n films, with what the files say of themselves added.
    labels
        (n,) int64, 1 for pneumonia.
    kinds
        (n,) int64: 1 for a bacterial, 0 for a viral pneumonia, -1 for unknown or none.
    probability, bacterial, gate_distance
        (n,) float64 each, as of `model.predict.Scores`.
    left
        Films that are not analysed, each with the reason.
    """

    cases: list[Case]
    labels: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float64]
    bacterial: npt.NDArray[np.float64]
    gate_distance: npt.NDArray[np.float64]
    left: list[tuple[Case, Left]]


def score(
    cases: Sequence[Case],
    predictor: Predictor,
    read: Read,
    on_progress: Callable[[int, int], None] | None = None,
) -> Scored:
    """Read and score films in order; none that can be read is refused.

    Parameters
    ----------
    cases
        What to score.
    read
        Opens one file.
    on_progress
        Called with (films done, films in all).
    """
    scored: list[Case] = []
    left: list[tuple[Case, Left]] = []
    numbers: list[npt.NDArray[np.float64]] = []
    for start in range(0, len(cases), BATCH):
        films = []
        for case in cases[start : start + BATCH]:
            seen = read_case(case, read)
            if isinstance(seen, Left):
                left.append((case, seen))
            else:
                scored.append(described(case, seen))
                films.append(seen.pixels)
        if films:
            scores = predictor.score(films)
            numbers.append(np.stack([scores.probability, scores.bacterial, scores.gate_distance]))
        if on_progress is not None:
            on_progress(min(start + BATCH, len(cases)), len(cases))
    probability, bacterial, distance = np.concatenate([np.empty((3, 0)), *numbers], axis=1)
    labels = np.array([case.label for case in scored], dtype=np.int64)
    kinds = np.array([case.bacterial for case in scored], dtype=np.int64)
    return Scored(scored, labels, kinds, probability, bacterial, distance, left)


def read_case(case: Case, read: Read) -> Seen | Left:
    """Open a film's file, if it is there."""
    return read(case.path) if case.path.is_file() else Left("no such file", unreadable=True)
