from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model import train as training
from model.augment import augmented
from model.calibrate import balanced_weights, calibrate, equal_error_point, probabilities
from model.fit import ResumeError, class_weights, fit
from model.predict import Predictor
from model.recipe import Recipe
from tests.unit.model.conftest import chest

TINY = Recipe(sizes=(32, 48), film_side=64, epochs=3, batch=8, folds=3, seed=5)


def _films(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    films = np.stack([np.clip(chest(rng, bool(label), 64, 64) * 255, 0, 255) for label in labels])
    return films.astype(np.uint8), labels


def _fit(folder: Path, recipe: Recipe = TINY, **options: int) -> torch.nn.Module:
    folder.mkdir(exist_ok=True)
    return fit(
        _films(16, 1), _films(8, 2), recipe, checkpoint=folder / "a.pt", log=folder / "a.csv",
        measure=training.validation_metrics, device=torch.device("cpu"), **options,
    )  # fmt: skip


def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = _fit(tmp_path / "whole").state_dict()
    _fit(tmp_path / "halves", stop_after=1)
    resumed = _fit(tmp_path / "halves").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    rows = [(tmp_path / run / "a.csv").read_text().splitlines() for run in ("whole", "halves")]
    assert len(rows[0]) == len(rows[1]) == 1 + TINY.epochs
    # All but the last column, the seconds.
    assert [row.rpartition(",")[0] for row in rows[0]] == [row.rpartition(",")[0] for row in rows[1]]


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    first = _fit(tmp_path / "a", stop_after=1).state_dict()
    second = _fit(tmp_path / "b", replace(TINY, seed=6), stop_after=1).state_dict()
    assert not torch.equal(first["head.weight"], second["head.weight"])


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    _fit(tmp_path, stop_after=1)
    with pytest.raises(ResumeError, match="rate"):
        _fit(tmp_path, replace(TINY, rate=0.1))
    (tmp_path / "a.pt").write_bytes(b"cut short")
    with pytest.raises(ResumeError, match="no readable checkpoint"):
        _fit(tmp_path)


def test_training_writes_weights_that_serve(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tiny-0.0.1.safetensors"
    recipe = replace(TINY, epochs=1)
    info = training.train(dataset, out, recipe=recipe, device="cpu")
    assert (info.name, info.version, info.input_size) == ("tiny", "0.0.1", 48)
    prediction = Predictor.load(out, "cpu").score([chest(np.random.default_rng(0), True)])
    assert 0.0 <= prediction[0][0] <= 1.0
    report = json.loads(out.with_suffix(".validation.json").read_text())
    assert report["films"] == 36
    assert report["training_films"] + report["validation"]["n"] == 36
    assert report["model"]["sha256"] == info.sha256


def test_the_command_says_what_is_wrong_with_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert training.main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "a-1.safetensors")]) == 1
    error = capsys.readouterr().err
    assert "no such folder" in error
    assert "Traceback" not in error


def test_both_classes_get_half_of_the_loss() -> None:
    labels = np.array([0, 1, 1, 1])
    negative, positive = class_weights(labels)
    assert negative * 1 == pytest.approx(positive * 3)
    assert balanced_weights(labels)[labels == 0].sum() == pytest.approx(0.5)


def test_augmentation_is_the_same_for_the_same_copy_and_keeps_the_shape() -> None:
    films, _ = _films(6, 3)
    first, again, other = (augmented(films, 1, copy, True) for copy in (0, 0, 1))
    assert first.shape == films.shape
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_calibration_recovers_a_known_map() -> None:
    rng = np.random.default_rng(4)
    labels = np.arange(8000) % 2
    # For two normal densities of equal width the true log-odds are linear: 4 x / 2.
    logits = np.where(labels == 1, 1.0, -1.0) * 2.0 / 2.0 + rng.standard_normal(8000)
    found = calibrate(logits, labels, logits[None])
    assert found.slope == pytest.approx(2.0, abs=0.15)
    assert found.intercept == pytest.approx(0.0, abs=0.1)
    assert found.threshold == pytest.approx(0.5, abs=0.03)
    assert found.indeterminate is not None
    inside = probabilities(logits, found.slope, found.intercept)
    share = ((inside > found.indeterminate[0]) & (inside < found.indeterminate[1])).mean()
    assert share == pytest.approx(0.02, abs=0.005)


def test_the_operating_point_errs_equally_on_both_sides() -> None:
    rng = np.random.default_rng(5)
    labels = (np.arange(4000) % 4 > 0).astype(int)
    logits = np.where(labels == 1, 2.0, -1.0) + rng.standard_normal(4000) * np.where(labels == 1, 2.0, 1.0)
    cut = equal_error_point(logits, labels)
    assert (logits[labels == 0] >= cut).mean() == pytest.approx((logits[labels == 1] < cut).mean(), abs=0.002)


def test_the_operating_point_of_separated_classes_is_between_them() -> None:
    assert equal_error_point(np.array([-3.0, -2.0, 4.0, 5.0]), np.array([0, 0, 1, 1])) == pytest.approx(1.0)
