"""The weights that ship, on the real radiographs that pydicom-data carries and on what is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydicom import dcmread
from pydicom.data import get_testdata_file
from sklearn.datasets import load_sample_images

from model.gate import CELLS, PASSED, STAGE, Gate, fit_gate
from model.network import WIDTHS
from model.predict import Predictor
from model.preprocess import reduce
from model.training.counterexamples import KINDS, counterexample

RNG = np.random.default_rng(13)


@pytest.fixture(scope="module")
def shipped() -> Predictor:
    return Predictor.load(device="cpu")


def _film(name: str) -> np.ndarray:
    dataset = dcmread(str(get_testdata_file(name)))
    grey = dataset.pixel_array.astype(np.float32)
    return reduce(grey.max() - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey)


@pytest.mark.parametrize("name", ["RG1_UNCR.dcm", "RG1_J2KR.dcm", "RG1_J2KI.dcm"])
def test_an_adult_frontal_chest_is_analysed(shipped: Predictor, name: str) -> None:
    prediction = shipped.predict([_film(name)])[0]
    assert prediction.finding != "not_analysed"
    assert prediction.probability is not None
    assert prediction.activation is not None
    assert prediction.activation.min() >= 0.0
    assert prediction.activation.max() <= 1.0


@pytest.mark.parametrize("name", ["RG3_UNCR.dcm", "RG3_J2KR.dcm", "RG3_J2KI.dcm"])
def test_a_lower_leg_is_not_analysed(shipped: Predictor, name: str) -> None:
    _assert_refused(shipped, _film(name))


@pytest.mark.parametrize(
    ("hang", "flag"),
    [
        (lambda film: np.rot90(film, 1), "head to the left"),
        (lambda film: np.rot90(film, 3), "head to the right"),
        (lambda film: np.rot90(film, 2), "upside down"),
        (lambda film: -film, "black and white"),
    ],
    ids=["left", "right", "upside down", "inverted"],
)
def test_a_chest_that_hangs_wrongly_is_put_right(
    shipped: Predictor, hang: Callable[[np.ndarray], np.ndarray], flag: str
) -> None:
    film = _film("RG1_UNCR.dcm")
    upright, wrong = shipped.predict([film, hang(film)])
    assert wrong.probability == pytest.approx(upright.probability, abs=0.005)
    assert [flag in each for each in wrong.flags] == [True]


@pytest.mark.parametrize(
    "film",
    [
        np.zeros((300, 200)),
        np.full((64, 64), 4095, np.uint16),
        RNG.random((400, 300)),
        RNG.integers(0, 4096, (300, 300)).astype(np.uint16),
        np.tile(np.linspace(0, 1, 200), (300, 1)),
        np.tile(np.linspace(0, 1, 300)[:, None], (1, 200)),
    ],
    ids=["black", "white", "noise", "12-bit noise", "gradient across", "gradient down"],
)
def test_what_shows_nothing_is_not_analysed(shipped: Predictor, film: np.ndarray) -> None:
    _assert_refused(shipped, film)


def test_photographs_and_parts_of_them_are_not_analysed(shipped: Predictor) -> None:
    for photograph in load_sample_images().images:
        grey = photograph.mean(axis=2)
        for part in (grey, grey[:300, :300], grey[127:, 340:], grey[100:300, 200:400]):
            _assert_refused(shipped, part)


@pytest.mark.parametrize("kind", ["shuffled", "sheet", "slice", "limbs", "photograph", "drawn"])
def test_what_is_made_of_a_chest_and_is_none_is_not_analysed(shipped: Predictor, kind: str) -> None:
    rng = np.random.default_rng(17)
    for _ in range(3):
        _assert_refused(shipped, counterexample(kind, _square(_film("RG1_UNCR.dcm")), rng))


def test_a_lower_leg_is_a_chest_in_no_hanging(shipped: Predictor) -> None:
    leg = _film("RG3_UNCR.dcm")
    for film in (np.rot90(leg), leg[::-1], leg[:, ::-1], leg.max() - leg):
        _assert_refused(shipped, film)


def test_the_bit_depth_of_a_film_changes_its_score_by_less_than_a_hundredth(shipped: Predictor) -> None:
    film = _film("RG1_UNCR.dcm")
    scaled = (film - film.min()) / (film.max() - film.min())
    deep, flat = np.rint(scaled * 32767).astype(np.uint16), np.rint(scaled * 255).astype(np.uint8)
    assert np.ptp(shipped.score([film, deep, flat]).probability) < 0.01


def _assert_refused(shipped: Predictor, film: np.ndarray) -> None:
    prediction = shipped.predict([film])[0]
    assert prediction.finding == "not_analysed"
    assert prediction.probability is None
    assert prediction.activation is None
    assert prediction.reason == "not a frontal chest radiograph"
    assert prediction.gate_distance > shipped.info.gate_threshold


def _square(film: np.ndarray) -> np.ndarray:
    side = min(film.shape)
    return film[:side, :side]


def _rows(number: int, *shifts: float) -> np.ndarray:
    """Draw rows of weak noise, whose first channels are shifted, by each of `shifts` in turn."""
    rows = 0.5 * np.random.default_rng(number).standard_normal((200, WIDTHS[STAGE], CELLS**2))
    rows[:, :16] += np.resize(shifts, 200)[:, None, None]
    return np.asarray(4.0 * rows.reshape(200, -1) + 9.0, np.float32)


def test_a_fitted_gate_tells_chests_from_every_kind_and_survives_the_weights_file() -> None:
    # The first kind lies nearer to the middle of the chests than they do: only the head can tell it.
    others, kinds = np.concatenate([_rows(1, 0.0), _rows(2, -9.0)]), np.repeat([0, 1], 200)
    gate = fit_gate(_rows(0, 3.0, -3.0), others, _rows(3, 3.0, -3.0), seed=0, kinds=kinds)
    assert np.mean(gate.distances(_rows(3, 3.0, -3.0)) <= 1.0) >= PASSED - 2 / 200
    assert (gate.distances(_rows(4, 0.0)) > 1.0).mean() > 0.9
    assert (gate.distances(_rows(5, -9.0)) > 1.0).mean() > 0.9
    # Far from all of them, whatever the head says.
    assert (gate.distances(_rows(6, 30.0)) > 1.0).all()
    again = Gate.from_tensors(gate.tensors())
    np.testing.assert_array_equal(again.distances(_rows(4, 1.0)), gate.distances(_rows(4, 1.0)))


def test_the_same_seed_gives_the_same_gate() -> None:
    first = fit_gate(_rows(0, 0.0), _rows(1, 3.0), _rows(3, 0.0), seed=4)
    torch.rand(1)
    second = fit_gate(_rows(0, 0.0), _rows(1, 3.0), _rows(3, 0.0), seed=4)
    for name, tensor in first.tensors().items():
        np.testing.assert_array_equal(tensor, second.tensors()[name])


@pytest.mark.parametrize("kind", KINDS)
def test_a_counterexample_is_a_plane_and_leaves_its_film_alone(kind: str) -> None:
    film = np.random.default_rng(0).integers(0, 256, (96, 96), dtype=np.uint8)
    kept = film.copy()
    for seed in range(8):
        made, again = (counterexample(kind, film, np.random.default_rng(seed)) for _ in range(2))
        assert made.ndim == 2
        assert min(made.shape) > 1
        assert np.isfinite(made).all()
        np.testing.assert_array_equal(made, again)
    np.testing.assert_array_equal(film, kept)
