"""The faster engine gives what torch gives, or is not used."""

import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from model import cuda_engine, onnx_engine
from model.cuda_engine import FILMS, MOST, cuda_stage_maps
from model.engine import EngineError
from model.network import Network, exact
from model.onnx_engine import TOLERANCE, onnx_stage_maps
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
        np.testing.assert_allclose(found, expected, atol=TOLERANCE.log_odds)


def test_shipped_weights_run_on_it() -> None:
    predictor = Predictor.load(device="cpu", fastest=True)
    assert predictor.engine == "ONNX Runtime", predictor.engine_fault


def test_an_engine_that_computes_something_else_is_not_used(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuse = onnx_engine.fuse_conv_bn_eval

    def wrong(*layers: torch.nn.Module) -> torch.nn.Conv2d:
        convolution = fuse(*layers)
        convolution.bias.data += 0.01
        return convolution

    monkeypatch.setattr(onnx_engine, "fuse_conv_bn_eval", wrong)
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


Maps = list[torch.Tensor]


@pytest.fixture
def recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute anew where a GPU would replay its graph, which keeps nothing alive that it reads."""

    def captured(compute: Callable[[], Maps], _: torch.device) -> tuple[Callable[[], None], Maps]:
        stages, again = compute(), weakref.WeakMethod(compute)  # type: ignore[type-var]

        def replay() -> None:
            still = again()
            assert still is not None, "what the graph reads is gone"
            for kept, new in zip(stages, still(), strict=True):
                kept.copy_(new)

        return replay, stages

    monkeypatch.setattr(cuda_engine, "_captured", captured)


@pytest.mark.usefixtures("recomputed")
@pytest.mark.parametrize("count", [1, FILMS + 3])
def test_shipped_weights_score_in_half_precision_as_they_do(count: int) -> None:
    single, half = Predictor.load(device="cpu"), Predictor.load(device="cpu")
    half._stage_maps, name, fault = cuda_stage_maps(half.network, half.info.input_size, 1.5)
    assert (name, fault) == ("CUDA graph in half precision", "")
    films = _films(count)
    expected, found = single.score(films), half.score(films)
    for name in ("probability", "bacterial"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=MOST)
    np.testing.assert_allclose(found.gate_distance, expected.gate_distance, atol=1e-2)
    assert not np.array_equal(found.probability, expected.probability), "that was single precision"


@pytest.mark.usefixtures("recomputed")
def test_a_film_scores_the_same_whatever_it_comes_with() -> None:
    predictor = Predictor.load(device="cpu")
    predictor._stage_maps = cuda_engine.Graphed(predictor.network, predictor.info.input_size)
    films = _films(FILMS + 2)
    together = predictor.score(films).probability
    alone = np.concatenate([predictor.score([film]).probability for film in films])
    np.testing.assert_allclose(alone, together, atol=1e-4)


@pytest.mark.usefixtures("recomputed")
def test_weights_that_half_precision_changes_are_computed_in_single(weights: Path) -> None:
    predictor = Predictor.load(weights, "cpu")
    run, name, fault = cuda_stage_maps(predictor.network, predictor.info.input_size, 1e3)
    assert name == "CUDA graph"
    assert "half precision differs from torch by" in fault
    film = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        for expected, found in zip(predictor.network.stage_maps(film), run(film), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_gpu_that_captures_no_graph_computes_with_torch(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_engine, "_captured", fails)
    network = Predictor.load(weights, "cpu").network
    with pytest.raises(EngineError, match="CUDA graph cannot run these weights: CUDA error"):
        cuda_stage_maps(network, 64, 1.0)


def test_exact_arithmetic_is_cudnn_without_tf32() -> None:
    with exact():
        cudnn = torch.backends.cudnn
        assert (cudnn.enabled, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic) == (
            *(True, False, False, True),
        )
