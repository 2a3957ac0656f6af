"""The faster engine gives what torch gives, or is not used."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from model import engine
from model.engine import TOLERANCE, EngineError, onnx_stage_maps
from model.network import Network
from model.predict import Predictor
from tests.unit.model.conftest import chest

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def _threads() -> object:
    """Give torch its threads back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _films(count: int) -> list[np.ndarray]:
    return [chest(RNG, bool(index % 2), 70 + index, 90 - index) for index in range(count)]


@pytest.mark.parametrize("count", [1, 5, 33])
def test_onnx_runtime_scores_as_torch_does(weights: Path, count: int) -> None:
    films = _films(count)
    slow, fast = Predictor.load(weights, "cpu"), Predictor.load(weights, "cpu", fastest=True)
    assert (slow.engine, fast.engine, fast.engine_fault) == ("torch", "ONNX Runtime", "")
    for expected, found in zip(slow.score(films), fast.score(films), strict=True):
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_shipped_weights_run_on_it() -> None:
    predictor = Predictor.load(device="cpu", fastest=True)
    assert predictor.engine == "ONNX Runtime", predictor.engine_fault


def test_an_engine_that_computes_something_else_is_not_used(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded = engine._folded

    def wrong(*layers: object) -> object:
        weight, bias = folded(*layers)  # type: ignore[arg-type]
        return weight, bias + 0.01

    monkeypatch.setattr(engine, "_folded", wrong)
    predictor = Predictor.load(weights, "cpu", fastest=True)
    assert predictor.engine == "torch"
    assert "differs from torch by" in predictor.engine_fault
    films = _films(1)
    torch_alone = Predictor.load(weights, "cpu")
    np.testing.assert_array_equal(predictor.score(films).bacterial, torch_alone.score(films).bacterial)


def test_a_machine_that_cannot_run_it_computes_with_torch(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("illegal instruction set")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fails)
    with pytest.raises(EngineError, match="illegal instruction set"):
        onnx_stage_maps(Network().eval(), 64)
    predictor = Predictor.load(weights, "cpu", fastest=True)
    assert predictor.engine == "torch"
    assert predictor.predict(_films(1))
