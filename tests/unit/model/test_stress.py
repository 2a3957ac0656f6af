from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model import stress
from model.measuring import metrics
from model.measuring.nuisances import PERTURBATIONS, PLAIN
from model.measuring.shortcuts import shortcut_scores, statistics, with_framing
from model.predict import Predictor, Scores
from model.training.films import Films
from model.training.holdout import hold_out
from model.training.recipe import Recipe

RECIPE = replace(Recipe(), film_side=64, folds=3)
FEW = (PERTURBATIONS[0], PERTURBATIONS[4], next(each for each in PERTURBATIONS if each.kind == "deprived"))


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stress, "PERTURBATIONS", FEW)


@pytest.fixture(scope="module")
def report(dataset: Path, weights: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stress, "PERTURBATIONS", FEW)
        return stress.stress(dataset, weights, RECIPE, device="cpu", resamples=60)


def test_the_report_has_the_documented_keys_and_is_plain_json(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report)) == report
    assert set(report) == {
        *{"model", "split", "n", "threshold", "rows", "nuisances", "shortcuts"},
        *{"activation_in_lungs", "frames", "hard_style"},
    }
    for row in report["rows"]:
        assert set(row) == {
            *{"name", "kind", "stands_for", "n", "auc", "auc_ci", "change", "change_ci", "flipped"},
            *{"sensitivity", "specificity", "refused"},
        }
    assert [row["name"] for row in report["rows"]] == ["plain", *(each.name for each in FEW)]
    assert set(report["activation_in_lungs"]) == {
        *{"mask", "n", "mass", "mass_ci", "area", "peak"},
        *{"mass_within_a_tenth", "area_within_a_tenth", "peak_within_a_tenth"},
        *{"mass_in_chest", "area_in_chest", "peak_in_chest"},
    }
    assert set(report["hard_style"]) == {
        *{"share", "normals", "pneumonias", "auc", "auc_ci", "style_auc", "style_auc_all"}
    }
    assert {row["name"] for row in report["shortcuts"]} == {
        *{"JPEG file size", "border ring", "corners", "framing", "global grey values"}
    }
    assert stress.summary(report).count("\n") > len(FEW)


def test_a_row_says_what_its_films_score_against_the_plain_ones(
    report: dict[str, Any], dataset: Path, weights: Path
) -> None:
    predictor, split = Predictor.load(weights, "cpu"), hold_out(dataset, RECIPE)
    cases = stress.cases_of(split, RECIPE.seed)
    labels = np.array([case.label for case in cases])
    for row, perturbation in zip(report["rows"], (PLAIN, *FEW), strict=True):
        given = predictor.score([perturbation.apply(case) for case in cases]).probability
        plain = predictor.score([case.film for case in cases]).probability
        assert row["auc"] == pytest.approx(metrics.auc(given, labels))
        assert row["change"] == pytest.approx(metrics.auc(given, labels) - metrics.auc(plain, labels))
        assert row["change_ci"][0] <= row["change"] <= row["change_ci"][1]
        assert row["flipped"] == pytest.approx(((given >= 0.5) != (plain >= 0.5)).mean())


def test_partners_are_of_the_other_class_and_held_out(dataset: Path) -> None:
    split = hold_out(dataset, RECIPE)
    held_out = split.films.at(split.validation)
    for case in stress.cases_of(split, 1):
        (found,) = np.flatnonzero((held_out.planes == case.partner).all(axis=(1, 2)))
        assert held_out.labels[found] != case.label


BOXES = np.random.default_rng(3).uniform((0.1, 0.1, 0.8, 0.8), (0.2, 0.2, 0.9, 0.9), (36, 4))


class _Constant:
    """Scores every film alike."""

    def __init__(self, predictor: Predictor) -> None:
        self.info, self.locator = predictor.info, predictor.locator

    def score(self, films: list[Any]) -> Scores:
        same = np.full(len(films), 0.7)
        return Scores(same, same, same, np.ones((len(films), 4, 4), np.float32))


def test_a_constant_predictor_scores_chance_and_flips_nothing(
    dataset: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "load", lambda *_: _Constant(predictor))
    found = stress.stress(dataset, None, RECIPE, resamples=20)
    for row in found["rows"]:
        assert (row["auc"], row["change"], row["flipped"]) == (0.5, 0.0, 0.0)
        assert row["change_ci"] == [0.0, 0.0]
        assert row["refused"] == 0.0
    assert found["nuisances"]["held"]
    inside = found["activation_in_lungs"]
    assert inside["n"] == sum(film.label for film in _held_out(dataset))
    assert inside["mass"] == pytest.approx(inside["area"], abs=0.02)  # an even map has no preference
    assert found["hard_style"]["auc"] == 0.5


def _held_out(dataset: Path) -> list[Any]:
    split = hold_out(dataset, RECIPE)
    return [split.listed[index] for index in split.validation]


def test_a_nuisance_that_costs_more_than_the_limit_is_named(
    dataset: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Brightness(_Constant):
        def score(self, films: list[Any]) -> Scores:
            mean = np.array([film.mean() / 255.0 for film in films])
            return super().score(films)._replace(probability=mean)

    def inverted(case: Any) -> Any:
        return 255 - case.film

    monkeypatch.setattr(Predictor, "load", lambda *_: Brightness(predictor))
    monkeypatch.setattr(stress, "PERTURBATIONS", (*FEW, FEW[0]._replace(name="inverted", apply=inverted)))
    found = stress.stress(dataset, None, RECIPE, resamples=20)
    assert found["nuisances"]["worst"] == "inverted"
    assert not found["nuisances"]["held"]
    assert "!" in next(line for line in stress.summary(found).splitlines() if "inverted" in line)


def test_a_shortcut_is_learnt_on_the_training_side_only(dataset: Path) -> None:
    split = hold_out(dataset, RECIPE)
    scores = shortcut_scores(split, BOXES)
    swapped = split.films.labels.copy()
    swapped[split.validation] = 1 - swapped[split.validation]
    again = shortcut_scores(
        replace(split, films=Films(split.films.planes, swapped, split.films.bacterial)), BOXES
    )
    for name, each in scores.items():
        assert each.shape == split.validation.shape
        np.testing.assert_array_equal(each, again[name])


def test_the_ring_and_the_corners_are_read_without_the_middle(dataset: Path) -> None:
    split = hold_out(dataset, RECIPE)
    planes = split.films.planes.copy()
    planes[:, 16:48, 16:48] = np.random.default_rng(0).integers(0, 256, (len(planes), 32, 32))
    before, after = (
        shortcut_scores(split, BOXES),
        shortcut_scores(
            replace(split, films=Films(planes, split.films.labels, split.films.bacterial)), BOXES
        ),
    )
    for name in ("border ring", "corners", "framing", "JPEG file size"):
        np.testing.assert_array_equal(before[name], after[name])
    assert (before["global grey values"] != after["global grey values"]).any()


def test_what_framing_adds_to_a_network_is_seen() -> None:
    rng = np.random.default_rng(2)
    labels = np.arange(400) % 2
    boxes = np.tile((0.15, 0.15, 0.85, 0.85), (400, 1)) + 0.01 * rng.standard_normal((400, 4))
    logits = labels + rng.standard_normal(400)
    said = metrics.auc(logits, labels)
    assert metrics.auc(with_framing(logits, boxes, labels), labels) == pytest.approx(said, abs=0.02)
    boxes[:, 1] -= 0.03 * labels
    assert metrics.auc(with_framing(logits, boxes, labels), labels) > said + 0.1


def test_the_style_of_a_film_does_not_know_where_things_lie() -> None:
    film = np.random.default_rng(1).integers(0, 256, (40, 40)).astype(np.uint8)
    np.testing.assert_allclose(statistics(film), statistics(film[::-1, ::-1]))


def test_the_command_writes_report_and_sheet_and_says_faults_in_one_line(
    dataset: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written, drawn = tmp_path / "stress.json", tmp_path / "sheet.png"
    command = ["--data", str(dataset), "--weights", str(weights), "--folds", "3", "--device", "cpu"]
    assert stress.main([*command, "--json", str(written), "--sheet", str(drawn)]) == 0
    assert json.loads(written.read_text())["split"] == {"folds": 3, "fold": 0, "seed": 1}
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert "not for diagnosis" in capsys.readouterr().out
    assert stress.main(["--data", str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
