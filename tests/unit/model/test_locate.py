from __future__ import annotations

import numpy as np
import pytest
import torch

from model import locate
from model.locate import Locator, in_frame, network_input, over_film
from model.preprocess import framed, squashed
from model.training import locator as teaching
from model.training.locator import fit_locator
from model.training.lungs import lung_box
from tests.unit.model.conftest import chest

FRAME = np.array([0.1, -0.2, 0.7, 1.1], np.float32)


def _film(rng: np.random.Generator, side: int) -> np.ndarray:
    return np.asarray(255 * squashed(chest(rng, False, side, side), side), np.uint8)


@pytest.fixture(scope="module")
def learnt() -> tuple[np.ndarray, Locator]:
    """Forty synthetic chests, each another part of its film, and a locator taught by thirty-two."""
    rng = np.random.default_rng(0)
    parts = np.concatenate([rng.uniform(-0.1, 0.1, (40, 2)), rng.uniform(0.9, 1.1, (40, 2))], axis=1)
    films = np.stack([framed(_film(rng, 128), part) for part in parts])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teaching, "EPOCHS", 100)
        patch.setattr(teaching, "BATCH", 16)
        return films, fit_locator(films[:32], seed=1)


def test_a_learnt_locator_finds_lungs_that_it_has_not_seen(learnt: tuple[np.ndarray, Locator]) -> None:
    films, locator = learnt
    found = locator.frames(films[32:])
    middle, half = (found[:, 2:] + found[:, :2]) / 2, (found[:, 2:] - found[:, :2]) / 2
    half /= 1.0 + 2.0 * np.array(locate.MARGINS)
    truth = np.array([lung_box(film) for film in films[32:]])
    assert np.median(np.abs(np.concatenate([middle - half, middle + half], axis=1) - truth)) < 0.04


def test_the_frame_goes_with_the_lungs_when_the_film_shows_less(learnt: tuple[np.ndarray, Locator]) -> None:
    films, locator = learnt
    part = np.array([0.0, 0.125, 1.0, 0.875])
    whole = locator.frames(films[32:])
    less = locator.frames([framed(film, part) for film in films[32:]])
    back = less * (1.0, 0.75, 1.0, 0.75) + (0.0, 0.125, 0.0, 0.125)
    assert np.median(np.abs(back - whole)) < 0.03


def test_one_seed_gives_one_locator() -> None:
    films = np.stack([_film(np.random.default_rng(n), 64) for n in range(4)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teaching, "EPOCHS", 1)
        first, again, other = (fit_locator(films, seed).tensors() for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


def test_no_film_is_stretched_beyond_reason() -> None:
    locator = Locator().eval()
    with torch.no_grad():
        locator.head.weight.zero_()
        locator.head.bias.copy_(torch.tensor([0.6, 9.0, 0.5, -9.0]))
    planes, frames = network_input(locator, [chest(np.random.default_rng(0), False)], 48)
    assert planes.shape == (1, 1, 48, 48)
    assert torch.isfinite(planes).all()
    assert (frames[:, 2:] - frames[:, :2] >= locate.SMALLEST).all()
    assert (np.abs(frames) <= 2.0).all()


def test_the_tensors_of_a_locator_make_the_same_one() -> None:
    locator = Locator().eval()
    films = [squashed(chest(np.random.default_rng(n), False)) for n in range(3)]
    again = Locator.from_tensors(locator.tensors())
    np.testing.assert_array_equal(again.frames(films), locator.frames(films))
    tensors = locator.tensors()
    del tensors["locator.head.bias"]
    with pytest.raises(KeyError):
        Locator.from_tensors(tensors)


def test_films_are_cut_as_the_network_sees_them() -> None:
    rng = np.random.default_rng(1)
    films = np.stack([_film(rng, 224) for _ in range(2)])
    locator = Locator().eval()
    frames = locator.frames(films)
    np.testing.assert_array_equal(in_frame(locator, films)[1], framed(films[1], frames[1]))


def test_a_map_of_a_frame_lies_over_the_film_where_its_frame_does() -> None:
    activation = np.ones((10, 10), np.float32)
    activation[2, 7] = 5.0
    over = over_film(activation, FRAME, 100)
    down, across = np.unravel_index(over.argmax(), over.shape)
    # The middle of the cell: a share of 0.75 across the frame and of 0.25 down it.
    assert (across + 0.5) / 100 == pytest.approx(0.1 + 0.75 * 0.6, abs=0.02)
    assert (down + 0.5) / 100 == pytest.approx(-0.2 + 0.25 * 1.3, abs=0.02)
    assert not over[:, :9].any()
    assert not over[:, 71:].any()
    assert over[:, 11:69].min() == pytest.approx(1.0)


def test_a_frame_beyond_the_film_shows_black_there() -> None:
    square = np.full((40, 40), 200, np.uint8)
    shown = framed(square, FRAME)
    assert shown.shape == square.shape
    assert shown.dtype == np.uint8
    assert not shown[:5].any()
    assert (shown[8:34] == 200).all()


def test_a_locator_that_follows_its_windows_is_steady(learnt: tuple[np.ndarray, Locator]) -> None:
    films, locator = learnt
    deaf = Locator().eval()
    with torch.no_grad():
        deaf.head.weight.zero_()
    taught, untaught = (teaching.steadiness(each, films[32:]) for each in (locator, deaf))
    assert taught["n"] == 8
    for key in ("classical", "windows"):
        assert 0.0 < taught[key]["median"] < untaught[key]["median"] / 2
        assert taught[key]["median"] <= taught[key]["p95"]
