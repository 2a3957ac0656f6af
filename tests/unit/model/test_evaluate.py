from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from model.evaluate import evaluate, main, summary
from model.measuring.cases import Case, Left, Seen, cases_in_folders
from model.predict import BATCH, Predictor, Scores
from model.training.films import DataError
from tests.unit.model.conftest import chest

PROMISED = {
    "n", "auc", "auc_ci", "accuracy", "sensitivity", "specificity", "precision", "recall", "f1", "threshold",
    "confusion", "ece", "brier", "model",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five normals and six pneumonias, three of each kind, two of them of one patient."""
    root = tmp_path_factory.mktemp("evaluated")
    rng = np.random.default_rng(1)
    series = ["IM", "IM", "IM", "NORMAL2-IM", "NORMAL2-IM"]
    kinds = ["bacteria"] * 3 + ["virus"] * 3
    names = {
        "NORMAL": [f"{each}-000{number}-0001" for number, each in enumerate(series)],
        "PNEUMONIA": [f"person{number // 2}_{kind}_{number}" for number, kind in enumerate(kinds)],
    }
    for label, (name, stems) in enumerate(names.items()):
        (root / "test" / name).mkdir(parents=True)
        for stem in stems:
            grey = np.clip(chest(rng, bool(label)) * 255, 0, 255).astype(np.uint8)
            Image.fromarray(grey).save(root / "test" / name / f"{stem}.jpeg")
    return root


@pytest.fixture
def cases(folder: Path) -> list[Case]:
    return cases_in_folders(folder, "test")


@pytest.fixture
def report(cases: list[Case], predictor: Predictor) -> dict[str, Any]:
    return evaluate(cases, predictor, resamples=20)


def refuse(monkeypatch: pytest.MonkeyPatch, distances: Sequence[float]) -> None:
    """Let the gate find these distances, whatever the films show."""
    monkeypatch.setattr(
        "model.gate.Gate.distances", lambda self, features: np.array(distances)[: len(features)]
    )


def test_the_command_writes_json_pictures_and_a_page(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = {
        "--json": tmp_path / "out" / "a.json",
        "--report": tmp_path / "a.html",
        "--plots": tmp_path / "p",
    }
    options = [str(each) for pair in written.items() for each in pair]
    assert main(["--data", str(folder), "--weights", str(weights), "--device", "cpu", *options]) == 0
    report = json.loads(written["--json"].read_text())
    assert report.keys() >= PROMISED
    assert report["model"].keys() == {"name", "version", "sha256"}
    assert report["confusion"].keys() == {"tn", "fp", "fn", "tp"}
    names = sorted(path.stem for path in written["--plots"].iterdir())
    assert names == ["calibration", "confusion", "histogram", "pr", "roc", "subgroups"]
    assert "Research use only, not for diagnosis" in written["--report"].read_text(encoding="utf-8")
    said = capsys.readouterr()
    assert "auc" in said.out
    assert not said.err


def test_the_confusion_matrix_adds_up(report: dict[str, Any]) -> None:
    counts = report["confusion"]
    assert sum(counts.values()) == report["n"] == 11
    assert counts["tn"] + counts["fp"] == 5
    assert report["accuracy"] == pytest.approx((counts["tn"] + counts["tp"]) / 11)
    assert report["sensitivity"] == report["recall"] == pytest.approx(counts["tp"] / 6)
    assert report["specificity"] == pytest.approx(counts["tn"] / 5)
    assert report["auc_ci"][0] <= report["auc"] <= report["auc_ci"][1]


def test_patients_are_drawn_where_names_tell_them(report: dict[str, Any]) -> None:
    assert (report["resampled"], report["patients"]) == ("patients", 8)


def test_films_are_drawn_where_nothing_tells_patients(cases: list[Case], predictor: Predictor) -> None:
    nameless = [replace(case, path=Path(__file__)) for case in cases]
    film = chest(np.random.default_rng(0), False)
    report = evaluate(nameless, predictor, lambda path: Seen(film), resamples=5)
    assert (report["resampled"], report["patients"]) == ("films", None)


def test_subgroups_come_from_the_names_of_the_public_set(report: dict[str, Any]) -> None:
    groups = {(group["attribute"], group["value"]): group for group in report["subgroups"]}
    assert {name: group["n"] for name, group in groups.items()} == {
        ("series", "IM"): 3,
        ("series", "NORMAL2-IM"): 2,
        ("kind", "bacterial"): 3,
        ("kind", "viral"): 3,
    }
    assert groups["kind", "viral"]["specificity"] is None
    assert groups["series", "IM"]["auc"] is None
    assert f"kind: viral, 3 images: auc –, sensitivity {groups['kind', 'viral']['sensitivity']:.3f} (" in (
        summary(report)
    )
    hits = sum(groups["kind", kind]["sensitivity"] * 3 for kind in ("bacterial", "viral"))
    assert hits == pytest.approx(report["confusion"]["tp"])


def test_what_would_be_reported_is_what_the_predictor_reports(cases: list[Case], weights: Path) -> None:
    predictor = Predictor.load(weights, "cpu")
    films = [np.asarray(Image.open(case.path)) for case in cases]
    low, middle, high = np.quantile(predictor.score(films).probability, (0.2, 0.3, 0.5)).tolist()
    predictor.info = replace(
        predictor.info, threshold=middle, indeterminate=(low, high), pattern_confidence=0.5
    )
    said, report = predictor.predict(films), evaluate(cases, predictor, resamples=5)
    assert len({each.finding for each in said}) == 3
    for name, label in (("NORMAL", 0), ("PNEUMONIA", 1)):
        findings = [each.finding for each, case in zip(said, cases, strict=True) if case.label == label]
        assert report["as_reported"][name] == {
            finding: findings.count(finding)
            for finding in ("present", "absent", "indeterminate", "not_analysed")
        }
    named = [each.pattern for each, case in zip(said, cases, strict=True) if case.label == 1 and each.pattern]
    assert named
    assert report["pattern"]["named"]["n"] == len(named)
    assert sum(kind["named_viral"] for kind in report["pattern"]["kinds"]) == named.count("viral")


def test_the_pattern_is_measured_among_pneumonias_of_known_kind(
    cases: list[Case], predictor: Predictor, report: dict[str, Any]
) -> None:
    pattern = report["pattern"]
    assert pattern["n"] == 6
    assert [kind["n"] for kind in pattern["kinds"]] == [3, 3]
    bacterial = predictor.score([np.asarray(Image.open(case.path)) for case in cases[5:]]).bacterial
    pairs = [(high > low) for high in bacterial[:3] for low in bacterial[3:]]
    assert pattern["auc"] == pytest.approx(np.mean(pairs))
    assert pattern["auc_ci"][0] <= pattern["auc"] <= pattern["auc_ci"][1]
    unknown = [replace(case, bacterial=-1) for case in cases]
    assert evaluate(unknown, predictor, resamples=5)["pattern"] is None
    of_one_kind = [replace(case, bacterial=min(case.bacterial, 0)) for case in cases]
    assert evaluate(of_one_kind, predictor, resamples=5)["pattern"]["auc"] is None


def test_images_that_the_gate_refuses_are_scored_all_the_same(
    cases: list[Case], predictor: Predictor, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, [99.0] * 11)
    refused = evaluate(cases, predictor, resamples=20)
    assert refused["gate"]["refused"] == 11
    assert refused["gate"]["passed"]["n"] == 0
    assert refused["gate"]["passed"]["auc"] is None
    for name in ("n", "auc", "confusion"):
        assert refused[name] == report[name]


def test_the_gates_figures_leave_out_what_it_refuses(
    cases: list[Case], predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, [99.0, 99.0, *[0.0] * 8, 99.0])
    passed = evaluate(cases, predictor, resamples=5)["gate"]["passed"]
    alone = evaluate(cases[2:10], predictor, resamples=5)
    assert (passed["n"], passed["positives"]) == (8, 5)
    for name in ("auc", "sensitivity", "specificity"):
        assert passed[name] == alone[name]


def test_wrong_calls_are_listed_the_most_wrong_first(report: dict[str, Any]) -> None:
    counts, errors = report["confusion"], report["errors"]
    assert len(errors) == counts["fp"] + counts["fn"] > 0
    distance = [abs(error["probability"] - (error["label"] == "PNEUMONIA")) for error in errors]
    assert distance == sorted(distance, reverse=True)
    assert errors[0]["file"].startswith(f"test/{errors[0]['label']}/")


def test_no_more_than_a_batch_of_films_is_ever_held(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, most = 0, 0

    def read(path: Path) -> Seen:
        nonlocal held, most
        held += 1
        most = max(most, held)
        return Seen(np.eye(8))

    def score(films: Sequence[npt.NDArray[Any]]) -> Scores:
        nonlocal held
        held = 0
        numbers = np.linspace(0.1, 0.9, len(films))
        return Scores(numbers, numbers, numbers, np.zeros((len(films), 2, 2), np.float32))

    monkeypatch.setattr(predictor, "score", score)
    cases = [Case(str(number), Path(__file__), number % 2) for number in range(3 * BATCH + 1)]
    assert evaluate(cases, predictor, read, resamples=2)["n"] == 3 * BATCH + 1
    assert most == BATCH


def test_a_film_that_is_not_analysed_is_counted_with_its_reason(
    cases: list[Case], predictor: Predictor
) -> None:
    def read(path: Path) -> Seen | Left:
        return Left("a knee") if path == cases[3].path else Seen(np.asarray(Image.open(path)))

    report = evaluate(cases, predictor, read, resamples=5)
    assert report["n"] == 10
    assert report["not_analysed"] == {
        "n": 1,
        "unreadable": 0,
        "films": [{"file": cases[3].file, "label": "NORMAL", "reason": "a knee", "unreadable": False}],
    }


def test_ages_are_counted_against_the_population_of_the_weights(
    cases: list[Case], predictor: Predictor
) -> None:
    ages = [None, 0.9, 1.0, 5.99, 6.0, 70.0, *[3.0] * 5]
    aged = [replace(case, age_years=age) for case, age in zip(cases, ages, strict=True)]
    assert evaluate(aged, predictor, resamples=5)["population"] == {
        "age_years": [1.0, 5.0],
        "inside": 7,
        "outside": 3,
        "unknown": 1,
    }


def test_a_set_of_which_one_class_is_left_is_refused(cases: list[Case], predictor: Predictor) -> None:
    with pytest.raises(DataError, match="films labelled NORMAL could be scored; the first"):
        evaluate(cases, predictor, lambda path: Left("sick"))


def test_one_broken_film_costs_no_figure_of_the_others(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{case.file},{case.label}" for case in cases_in_folders(folder, "test")]
    (tmp_path / "broken.png").write_bytes(b"no")
    rows += [f"{tmp_path / 'broken.png'},1", "gone.jpeg,0", "a.dcm,0"]
    table, out = tmp_path / "labels.csv", tmp_path / "a.json"
    table.write_text("\n".join(["file,label", *rows]))
    arguments = ["--data", str(folder), "--labels", str(table), "--weights", str(weights), "--device", "cpu"]
    assert main([*arguments, "--json", str(out)]) == 1
    report = json.loads(out.read_text())
    assert (report["n"], report["not_analysed"]["unreadable"]) == (11, 3)
    assert [film["reason"] for film in report["not_analysed"]["films"]] == [
        "not a JPEG or PNG image",
        "no such file",
        "no such file",
    ]
    said = capsys.readouterr()
    assert "not analysed        3 images" in said.out
    assert said.err.startswith("hilum evaluate: 3 of 14 films could not be read")
    assert len(said.err.strip().splitlines()) == 1


@pytest.mark.parametrize("content", ["none", "empty", "table"])
def test_what_cannot_be_evaluated_is_refused_in_one_line(
    content: str, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(tmp_path / content), "--weights", str(weights)]
    if content != "none":
        (tmp_path / content / "test" / "NORMAL").mkdir(parents=True)
    if content == "table":
        options += ["--labels", str(tmp_path / "none.csv")]
    assert main(options) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_place_that_cannot_be_written_is_known_before_the_films_are_read(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    def read(path: Path) -> Left:
        pytest.fail("a film was read")

    options = [
        "--data",
        str(folder),
        "--weights",
        str(weights),
        "--report",
        str(tmp_path / "file" / "a.html"),
    ]
    assert main(options, read) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
