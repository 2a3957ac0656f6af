"""The weights that ship, on the real radiographs that pydicom-data carries and on what is none."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from sklearn.datasets import load_sample_images

from model.predict import Predictor
from model.preprocess import reduce

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


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_a_turned_chest_is_not_analysed(shipped: Predictor, turn: int) -> None:
    _assert_refused(shipped, np.rot90(_film("RG1_UNCR.dcm"), turn))


def test_an_inverted_chest_is_not_analysed(shipped: Predictor) -> None:
    _assert_refused(shipped, -_film("RG1_UNCR.dcm"))


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


def test_photographs_are_not_analysed(shipped: Predictor) -> None:
    for photograph in load_sample_images().images:
        _assert_refused(shipped, photograph.mean(axis=2))


def test_the_bit_depth_of_a_film_changes_its_score_by_less_than_a_hundredth(shipped: Predictor) -> None:
    film = _film("RG1_UNCR.dcm")
    scaled = (film - film.min()) / (film.max() - film.min())
    deep, flat = np.rint(scaled * 32767).astype(np.uint16), np.rint(scaled * 255).astype(np.uint8)
    scores, _ = shipped.score([film, deep, flat])
    assert np.ptp(scores) < 0.01


def _assert_refused(shipped: Predictor, film: np.ndarray) -> None:
    prediction = shipped.predict([film])[0]
    assert prediction.finding == "not_analysed"
    assert prediction.probability is None
    assert prediction.activation is None
    assert prediction.reason == "not a frontal chest radiograph"
    assert prediction.gate_distance > shipped.info.gate_threshold
