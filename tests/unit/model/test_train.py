from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import train as training
from model.calibrate import balanced_weights, calibrate, calibrate_pattern, operating_point, probabilities
from model.card import change, interval
from model.predict import Predictor
from model.training.augment import Borrow, augmented
from model.training.films import DataError, Films
from model.training.fit import ResumeError, class_weights, fit
from model.training.holdout import hold_out
from model.training.recipe import Recipe
from tests.unit.model.conftest import chest

TINY = Recipe(sizes=(32, 48, 48), film_side=64, epochs=2, settle=1, batch=8, folds=3, seed=5)


def _films(count: int, seed: int) -> Films:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    films = np.stack([np.clip(chest(rng, bool(label), 64, 64) * 255, 0, 255) for label in labels])
    return Films(films.astype(np.uint8), labels, np.where(labels == 1, np.arange(count) // 2 % 2, -1))


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
    assert len(rows[0]) == len(rows[1]) == 1 + TINY.epochs + TINY.settle
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
    assert 0.0 <= prediction.probability[0] <= 1.0
    report = json.loads(out.with_suffix(".validation.json").read_text())
    assert report["films"] == 36
    assert report["training_films"] + report["validation"]["n"] == 36
    assert report["model"]["sha256"] == info.sha256
    assert info.population_views == ("AP",)
    card = out.with_suffix(".card.md").read_text()
    assert card.startswith("# Model card: tiny 0.0.1")
    assert "from scratch" in card
    assert "Before and after" not in card


def _of_a_site(folder: Path, patients: int = 9) -> Path:
    """Films of another population, with the names of a site's own export."""
    rng = np.random.default_rng(8)
    for label, name in enumerate(("NORMAL", "PNEUMONIA")):
        (folder / name).mkdir(parents=True)
        for number in range(2 * patients):
            grey = 255 - np.clip(chest(rng, bool(label), 72, 80) * 255, 0, 255).astype(np.uint8)
            stem = f"{'p' if label else 'n'}{number // 2}_{number % 2}"
            Image.fromarray(grey).save(folder / name / f"{stem}.png")
    return folder


def test_a_model_is_widened_by_a_site_s_own_films_and_compared_on_both_populations(
    dataset: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra, out = _of_a_site(tmp_path / "site"), tmp_path / "wide-0.2.safetensors"
    options = ["--data", dataset, "--extra", extra, "--init", weights, "--out", out, "--device", "cpu"]
    options += ["--sizes", 32, 48, 48, "--epochs", 1, "--folds", 3, "--batch", 8]
    options += ["--set", "settle=1", "--set", "film_side=64"]
    command = [str(option) for option in options]
    with pytest.raises(SystemExit):
        training.main(command)
    assert "--trained-on" in capsys.readouterr().err
    said_of_them = ["--trained-on", "both sites", "--ages", "1", "90", "--views", "AP", "PA"]
    assert training.main([*command, *said_of_them, "--scanners", "Fuji FDR"]) == 0
    info, start = Predictor.load(out, "cpu").info, Predictor.load(weights, "cpu")
    assert (info.trained_on, info.population_age_years) == ("both sites", (1.0, 90.0))
    assert (info.population_views, info.population_sexes) == (("AP", "PA"), ())
    report = json.loads(out.with_suffix(".validation.json").read_text())
    assert report["recipe"]["init"] == start.info.sha256
    assert report["recipe"]["rate"] == training.GENTLE_RATE
    rows = report["populations"]
    assert {name: set(found) for name, found in rows.items()} == {
        "first": {"before", "after", "change"},
        "extra": {"before", "after", "change"},
    }
    for found in rows.values():
        auc = [found[when]["auc"] for when in ("before", "after")]
        assert found["change"]["auc"] == pytest.approx(auc[1] - auc[0])
    assert rows["first"]["after"]["n"] + rows["extra"]["after"]["n"] == report["validation"]["n"]
    assert rows["extra"]["before"]["threshold"] == start.info.threshold
    said = capsys.readouterr().out
    assert "extra  before" in said
    assert f"change  auc {rows['extra']['change']['auc']:+.3f}" in said
    card = out.with_suffix(".card.md").read_text()
    assert f"SHA-256 `{info.sha256}`" in card
    assert "ages 1 to 90 years; sexes: not recorded; views: AP, PA; scanners: Fuji FDR" in card
    kept = rows["first"]["before"]
    assert f"| first | before | {kept['n']} | {interval(kept, 'auc')}" in card
    assert f"| extra | change | | {change(rows['extra']['change'], 'auc')} |" in card
    assert "On the first population" in card


def test_equal_names_of_two_sites_are_two_patients_and_both_sites_are_on_both_sides(
    dataset: Path, tmp_path: Path
) -> None:
    extra = _of_a_site(tmp_path / "site")
    held = hold_out(dataset, TINY, extra)
    training_groups, validation_groups = (
        set(held.groups[side].tolist()) for side in (held.training, held.validation)
    )
    assert not training_groups & validation_groups
    for side in (held.training, held.validation):
        assert set(held.extra[side].tolist()) == {True, False}
        assert set(held.films.labels[side][held.extra[side]].tolist()) == {0, 1}
    with pytest.raises(DataError, match="too few patients"):
        hold_out(dataset, TINY, _of_a_site(tmp_path / "small", patients=1))


def test_training_that_starts_from_weights_starts_from_them(weights: Path, tmp_path: Path) -> None:
    start = Predictor.load(weights, "cpu").network
    still = replace(TINY, rate=0.0, epochs=1, average=0.0)
    tmp_path.mkdir(exist_ok=True)
    kept = fit(
        _films(16, 1), _films(8, 2), still, checkpoint=tmp_path / "a.pt", log=tmp_path / "a.csv",
        measure=training.validation_metrics, device=torch.device("cpu"), start=start,
    )  # fmt: skip
    torch.testing.assert_close(kept.head.weight, start.head.weight)
    torch.testing.assert_close(kept.stem[0].weight, start.stem[0].weight)


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
    films = _films(6, 3).planes
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
    found = calibrate(logits, labels)
    assert found.slope == pytest.approx(2.0, abs=0.15)
    assert found.intercept == pytest.approx(0.0, abs=0.1)
    assert (
        probabilities(logits, found.slope, found.intercept)[labels == 1] >= found.threshold
    ).mean() >= 0.97
    assert found.indeterminate is not None
    inside = probabilities(logits, found.slope, found.intercept)
    share = ((inside > found.indeterminate[0]) & (inside < found.indeterminate[1])).mean()
    assert share == pytest.approx(0.02, abs=0.005)
    assert found.indeterminate[0] < found.threshold < found.indeterminate[1]


def test_the_operating_point_is_the_highest_that_keeps_the_sensitivity() -> None:
    rng = np.random.default_rng(5)
    pneumonias = np.concatenate([rng.uniform(0.1, 0.6, 40), rng.uniform(0.6, 1.0, 960)])
    threshold = operating_point(pneumonias)
    assert (pneumonias >= threshold).mean() >= 0.97
    assert (pneumonias >= threshold + 0.01).mean() < 0.97
    assert threshold == round(threshold, 2)
    assert operating_point(np.ones(5)) == 0.99
    assert operating_point(np.zeros(5)) == 0.01


def test_a_setting_of_the_recipe_is_given_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert training._setting("surround=0") == ("surround", 0.0)
    assert training._setting("patience=3") == ("patience", 3)
    for wrong in ("surroundings=1", "sizes=3", "rate=fast"):
        with pytest.raises(SystemExit):
            training.main(["--data", ".", "--out", "a-1.safetensors", "--set", wrong])
        assert wrong in capsys.readouterr().err


def _borrowing(films: Films, **chances: float) -> np.ndarray:
    torch.manual_seed(1)
    nothing = {"histogram": 0.0, "spectrum": 0.0, "surround": 0.0}
    return Borrow(films.planes, **nothing | chances)(0)[0].numpy() * 255.0


def _two(first: np.ndarray, second: np.ndarray) -> Films:
    """Two films of which the first borrows; fifteen copies of the second lend."""
    return Films(np.stack([first, *[second] * 15]), np.arange(16) % 2, np.full(16, -1))


def test_a_film_that_borrows_nothing_stays_as_it_is() -> None:
    films = _films(4, 3)
    np.testing.assert_allclose(_borrowing(films), films.planes[0], atol=1e-3)


def test_borrowed_surroundings_leave_the_middle_alone() -> None:
    first, second = _films(2, 3).planes
    mixed = _borrowing(_two(first, second), surround=1.0)
    np.testing.assert_allclose(mixed[24:40, 24:40], first[24:40, 24:40], atol=1e-3)
    np.testing.assert_allclose(mixed[::63, ::63], second[::63, ::63], atol=1e-3)


def test_a_borrowed_histogram_moves_the_grey_values_towards_the_partner() -> None:
    film = np.tile(np.linspace(0, 120, 64), (64, 1)).astype(np.uint8)
    changed = _borrowing(_two(film, np.full((64, 64), 200, np.uint8)), histogram=1.0)
    assert film.mean() + 10 < changed.mean() < 200
    assert (np.diff(changed[0]) >= -1e-3).all()


def test_a_borrowed_spectrum_takes_over_sharpness_and_keeps_the_layout() -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    film = np.tile(np.linspace(0, 255, 64), (64, 1)).astype(np.uint8)
    changed = _borrowing(_two(film, noisy), spectrum=1.0)
    assert np.abs(np.diff(changed, axis=1)).mean() > np.abs(np.diff(film.astype(float), axis=1)).mean()
    assert changed[:, 8:24].mean() < changed[:, 40:56].mean()


def test_a_pattern_is_named_only_when_nine_of_ten_names_are_right() -> None:
    rng = np.random.default_rng(6)
    bacterial = np.where(np.arange(6000) % 3 > 0, (np.arange(6000) % 2), -1)
    logits = np.where(bacterial == 1, 1.0, -1.0) + rng.standard_normal(6000)
    found = calibrate_pattern(logits, bacterial)
    probability = probabilities(logits, found.slope, found.intercept)
    named = (bacterial >= 0) & (np.maximum(probability, 1 - probability) >= found.confidence)
    assert 0.3 < named[bacterial >= 0].mean() < 1.0
    assert ((probability >= 0.5) == (bacterial == 1))[named].mean() >= 0.89
    assert calibrate_pattern(rng.standard_normal(6000), bacterial).confidence == 1.0
    assert calibrate_pattern(logits, np.full(6000, -1)).confidence == 1.0


def test_the_last_epochs_settle_on_films_as_they_are_served() -> None:
    recipe = Recipe(sizes=(32, 48, 64), epochs=6, settle=2, settle_augmentation=0.25)
    assert [recipe.size(epoch) for epoch in range(8)] == [32, 32, 48, 48, 48, 48, 64, 64]
    assert [recipe.augmented(epoch) for epoch in (0, 5, 6, 7)] == [1.0, 1.0, 0.25, 0.25]
    rates = [recipe.learning_rate(at / 10.0) for at in range(80)]
    assert max(rates) == pytest.approx(recipe.rate, rel=0.01)
    assert rates[0] < rates[2]
    assert rates[59] < 0.02 * recipe.rate
    assert rates[60] == pytest.approx(recipe.settle_rate * recipe.rate)
    assert rates[79] < 0.03 * recipe.settle_rate * recipe.rate
