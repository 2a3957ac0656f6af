from __future__ import annotations

import numpy as np
import pytest

from model.measuring.contact_sheet import contact_sheet
from model.measuring.nuisances import FLAT, PERTURBATIONS, PLAIN, Case, Film, Perturbation
from model.training.lungs import between, lung_mask
from tests.unit.model.conftest import chest

RNG = np.random.default_rng(8)
BY_NAME = {each.name: each for each in PERTURBATIONS}


def _film(opaque: bool) -> Film:
    return np.clip(chest(RNG, opaque, 112, 112) * 255, 0, 255).astype(np.uint8)


def _case(label: int = 0, film: Film | None = None) -> Case:
    film = _film(bool(label)) if film is None else film
    return Case(film, lung_mask(film), label, _film(not label), 3)


NORMAL, PNEUMONIA = _case(0), _case(1)


@pytest.mark.parametrize("perturbation", [PLAIN, *PERTURBATIONS], ids=lambda each: each.name)
def test_a_perturbation_is_repeatable_and_keeps_shape_dtype_and_its_source(
    perturbation: Perturbation,
) -> None:
    for case in (NORMAL, PNEUMONIA):
        before = case.film.copy()
        once, again = perturbation.apply(case), perturbation.apply(case)
        assert once.shape == case.film.shape
        assert once.dtype == np.uint8
        np.testing.assert_array_equal(once, again)
        np.testing.assert_array_equal(case.film, before)
        spared = perturbation is PLAIN or (perturbation.name.startswith("normals") and case.label == 1)
        assert spared is not bool((once != case.film).any())


def test_names_are_unique_and_every_kind_has_rows() -> None:
    assert len(BY_NAME) == len(PERTURBATIONS)
    assert [each.kind for each in PERTURBATIONS] == sorted(
        (each.kind for each in PERTURBATIONS), key=["nuisance", "style", "deprived"].index
    )


@pytest.mark.parametrize("name", ["border only", "corners only"])
def test_what_is_given_only_the_border_is_blind_to_the_middle(name: str) -> None:
    changed = NORMAL.film.copy()
    changed[30:80, 30:80] = RNG.integers(0, 256, (50, 50))
    given = BY_NAME[name].apply
    np.testing.assert_array_equal(given(NORMAL), given(_case(0, changed)))
    assert (given(NORMAL)[30:80, 30:80] == FLAT).all()
    assert (given(NORMAL)[:, 30:80] == FLAT).all() == (name == "corners only")
    assert (given(NORMAL)[30:80] == FLAT).all() == (name == "corners only")


@pytest.mark.parametrize(
    "name", ["lungs masked out", "chest masked out", "box masked out", "chest exchanged"]
)
def test_what_lies_in_the_lungs_does_not_show_when_they_are_masked_out(name: str) -> None:
    opaque = np.where(NORMAL.lungs, RNG.integers(0, 256, NORMAL.film.shape), NORMAL.film).astype(np.uint8)
    apart = [BY_NAME[name].apply(NORMAL._replace(film=film)).astype(int) for film in (NORMAL.film, opaque)]
    assert np.abs(apart[0] - apart[1]).max() <= 8


def test_an_exchanged_chest_is_the_partners_and_the_surround_is_not() -> None:
    exchanged = BY_NAME["chest exchanged"].apply(NORMAL).astype(int)
    assert np.abs(exchanged - NORMAL.partner)[between(NORMAL.lungs)].max() < 12
    np.testing.assert_array_equal(exchanged[:4], NORMAL.film[:4])
    without_heart = np.where(between(NORMAL.lungs), np.uint8(0), NORMAL.film)
    apart = [
        BY_NAME["chest masked out"].apply(NORMAL._replace(film=film)).astype(int)
        for film in (NORMAL.film, without_heart)
    ]
    assert np.abs(apart[0] - apart[1]).max() <= 8


def test_lungs_only_shows_nothing_else() -> None:
    other = np.where(NORMAL.lungs, NORMAL.film, 255 - NORMAL.film).astype(np.uint8)
    apart = [
        BY_NAME["lungs only"].apply(NORMAL._replace(film=film)).astype(int) for film in (NORMAL.film, other)
    ]
    far = np.ones(NORMAL.lungs.shape, np.bool_)
    far[np.argwhere(NORMAL.lungs)[:, 0].min() - 14 :] = False
    assert np.abs(apart[0] - apart[1])[far].max() == 0
    assert np.abs(apart[0] - NORMAL.film)[NORMAL.lungs].max() < 12


@pytest.mark.parametrize("name", ["markers added", "markers exchanged"])
@pytest.mark.parametrize("case", [NORMAL, PNEUMONIA], ids=["normal", "pneumonia"])
def test_an_added_letter_is_erased_again(name: str, case: Case) -> None:
    smooth = np.full((224, 224), 60, np.uint8)
    plain = case._replace(film=smooth, lungs=lung_mask(smooth))
    marked = BY_NAME[name].apply(plain)
    assert (marked > 150).sum() > 20
    erased = BY_NAME["markers erased"].apply(plain._replace(film=marked))
    assert np.abs(erased.astype(int) - smooth).max() <= 40


def test_the_markers_exchanged_are_those_of_the_other_class() -> None:
    smooth = np.full((224, 224), 60, np.uint8)
    lungs = lung_mask(smooth)
    of = [BY_NAME["markers exchanged"].apply(Case(smooth, lungs, label, smooth, 0)) > 100 for label in (0, 1)]
    assert of[0][:60].any()
    assert not of[0][90:130].any()
    assert of[1][90:130].any()
    assert not of[1][:60].any()


def test_style_is_borrowed_from_the_partner_and_lungs_are_not() -> None:
    bright = np.full_like(NORMAL.film, 250)
    lent = BY_NAME["surround"].apply(NORMAL._replace(partner=bright))
    assert (lent[:3] == 250).all()
    np.testing.assert_array_equal(lent[50:60, 30:80], NORMAL.film[50:60, 30:80])


def test_the_sheet_shows_every_perturbation_of_both_classes() -> None:
    page = np.asarray(contact_sheet([PNEUMONIA, NORMAL]))
    assert page.shape[1] > page.shape[0] / 2
    tiles = page.shape[0] // 170 * 6
    assert tiles >= len(PERTURBATIONS) + 2
