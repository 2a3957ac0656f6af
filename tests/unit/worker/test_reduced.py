"""A large film, reduced before it is windowed, against the plain way: every pixel first, then the mean."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.unit.worker.decode_samples import Pixels, film_file, ramp
from worker.decode import LONG_SIDE, TOLERANCE, decode
from worker.greyscale import StoredRange, display_table

# Long enough to be reduced by two and by three, with blocks that the edges cut.
SHAPES = [(1025, 31), (37, 2051), (2049, 20)]
SEED = 20261126


def film_of(bits: int, signed: bool, shape: tuple[int, int]) -> Pixels:
    """Return a film with edges and noise: pixels next to one another lie on either side of any window."""
    values = ramp(bits, signed=signed, shape=shape)
    noise = np.random.default_rng(SEED).integers(0, 1 << bits, shape)
    first = -(1 << (bits - 1)) if signed else 0
    return np.where(noise % 5 == 0, noise + first, values).astype(values.dtype)


def plainly(path: Path, pixels: Pixels, padding: tuple[int, int] | None = None) -> Pixels:
    """Look every pixel up, and take the means of blocks in float64."""
    dataset = dcmread(path)
    stored = StoredRange(dataset.BitsStored, dataset.PixelRepresentation == 1)
    index = pixels.astype(np.int64) - stored.first
    padded = np.zeros(pixels.shape, bool)
    if padding is not None:
        padded = (pixels >= padding[0]) & (pixels <= padding[1])
    table, _ = display_table(dataset, stored, (int(index[~padded].min()), int(index[~padded].max())))
    shown = np.where(padded, 0, table[index]).astype(np.float64)
    factor = -(-max(shown.shape) // LONG_SIDE)
    rows, columns = (np.arange(0, length, factor) for length in shown.shape)
    sums, counts = (
        np.add.reduceat(np.add.reduceat(each, rows, axis=0), columns, axis=1)
        for each in (shown, np.ones_like(shown))
    )
    return np.asarray(sums / counts)


def voi_lut(bits: int) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [1 << bits if bits < 16 else 0, 0, 16])
    entries = (np.linspace(0, 1, 1 << bits) ** 2 * 65535).round().astype("<u2")
    item.add_new("LUTData", "OW", entries.tobytes())
    return Sequence([item])


def headers(bits: int, signed: bool) -> dict[str, dict[str, Any]]:
    """Return one header for each way that a table may look."""
    span, middle = 1 << bits, 0 if signed else 1 << (bits - 1)
    window = {"WindowCenter": str(middle), "WindowWidth": str(span // 2)}
    return {
        "full range": {},
        "window": window,
        "window between two values": {"WindowCenter": str(middle + 0.3), "WindowWidth": str(span // 2 + 0.5)},
        "narrow window": {"WindowCenter": str(middle), "WindowWidth": str(span // 16)},
        "window beyond the film": {"WindowCenter": str(middle), "WindowWidth": str(4 * span)},
        "exact window": window | {"VOILUTFunction": "LINEAR_EXACT"},
        "sigmoid": window | {"VOILUTFunction": "SIGMOID"},
        "rescaled": window | {"RescaleSlope": "-0.5", "RescaleIntercept": "10"},
        "MONOCHROME1": window | {"PhotometricInterpretation": "MONOCHROME1"},
        **({} if signed else {"VOI LUT": {"VOILUTSequence": voi_lut(bits)}}),
    }


def check(path: Path, pixels: Pixels, padding: tuple[int, int] | None = None) -> None:
    expected = plainly(path, pixels, padding)
    found = decode(path).pixels
    assert found.shape == expected.shape
    apart = np.abs(found - expected)
    assert apart.max() <= TOLERANCE + 1
    assert apart.mean() <= TOLERANCE / 4


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15, 16])
def test_a_large_film_is_the_mean_of_its_windowed_pixels(bits: int, signed: bool, tmp_path: Path) -> None:
    for number, (name, header) in enumerate(headers(bits, signed).items()):
        pixels = film_of(bits, signed, SHAPES[number % len(SHAPES)])
        path = film_file(tmp_path, pixels, BitsStored=bits, **header)
        try:
            check(path, pixels)
        except AssertionError as fault:
            raise AssertionError(f"{name}: {fault}") from fault


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (0, 9), (4095, 4095), (4000, 4095), (100, 300), (0, 4094), (1, 4095)]
)
def test_padding_of_a_large_film_is_black_before_the_mean(
    low: int, high: int, photometric: str, tmp_path: Path
) -> None:
    pixels = film_of(12, False, (1025, 31))
    header = {"PixelPaddingValue": low, "PixelPaddingRangeLimit": high}
    path = film_file(tmp_path, pixels, BitsStored=12, PhotometricInterpretation=photometric, **header)
    check(path, pixels, (low, high))


@pytest.mark.parametrize(("low", "high"), [(-2048, -2048), (-2048, -2000), (2047, 2047), (-10, 10)])
def test_padding_of_a_large_signed_film_is_black_before_the_mean(low: int, high: int, tmp_path: Path) -> None:
    pixels = film_of(12, True, (1025, 31))
    dataset = {"PixelPaddingValue": low, "PixelPaddingRangeLimit": high}
    check(film_file(tmp_path, pixels, BitsStored=12, **dataset), pixels, (low, high))


def test_padding_of_eight_and_sixteen_bits_leaves_the_range_of_the_rest(tmp_path: Path) -> None:
    for bits in (8, 16):
        top = (1 << bits) - 1
        pixels = film_of(bits, False, (1025, 31))
        for low, high in ((0, 0), (top, top), (0, top // 2), (top // 2, top)):
            header = {"PixelPaddingValue": low, "PixelPaddingRangeLimit": high}
            check(film_file(tmp_path, pixels, BitsStored=bits, **header), pixels, (low, high))


def test_a_large_film_of_one_grey_is_black(tmp_path: Path) -> None:
    assert not decode(film_file(tmp_path, np.full((1030, 20), 77, np.uint16))).pixels.any()
