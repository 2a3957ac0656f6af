"""One film has one score, whichever way it comes: the weights that ship, through DICOM and through JPEG."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file

from model.calibrate import probabilities
from model.locate import network_input
from model.predict import Predictor
from model.preprocess import read_image
from tests.unit.worker.decode_samples import film_file
from worker.decode import decode

Pixels = npt.NDArray[Any]
Coding = Callable[[Pixels], tuple[Pixels, dict[str, Any]]]


@pytest.fixture(scope="module")
def shipped() -> Predictor:
    return Predictor.load(device="cpu")


@cache
def _picture() -> npt.NDArray[np.float64]:
    """A real chest film within [0, 1], dark is low: RG1 of pydicom-data, MONOCHROME1 and 15 bits there."""
    stored = dcmread(str(get_testdata_file("RG1_UNCR.dcm"))).pixel_array.astype(np.float64)
    dark_low = stored.max() - stored
    small = np.asarray(Image.fromarray(dark_low.astype(np.float32)).resize((900, 950)))
    return np.asarray((small - small.min()) / np.ptp(small), np.float64)


def _levels(bits: int, **header: Any) -> Coding:
    def code(picture: Pixels) -> tuple[Pixels, dict[str, Any]]:
        kind = np.uint8 if bits <= 8 else np.uint16
        return np.rint(picture * ((1 << bits) - 1)).astype(kind), {"BitsStored": bits, **header}

    return code


def _inverse(bits: int) -> Coding:
    return lambda picture: _levels(bits, PhotometricInterpretation="MONOCHROME1")(1.0 - picture)


def _signed(picture: Pixels) -> tuple[Pixels, dict[str, Any]]:
    values = np.rint(picture * 4095 - 1024).astype(np.int16)
    return values, {"RescaleSlope": "0.5", "RescaleIntercept": "-12"}


def _colour(picture: Pixels) -> tuple[Pixels, dict[str, Any]]:
    return np.stack([_levels(8)(picture)[0]] * 3, axis=-1), {}


def _windowed(picture: Pixels) -> tuple[Pixels, dict[str, Any]]:
    # The window spans the picture; around it the detector has room.
    values = np.rint(1000 + picture * 2000).astype(np.uint16)
    return values, {"BitsStored": 14, "WindowCenter": "2000", "WindowWidth": "2001"}


CODINGS: dict[str, Coding] = {
    **{f"MONOCHROME2, {bits} bits": _levels(bits) for bits in (8, 10, 12, 14, 16)},
    **{f"MONOCHROME1, {bits} bits": _inverse(bits) for bits in (8, 12, 15, 16)},
    "signed with a rescale slope": _signed,
    "RGB": _colour,
    "in a window": _windowed,
}


def _jpeg_score(predictor: Predictor, folder: Path) -> float:
    path = folder / "film.jpeg"
    Image.fromarray(_levels(8)(_picture())[0]).save(path, quality=95)
    return float(predictor.score([read_image(path)]).probability[0])


@pytest.mark.parametrize("coding", CODINGS)
def test_a_film_scores_alike_through_dicom_and_through_jpeg(
    coding: str, shipped: Predictor, tmp_path: Path
) -> None:
    pixels, header = CODINGS[coding](_picture())
    film = decode(film_file(tmp_path, pixels, **header))
    assert shipped.score([film.pixels]).probability[0] == pytest.approx(
        _jpeg_score(shipped, tmp_path), abs=0.01
    )


@pytest.mark.parametrize("side", [320, 640, 1800, 3600])
def test_a_film_scores_alike_at_any_size(side: int, shipped: Predictor, tmp_path: Path) -> None:
    grey = Image.fromarray(_picture().astype(np.float32))
    resized = np.asarray(grey.resize((side, side * 950 // 900), Image.Resampling.BICUBIC))
    film = decode(film_file(tmp_path, _levels(12)(np.clip(resized, 0.0, 1.0))[0], BitsStored=12))
    assert shipped.score([film.pixels]).probability[0] == pytest.approx(
        _jpeg_score(shipped, tmp_path), abs=0.01
    )


def test_a_film_whose_header_exchanges_black_and_white_is_put_right(
    shipped: Predictor, tmp_path: Path
) -> None:
    pixels, header = _levels(12)(_picture())
    right = decode(film_file(tmp_path, pixels, **header))
    wrong = decode(film_file(tmp_path, pixels, **header | {"PhotometricInterpretation": "MONOCHROME1"}))
    expected, found = shipped.predict([right.pixels, wrong.pixels])
    assert found.probability == pytest.approx(expected.probability, abs=0.01)
    assert not expected.flags
    assert "black and white" in found.flags[0]


def test_a_batch_of_thirty_two_scores_as_one_film_does(shipped: Predictor) -> None:
    films = [np.roll(_picture()[:, : 900 - 8 * shift], 3 * shift, axis=0) for shift in range(32)]
    together = shipped.score(films)
    alone = [shipped.score([film]) for film in films]
    for name in ("probability", "bacterial", "gate_distance"):
        each = np.concatenate([getattr(score, name) for score in alone])
        np.testing.assert_allclose(getattr(together, name), each, atol=1e-4)


def test_every_device_scores_as_exact_arithmetic_does(shipped: Predictor) -> None:
    tensor, _ = network_input(shipped.locator, [_picture()], shipped.info.input_size)
    with torch.inference_mode():
        exact = deepcopy(shipped._network).double().explain(tensor.double()).logits.numpy()
    expected = probabilities(exact, *shipped.info.calibration)
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for fastest in (False, True) if device == "cuda" else (False,):
            predictor = Predictor.load(device=device, fastest=fastest)
            for _ in range(2):  # what is allocated in between must not be what the second one reads
                found = predictor.score([_picture()]).probability
                assert found == pytest.approx(expected, abs=1e-3 if fastest else 5e-4), predictor.engine
                Predictor.load(device=device)
