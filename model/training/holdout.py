"""The films of data folders, and which of them training never sees."""

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
    """A patient-grouped, stratified split of one data folder, or of two populations.

    Attributes
    ----------
    listed
        All films, in the order of `films`.
    films
        All films in memory.
    groups
        (n,) number of the group (patient, near-duplicates) of every film.
    extra
        (n,) bool, films of the second folder.
    training, validation
        Indices; no group is in both.
    """

    listed: list[LabelledFilm]
    films: Films
    groups: npt.NDArray[np.int64]
    extra: npt.NDArray[np.bool_]
    training: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]


def hold_out(data: Path, recipe: Recipe, extra: Path | None = None) -> HoldOut:
    """Read a data folder and split it as a recipe says; a `test` folder is never read.

    Films of a second population come from `extra`, a folder of the same layout. Each population is split by
    itself, the first one as it is without the second, so that the films which weights of the same split were
    never trained on stay those. Equal names of the two folders are different patients; a group of
    near-duplicates that would be on both sides is trained on.

    Raises
    ------
    DataError
        When the folder cannot be used, or one side lacks a class.
    """
    folders = [data] if extra is None else [data, extra]
    found = [find_films(folder, ("train", "val")) for folder in folders]
    listed = [film for films in found for film in films]
    origin = np.repeat(np.arange(len(found)), [len(films) for films in found])
    films = Films(
        load_films(listed, recipe.film_side),
        np.array([film.label for film in listed], dtype=np.int64),
        np.array([film.bacterial for film in listed], dtype=np.int64),
    )
    same = near_duplicates(fingerprints(films.planes))
    patients = [(int(place), patient_of(film.path.stem)) for place, film in zip(origin, listed, strict=True)]
    groups = group(patients, same)
    held = np.zeros(len(listed), dtype=bool)
    for place in range(len(folders)):
        held[_fold(films.labels, patients, same, origin == place, recipe)] = True
    held &= ~np.isin(groups, groups[~held])
    strata = films.labels + 2 * origin
    training, validation = np.flatnonzero(~held), np.flatnonzero(held)
    for side, chosen in (("training", training), ("validation", validation)):
        if len(set(strata[chosen].tolist())) < 2 * len(folders):
            raise DataError(
                f"{' and '.join(map(str, folders))}: too few patients for {recipe.folds} folds, one class is "
                f"missing in {side}"
            )
    return HoldOut(listed, films, groups, origin == 1, training, validation)


def _fold(
    labels: npt.NDArray[np.int64],
    patients: list[tuple[int, str]],
    same: list[tuple[int, int]],
    chosen: npt.NDArray[np.bool_],
    recipe: Recipe,
) -> npt.NDArray[np.int64]:
    """Indices of the chosen films that the recipe's fold holds out, whatever the others are."""
    indices = np.flatnonzero(chosen)
    place = {int(index): number for number, index in enumerate(indices)}
    pairs = [(place[a], place[b]) for a, b in same if a in place and b in place]
    groups = group([patients[index] for index in indices], pairs)
    if (np.bincount(labels[indices], minlength=2) < recipe.folds).all():
        raise DataError(f"too few patients for {recipe.folds} folds: each class has fewer films than that")
    _, validation = grouped_fold(labels[indices], groups, recipe.folds, recipe.fold, recipe.seed)
    return np.asarray(indices[validation], np.int64)
