"""The films of a data folder, and which of them training never sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.training.films import DataError, Films, LabelledFilm, find_films, load_films
from model.training.recipe import Recipe
from model.training.splits import fingerprints, group, grouped_fold, near_duplicates, patient_of


@dataclass(frozen=True)
class HoldOut:
    """A patient-grouped, stratified split of one data folder.

    Attributes
    ----------
    listed
        All films, in the order of `films`.
    films
        All films in memory.
    groups
        (n,) number of the group (patient, near-duplicates) of every film.
    training, validation
        Indices; no group is in both.
    """

    listed: list[LabelledFilm]
    films: Films
    groups: npt.NDArray[np.int64]
    training: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]


def hold_out(data: Path, recipe: Recipe) -> HoldOut:
    """Read a data folder and split it as a recipe says; a `test` folder is never read.

    Raises
    ------
    DataError
        When the folder cannot be used, or one side lacks a class.
    """
    listed = find_films(data, ("train", "val"))
    films = Films(
        load_films(listed, recipe.film_side),
        np.array([film.label for film in listed], dtype=np.int64),
        np.array([film.bacterial for film in listed], dtype=np.int64),
    )
    same = near_duplicates(fingerprints(films.planes))
    groups = group([patient_of(film.path.stem) for film in listed], same)
    training, validation = grouped_fold(films.labels, groups, recipe.folds, recipe.fold, recipe.seed)
    for side, chosen in (("training", training), ("validation", validation)):
        if len(set(films.labels[chosen].tolist())) < 2:
            raise DataError(
                f"{data}: too few patients for {recipe.folds} folds, one class is missing in {side}"
            )
    return HoldOut(listed, films, groups, training, validation)
