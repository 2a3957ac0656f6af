from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from model import card
from model.measuring.comparison import FIGURES
from model.weights import default_weights, read_info


def test_the_card_is_what_the_evidence_gives() -> None:
    assert card.CARD.read_text() == card.render()
    assert card.main(["--check"]) == 0


def test_the_evidence_is_of_the_weights_that_ship() -> None:
    assert read_info(default_weights()).sha256 in card.CARD.read_text()


def test_a_card_without_its_evidence_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UndefinedError):
        card.render(tmp_path)


def test_figures_are_said_with_their_intervals() -> None:
    report = {"auc": 0.99712, "auc_ci": [0.99444, 0.99888], "ece": None, "brier": 0.02}
    assert card.interval(report, "auc") == "0.997 (0.994 to 0.999)"
    assert card.interval(report, "ece") == "not known"
    assert card.interval(report, "brier") == "0.020"
    assert card.percent(0.1234) == "12.3 %"
    assert card.signed(-0.0104) == "-0.010"


def test_evidence_names_no_films(tmp_path: Path) -> None:
    report = {
        "auc": 0.5,
        "films": 3,
        "curve": {"x": [1]},
        "errors": [{"file": "a"}],
        "deep": [{"films": ["a"]}],
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    card.add("kept", tmp_path / "report.json", tmp_path)
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert kept == {"auc": 0.5, "films": 3, "deep": [{}]}


def test_an_experiment_with_another_population_stands_in_the_card_with_its_changes(
    tmp_path: Path,
) -> None:
    row = {
        name: value for figure in FIGURES for name, value in ((figure, 0.9), (f"{figure}_ci", [0.8, 0.95]))
    }
    change = {name: [-0.03, -0.02] if name.endswith("_ci") else -0.025 for name in row}
    population = {"n": 7, "patients": 5, "before": row, "after": row, "change": change}
    for file in card.EVIDENCE.glob("*.json"):
        shutil.copy(file, tmp_path)
    experiment = {"folds": 5, "replayed": 2, "first": population, "extra": population}
    experiment["weights"] = {"name": "pneumonia", "version": "0.1.0", "sha256": "of older ones"}
    experiment["recipe"] = {"epochs": 5, "settle": 2, "sizes": [160, 160, 160]}
    (tmp_path / "adults.json").write_text(json.dumps(experiment))
    said = card.render(tmp_path)
    assert "5 networks that start from pneumonia 0.1.0 and learn adults" in said
    assert "| adults, pneumonia 0.1.0 | 7 | 0.900 (0.800 to 0.950) |" in said
    assert "| adults, widened | 7 | 0.900 (0.800 to 0.950) |" in said
    assert "| children, change | | -0.025 (-0.030 to -0.020) |" in said
    assert "On the first population something was forgotten; on the other one no gain is shown" in said
