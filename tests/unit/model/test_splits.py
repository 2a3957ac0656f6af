from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.training.films import DataError, find_films, load_films
from model.training.splits import fingerprints, group, grouped_fold, near_duplicates, patient_of
from tests.unit.model.conftest import chest


@pytest.mark.parametrize(
    ("stem", "patient"),
    [
        ("person12_bacteria_46", "person12"),
        ("person12_virus_47", "person12"),
        ("person1_virus_1_2", "person1"),
        ("IM-0115-0001", "im-0115"),
        ("IM-0115-0001-0002", "im-0115"),
        ("NORMAL2-IM-0115-0001", "im-0115"),
        ("00001299_000", "00001299"),
        ("film", "film"),
    ],
)
def test_the_patient_is_read_from_the_file_name(stem: str, patient: str) -> None:
    assert patient_of(stem) == patient


def test_a_patient_is_never_on_both_sides() -> None:
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 80, 400)
    labels = (patients % 4 > 0).astype(np.int64)
    groups = group(patients.tolist(), [])
    held: list[int] = []
    for fold in range(5):
        training, validation = grouped_fold(labels, groups, 5, fold, seed=2)
        assert not set(patients[training]) & set(patients[validation])
        assert abs(labels[validation].mean() - labels.mean()) < 0.1
        held += validation.tolist()
    assert sorted(held) == list(range(400))


def test_near_duplicates_of_two_patients_stay_on_one_side() -> None:
    rng = np.random.default_rng(1)
    films = np.stack([np.clip(chest(rng, False, 64, 64) * 200, 0, 255) for _ in range(6)]).astype(np.uint8)
    films[4] = np.clip(films[1] * 0.9 + 8, 0, 255).astype(np.uint8)
    pairs = near_duplicates(fingerprints(films), limit=0.999)
    assert pairs == [(1, 4)]
    groups = group(["a", "b", "c", "d", "e", "e"], pairs)
    assert groups[1] == groups[4] == groups[5]
    assert len(set(groups.tolist())) == 4


def test_training_folders_are_listed_and_test_is_not(dataset: Path) -> None:
    films = find_films(dataset, ("train", "val"))
    assert len(films) == 36
    assert sum(film.label for film in films) == 24
    assert all("test" not in film.path.relative_to(dataset).parts for film in films)
    assert find_films(dataset / "train", ("train",)) == films


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        find_films(tmp_path / "none", ("test",))
    with pytest.raises(DataError, match="NORMAL and PNEUMONIA"):
        find_films(tmp_path, ("test",))
    (tmp_path / "NORMAL").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "NORMAL" / "a.png")
    with pytest.raises(DataError, match="PNEUMONIA: no JPEG or PNG"):
        find_films(tmp_path, ("test",))


def test_a_broken_film_is_named(dataset: Path) -> None:
    with pytest.raises(DataError, match=r"broken\.jpeg"):
        load_films(find_films(dataset, ("test",)), 64)
