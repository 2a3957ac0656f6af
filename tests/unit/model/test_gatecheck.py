from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model import gatecheck
from model.gatecheck import WRONG, Check, check, table
from model.hanging import HANGINGS
from model.measuring.metrics import wilson
from model.predict import Predictor
from model.prediction import Prediction
from model.training.counterexamples import KINDS
from model.training.films import DataError
from tests.unit.model.conftest import chest

UPRIGHT = chest(np.random.default_rng(5), False, 48, 48)


class _Knows:
    """Answers as a gate would that knows one film by heart, and errs as it is told."""

    def __init__(self, answer: Prediction, passes: Sequence[str] = (), mistakes: Sequence[str] = ()) -> None:
        self._answer, self._passes, self._mistakes = answer, passes, mistakes
        self.refusal = replace(answer, probability=None)

    def predict(self, films: Sequence[np.ndarray]) -> list[Prediction]:
        return [self._one(film) for film in films]

    def _one(self, film: np.ndarray) -> Prediction:
        if _same(film, UPRIGHT) or _same(film, UPRIGHT[:, ::-1]):
            return self._answer
        for number, (name, hang) in enumerate(WRONG.items()):
            if _same(film, hang(UPRIGHT)):
                if name in self._passes:
                    return self._answer
                flag = HANGINGS[(number + (name in self._mistakes)) % len(HANGINGS)].flag
                return replace(self._answer, probability=0.75, flags=("another", flag))
        return self.refusal


def _same(film: np.ndarray, other: np.ndarray) -> bool:
    return film.shape == other.shape and np.allclose(film - film.min(), other - other.min())


@pytest.fixture
def answer(predictor: Predictor) -> Prediction:
    return replace(predictor.predict([UPRIGHT])[0], probability=0.5)


@pytest.mark.parametrize(("number", "name"), list(enumerate(WRONG)))
def test_each_wrong_hanging_is_what_the_flag_of_the_same_place_puts_right(number: int, name: str) -> None:
    assert _same(HANGINGS[number].apply(WRONG[name](UPRIGHT)), UPRIGHT)


def test_what_is_put_right_passes_and_is_refused_are_told_apart(answer: Prediction) -> None:
    gate = _Knows(answer, passes=["upside down"], mistakes=["head to the left"])
    rows = Check(gate).frontal([UPRIGHT, UPRIGHT])  # type: ignore[arg-type]
    assert rows["as they are"] == rows["mirrored"]
    assert (rows["as they are"]["passed"], rows["as they are"]["refused"]) == (1.0, 0.0)
    assert rows["upside down"]["passed"] == 1.0
    assert rows["head to the left"]["put_right_wrongly"] == 1.0
    assert rows["head to the left"]["put_right"] == 0.0
    assert rows["head to the right"]["put_right"] == 1.0
    assert rows["head to the right"]["put_right_ci"] == wilson(2, 2)
    assert rows["black and white exchanged"]["difference"] == {"n": 2, "median": 0.25, "max": 0.25}
    assert "difference" not in rows["head to the left"]


def test_every_kind_of_counterexample_is_measured(answer: Prediction) -> None:
    done: list[str] = []
    rows = Check(_Knows(answer), on_row=done.append).others([UPRIGHT] * 2)  # type: ignore[arg-type]
    assert set(KINDS) < set(rows)
    assert list(rows) == done
    assert rows["photographs"]["n"] == 2
    assert rows["parts of photographs"]["refused"] == 1.0
    # A chest that hangs wrongly is a counterexample too, and ought to be put right.
    assert rows["upside down"]["put_right"] == 1.0


def test_a_report_is_written_and_said(
    dataset: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gatecheck, "KINDS", {"shuffled": KINDS["shuffled"]})
    monkeypatch.setattr(gatecheck, "PARTS", 2)
    options = ["--data", str(dataset), "--weights", str(weights), "--films", "2", "--device", "cpu"]
    folder, json_file = dataset / "train", tmp_path / "gate.json"
    options += ["--frontal", str(folder), "--others", str(folder / "NORMAL"), "--json", str(json_file)]
    assert gatecheck.main(options) == 0
    report = json.loads(json_file.read_text())
    assert report["model"]["version"] == "1"
    assert set(report["frontal"]) == {"validation", folder.name}
    assert report["others"]["NORMAL"]["n"] == 2
    said = capsys.readouterr().out
    assert said.strip() == table(report)
    assert "research use only" in said
    assert "head to the left" in said


def test_a_folder_without_images_is_an_error_of_one_line(
    dataset: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gatecheck.main(["--data", str(dataset), "--weights", str(weights), "--others", str(tmp_path)]) == 1
    assert "no JPEG or PNG images there" in capsys.readouterr().err
    with pytest.raises(DataError, match="no such folder"):
        check(tmp_path / "missing", weights, device="cpu")
