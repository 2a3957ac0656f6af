from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from model.network import Network
from model.predict import Predictor, Scores, shown
from model.prediction import Finding, finding_for, pattern_for
from tests.unit.model.conftest import chest

RNG = np.random.default_rng(11)


def test_the_class_activation_map_is_exact() -> None:
    torch.manual_seed(0)
    network = Network().eval()
    with torch.no_grad():
        network.head.weight.normal_()
        network.head.bias.fill_(-0.7)
        films = torch.randn(3, 1, 80, 80)
        explained = network.explain(films)
        both = network(films)
        torch.testing.assert_close(explained.activation.sum(dim=(1, 2)) + network.head.bias[0], both[:, 0])
    torch.testing.assert_close(explained.logits, both[:, 0])
    torch.testing.assert_close(explained.pattern, both[:, 1])


def test_one_film_and_thirty_two_score_alike(predictor: Predictor) -> None:
    films = [chest(RNG, bool(index % 2), 60 + index, 90 - index) for index in range(33)]
    together, alone = predictor.predict(films), [predictor.predict([film])[0] for film in films]
    for many, one in zip(together, alone, strict=True):
        assert many.probability == pytest.approx(one.probability, abs=1e-4)
        assert many.gate_distance == pytest.approx(one.gate_distance, abs=1e-4)
        assert many.activation is not None
        assert one.activation is not None
        np.testing.assert_allclose(many.activation, one.activation, atol=1e-3)


def test_the_activation_lies_on_the_side_of_a_wide_film_that_causes_it(predictor: Predictor) -> None:
    # One disturbance in the lower left of a film twice as wide as high moves the map there.
    quiet = np.tile(np.linspace(0.0, 1.0, 300), (150, 1))
    loud = quiet.copy()
    loud[110:140, 20:70] = RNG.random((30, 50))
    before, after = predictor.score([quiet, loud]).activation
    change = np.abs(after - before)
    row, column = np.unravel_index(change.argmax(), change.shape)
    height, width = change.shape
    assert row >= height // 2
    assert column < width // 2
    assert change[: height // 2].sum() < change[height // 2 :].sum()
    assert change[:, : width // 2].sum() > change[:, width // 2 :].sum()


def test_the_shown_map_spans_zero_to_one() -> None:
    map_ = shown(np.array([[-3.0, 0.5], [2.0, 0.0]], np.float32))
    np.testing.assert_allclose(map_, [[0.0, 0.25], [1.0, 0.0]])
    assert not shown(np.full((2, 2), -1.0, np.float32)).any()


def test_no_films_give_no_predictions(predictor: Predictor) -> None:
    assert predictor.predict([]) == []


@pytest.mark.parametrize(
    ("probability", "finding"),
    [
        (0.0, "absent"),
        (0.4, "absent"),
        (0.45, "indeterminate"),
        (0.6, "indeterminate"),
        (0.7, "present"),
        (1.0, "present"),
    ],
)
def test_the_band_around_the_threshold_is_indeterminate(probability: float, finding: str) -> None:
    assert finding_for(probability, 0.5, (0.4, 0.7)) == finding


def test_a_probability_at_the_threshold_is_a_positive() -> None:
    assert finding_for(0.5, 0.5, None) is Finding.PRESENT


def test_a_pattern_is_named_for_a_confident_positive_only() -> None:
    assert pattern_for(Finding.PRESENT, 0.95, 0.9) == "bacterial"
    assert pattern_for(Finding.PRESENT, 0.05, 0.9) == "viral"
    assert pattern_for(Finding.PRESENT, 0.7, 0.9) is None
    assert pattern_for(Finding.ABSENT, 0.95, 0.9) is None
    assert pattern_for(Finding.INDETERMINATE, 0.95, 0.9) is None


WRONGLY_HUNG = {
    "head to the left": (lambda film: np.rot90(film, 1), lambda map_: np.rot90(map_, 1)),
    "head to the right": (lambda film: np.rot90(film, -1), lambda map_: np.rot90(map_, -1)),
    "upside down": (lambda film: np.rot90(film, 2), lambda map_: np.rot90(map_, 2)),
    "black and white": (lambda film: 7.0 - film, lambda map_: map_),
}


@pytest.mark.parametrize("how", WRONGLY_HUNG)
def test_a_chest_that_hangs_wrongly_is_put_right_and_its_map_taken_back(
    how: str, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    upright = chest(RNG, True, 60, 90)
    hang, hang_map = WRONGLY_HUNG[how]
    expected = predictor.predict([upright])[0]
    forward = predictor._forward

    def only_upright(films: Sequence[np.ndarray]) -> Scores:
        """Let the gate know the upright film alone."""
        known = [film.shape == upright.shape and np.allclose(film - film.min(), upright - upright.min())
                 for film in films]  # fmt: skip
        return forward(films)._replace(gate_distance=np.where(known, 0.1, 5.0))

    monkeypatch.setattr(predictor, "_forward", only_upright)
    found, other = predictor.predict([hang(upright), upright[:, :30]])
    assert found.probability == pytest.approx(expected.probability, abs=1e-5)
    assert expected.activation is not None
    np.testing.assert_allclose(found.activation, hang_map(expected.activation), atol=1e-4)
    assert len(found.flags) == 1
    assert how in found.flags[0]
    assert other.finding == "not_analysed"
    assert other.activation is None
