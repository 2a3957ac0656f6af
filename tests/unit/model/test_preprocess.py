from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.preprocess import ImageError, model_input, read_image, reduce
from tests.unit.model.conftest import chest

RNG = np.random.default_rng(7)
FILM = chest(RNG, opaque=True, rows=300, columns=220)


@pytest.mark.parametrize(
    ("slope", "offset"), [(1.0, 0.0), (4095.0, 0.0), (250.0, -1024.0), (1e-4, 3.0), (3e4, 32768.0)]
)
def test_any_affine_change_of_the_grey_scale_gives_the_same_input(slope: float, offset: float) -> None:
    changed = model_input(FILM * slope + offset, 96)
    assert np.abs(changed - model_input(FILM, 96)).max() < 1e-4


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_every_bit_depth_gives_nearly_the_same_input(bits: int) -> None:
    top = 2**bits - 1
    scaled = (FILM - FILM.min()) / (FILM.max() - FILM.min())
    quantised = np.rint(scaled * top).astype(np.uint8 if bits == 8 else np.uint16)
    assert np.abs(model_input(quantised, 96) - model_input(FILM, 96)).max() < 0.02


def test_two_dark_pixels_at_the_border_change_nothing_but_themselves() -> None:
    marked = FILM.copy()
    marked[0, :2] = FILM.max() * 10
    change = np.abs(model_input(marked, 96) - model_input(FILM, 96))
    assert change[8:, 8:].max() < 1e-4


def test_the_whole_film_is_squashed_edge_to_edge() -> None:
    film = np.zeros((400, 100))
    film[300:, :] = 1.0
    plane = model_input(film, 40)
    assert plane.shape == (40, 40)
    assert (plane[:29] < 0).all()
    assert (plane[31:] > 0).all()


@pytest.mark.parametrize("value", [0, 1, 4095, -1024.5])
def test_a_film_of_one_grey_gives_zeros(value: float) -> None:
    assert not model_input(np.full((50, 40), value), 32).any()


def test_an_inverted_film_gives_another_input() -> None:
    assert np.abs(model_input(-FILM, 96) - model_input(FILM, 96)).mean() > 0.5


@pytest.mark.parametrize(
    "film", [np.zeros((0, 4)), np.zeros((4, 4, 3)), np.array([[np.nan, 1.0]]), np.zeros((2, 2), complex)]
)
def test_what_is_no_film_is_refused_in_words(film: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"film"):
        model_input(film, 32)
    with pytest.raises(ValueError, match=r"film"):
        reduce(film)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_reduce_takes_the_mean_of_whole_blocks(dtype: type) -> None:
    film = RNG.integers(0, 200, (96, 64)).astype(dtype)
    small = reduce(film, 32)
    assert small.dtype == np.float32
    np.testing.assert_allclose(small, film.reshape(32, 3, -1, 3).mean(axis=(1, 3)) if film.shape[1] % 3 == 0
                               else _slow(film, 3), rtol=1e-5)  # fmt: skip


def _slow(film: np.ndarray, factor: int) -> np.ndarray:
    return np.array(
        [
            [
                film[i : i + factor, j : j + factor].mean(dtype=np.float64)
                for j in range(0, film.shape[1], factor)
            ]
            for i in range(0, film.shape[0], factor)
        ]
    )


def test_reduce_keeps_the_last_rows_and_columns() -> None:
    film = np.zeros((100, 70), np.uint16)
    film[99, :] = 60000
    film[:, 69] = 60000
    small = reduce(film, 30)
    assert small.shape == (25, 18)
    assert (small[-1] > 10000).all()
    assert (small[:, -1] > 10000).all()


def test_reduce_never_enlarges() -> None:
    assert reduce(FILM, 1024).shape == FILM.shape


def test_a_reduced_film_gives_nearly_the_same_input() -> None:
    large = np.kron(FILM, np.ones((4, 4)))
    assert np.abs(model_input(reduce(large, 600), 96) - model_input(large, 96)).mean() < 0.02


def test_read_image_applies_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray((FILM * 100).astype(np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == FILM.shape[::-1]


def test_read_image_keeps_sixteen_bits_of_a_png(tmp_path: Path) -> None:
    grey = RNG.integers(0, 65535, (20, 30)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), grey)


def test_read_image_says_what_is_wrong_with_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = io.BytesIO()
    Image.fromarray((FILM * 100).astype(np.uint8)).save(packed, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(packed.getvalue()[:800])
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("cut.jpg", "text.jpg", "missing.jpg"):
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / name)
    (tmp_path / "large.jpg").write_bytes(packed.getvalue())
    monkeypatch.setattr("model.preprocess.MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="more than a film has"):
        read_image(tmp_path / "large.jpg")
