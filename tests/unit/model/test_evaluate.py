from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import brier_score_loss, roc_auc_score

from model import metrics
from model.evaluate import evaluate, main
from tests.unit.model.conftest import chest

PROMISED = {
    "n", "auc", "auc_ci", "accuracy", "sensitivity", "specificity", "precision", "recall", "f1", "threshold",
    "confusion", "ece", "brier", "model",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluated")
    rng = np.random.default_rng(1)
    for label, name in enumerate(("NORMAL", "PNEUMONIA")):
        (root / "test" / name).mkdir(parents=True)
        for number in range(5 + label):
            grey = np.clip(chest(rng, bool(label)) * 255, 0, 255).astype(np.uint8)
            Image.fromarray(grey).save(root / "test" / name / f"{number}.jpeg")
    return root


def test_the_command_writes_json_and_pictures(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(folder), "--weights", str(weights), "--json", str(tmp_path / "a.json")]
    assert main([*options, "--plots", str(tmp_path / "plots"), "--device", "cpu"]) == 0
    report = json.loads((tmp_path / "a.json").read_text())
    assert report.keys() >= PROMISED
    assert report["model"].keys() == {"name", "version", "sha256"}
    assert report["confusion"].keys() == {"tn", "fp", "fn", "tp"}
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == ["calibration.png", "confusion.png", "pr.png", "roc.png"]
    assert "auc" in capsys.readouterr().out


def test_the_confusion_matrix_adds_up(folder: Path, weights: Path) -> None:
    report = evaluate(folder, weights, device="cpu", resamples=20)
    counts = report["confusion"]
    assert sum(counts.values()) == report["n"] == 11
    assert counts["tn"] + counts["fp"] == 5
    assert report["accuracy"] == pytest.approx((counts["tn"] + counts["tp"]) / 11)
    assert report["sensitivity"] == report["recall"] == pytest.approx(counts["tp"] / 6)
    assert report["specificity"] == pytest.approx(counts["tn"] / 5)
    assert report["auc_ci"][0] <= report["auc"] <= report["auc_ci"][1]


def test_images_that_the_gate_refuses_are_scored_all_the_same(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = evaluate(folder, weights, device="cpu", resamples=5)
    monkeypatch.setattr("model.gate.Gate.distances", lambda self, features: np.full(len(features), 99.0))
    refused = evaluate(folder, weights, device="cpu", resamples=5)
    assert refused["gate"]["refused"] == 11
    assert {name: refused[name] for name in ("n", "auc", "confusion")} == {
        name: plain[name] for name in ("n", "auc", "confusion")
    }


@pytest.mark.parametrize("content", ["none", "empty"])
def test_a_folder_without_images_is_refused_in_one_line(
    content: str, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content == "empty":
        (tmp_path / "empty" / "test" / "NORMAL").mkdir(parents=True)
    assert main(["--data", str(tmp_path / content), "--weights", str(weights)]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_auc_and_brier_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 300)
    # Rounded, so that there are ties.
    probability = np.round(np.clip(0.5 + (labels - 0.5) * 0.3 + rng.normal(0, 0.2, 300), 0, 1), 2)
    assert metrics.auc(probability, labels) == pytest.approx(roc_auc_score(labels, probability))
    assert metrics.brier(probability, labels) == pytest.approx(brier_score_loss(labels, probability))


def test_figures_of_a_small_case_are_those_done_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    probability = np.array([0.1, 0.3, 0.8, 0.6, 0.9])
    found = metrics.figures(probability, labels, 0.6)
    assert metrics.confusion(probability >= 0.6, labels) == {"tn": 2, "fp": 1, "fn": 0, "tp": 2}
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(0.8)
    assert found["balanced_accuracy"] == pytest.approx(5 / 6)
    # Bins of a tenth, one film each: |0.1 - 0| + |0.3 - 0| + |0.8 - 0| + |0.6 - 1| + |0.9 - 1|, over five.
    assert found["ece"] == pytest.approx(1.7 / 5)


def test_predictive_values_follow_bayes() -> None:
    rows = {row["prevalence"]: row for row in metrics.predictive_values(0.9, 0.8)}
    assert rows[0.5]["ppv"] == pytest.approx(0.45 / 0.55)
    assert rows[0.05]["npv"] == pytest.approx(0.76 / 0.765)
