"""The grey-scale pipeline against the standard's formulas, and everything a sender can get wrong."""

import math
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from service.core.errors import Undecodable
from tests.unit.worker.decode_samples import (
    HUGE,
    PATIENT,
    Pixels,
    compressed_dataset,
    film_dataset,
    film_file,
    jpeg_2000_frame,
    jpeg_frame,
    ramp,
    saved,
)
from worker.decode import Film, decode

ONE_STEP = 1.0 / 65535
FULL_RANGE_FLAG = "no window in the header: full range shown"


def seen(film: Film) -> Pixels:
    return film.pixels / 65535


def linear(values: Pixels, center: float, width: float) -> Pixels:
    """PS3.3 C.11.2.1.2.1, word by word."""

    def one(x: float) -> float:
        if x <= center - 0.5 - (width - 1) / 2:
            return 0.0
        if x > center - 0.5 + (width - 1) / 2:
            return 1.0
        return (x - (center - 0.5)) / (width - 1) + 0.5

    return np.vectorize(one, otypes=[float])(values)


def lut(first: int, entries: list[int], bits: int, *, packed: bool = False) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    if packed:
        item.add_new("LUTData", "OW", bytes(entries))
    else:
        item.add_new("LUTData", "US", entries)
    return Sequence([item])


def refusal(path: Path) -> str:
    with pytest.raises(Undecodable) as caught:
        decode(path)
    assert "anary" not in str(caught.value)
    assert PATIENT not in str(caught.value)
    return str(caught.value)


def test_a_film_without_a_window_shows_its_full_range_and_says_so(tmp_path: Path) -> None:
    pixels = np.array([[500, 1000], [1500, 2500]], np.uint16)

    film = decode(film_file(tmp_path, pixels))

    assert seen(film) == pytest.approx(np.array([[0, 0.25], [0.5, 1]]), abs=ONE_STEP)
    assert film.flags == (FULL_RANGE_FLAG,)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
def test_a_linear_window_follows_the_standards_formula(bits: int, signed: bool, tmp_path: Path) -> None:
    pixels = ramp(bits, signed=signed)
    middle = 0 if signed else 1 << (bits - 1)
    center, width = middle + 7, (1 << bits) * 0.6

    film = decode(film_file(tmp_path, pixels, BitsStored=bits, WindowCenter=center, WindowWidth=width))

    assert seen(film) == pytest.approx(linear(pixels, center, width), abs=ONE_STEP)
    assert film.flags == ()


def test_the_other_window_functions_follow_their_formulas(tmp_path: Path) -> None:
    pixels = ramp(12)
    window: dict[str, Any] = {"BitsStored": 12, "WindowCenter": 2000, "WindowWidth": 900}

    exact = decode(film_file(tmp_path, pixels, VOILUTFunction="LINEAR_EXACT", **window))
    sigmoid = decode(film_file(tmp_path, pixels, VOILUTFunction="SIGMOID", **window))

    assert seen(exact) == pytest.approx(np.clip((pixels - 2000.0) / 900 + 0.5, 0, 1), abs=ONE_STEP)
    assert seen(sigmoid) == pytest.approx(1 / (1 + np.exp(-4 * (pixels - 2000.0) / 900)), abs=ONE_STEP)


def test_the_window_applies_to_rescaled_values(tmp_path: Path) -> None:
    pixels = ramp(12)
    header = {"RescaleSlope": 2.5, "RescaleIntercept": -1024, "WindowCenter": 3000, "WindowWidth": 4000}

    film = decode(film_file(tmp_path, pixels, BitsStored=12, **header))

    assert seen(film) == pytest.approx(linear(pixels * 2.5 - 1024, 3000, 4000), abs=ONE_STEP)


def test_a_negative_rescale_slope_turns_the_film_round(tmp_path: Path) -> None:
    film = decode(film_file(tmp_path, ramp(12), BitsStored=12, RescaleSlope=-1, RescaleIntercept=4095))

    assert seen(film)[0, 0] == 1
    assert seen(film)[-1, -1] == 0


def test_the_first_of_several_windows_is_shown(tmp_path: Path) -> None:
    pixels = ramp(12)
    window = {"WindowCenter": [2000, 100], "WindowWidth": [900, 50]}

    film = decode(film_file(tmp_path, pixels, BitsStored=12, **window))

    assert seen(film) == pytest.approx(linear(pixels, 2000, 900), abs=ONE_STEP)


@pytest.mark.parametrize(("center", "width"), [(2000, 0), (2000, 1), (2000, -5)])
def test_a_window_without_width_is_no_window(center: float, width: float, tmp_path: Path) -> None:
    film = decode(film_file(tmp_path, ramp(12), BitsStored=12, WindowCenter=center, WindowWidth=width))

    assert film.flags == ("the header's window is unusable: full range shown",)
    assert seen(film) == pytest.approx(ramp(12) / 4095, abs=ONE_STEP)


def test_a_window_that_is_no_number_is_no_window(tmp_path: Path) -> None:
    path = film_file(tmp_path, ramp(12), BitsStored=12, WindowCenter="2000", WindowWidth="1234")
    path.write_bytes(path.read_bytes().replace(b"1234", b"12,4"))

    assert decode(path).flags == ("the header's window is unusable: full range shown",)


def test_a_window_that_leaves_the_film_blank_is_passed_over(tmp_path: Path) -> None:
    film = decode(film_file(tmp_path, ramp(12), BitsStored=12, WindowCenter=60000, WindowWidth=100))

    assert film.flags == ("the header's window shows nothing of the film: full range shown",)
    assert seen(film).max() == 1


def test_a_modality_lut_maps_stored_values_before_the_window(tmp_path: Path) -> None:
    pixels = np.array([[0, 4], [5, 6], [7, 99]], np.uint16)
    header = {
        "ModalityLUTSequence": lut(4, [100, 300, 200, 700], 16),
        "WindowCenter": 400.5,
        "WindowWidth": 601,
    }

    film = decode(film_file(tmp_path, pixels, ModalityLUTType="US", **header))

    mapped = np.array([[100, 100], [300, 200], [700, 700]])
    assert seen(film) == pytest.approx((mapped - 100) / 600, abs=ONE_STEP)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_voi_lut_maps_what_the_rescale_gives(syntax: UID, tmp_path: Path) -> None:
    pixels = np.array([[0, 10], [11, 12], [13, 99]], np.uint16)
    header = {"RescaleSlope": 1, "RescaleIntercept": -12, "VOILUTSequence": lut(-2, [0, 4, 1000, 4095], 12)}

    film = decode(film_file(tmp_path, pixels, **header, syntax=syntax))

    assert seen(film) * 4095 == pytest.approx(np.array([[0, 0], [4, 1000], [4095, 4095]]), abs=0.1)
    assert film.flags == ()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_words_of_a_lut_have_the_byte_order_of_the_file(syntax: UID, tmp_path: Path) -> None:
    table = lut(0, [0, 4095], 12)
    table[0].add_new("LUTData", "OW", struct.pack("<2H" if syntax.is_little_endian else ">2H", 0x0100, 4095))

    film = decode(film_file(tmp_path, np.array([[0, 1]], np.uint16), syntax=syntax, VOILUTSequence=table))

    assert seen(film) == pytest.approx(np.array([[256 / 4095, 1]]), abs=ONE_STEP)


def test_a_voi_lut_goes_before_a_window(tmp_path: Path) -> None:
    pixels = np.array([[0, 1]], np.uint16)
    header = {"VOILUTSequence": lut(0, [1023, 0], 10), "WindowCenter": 1, "WindowWidth": 2}

    assert seen(decode(film_file(tmp_path, pixels, **header))).tolist() == [[1, 0]]


def test_entries_of_eight_bits_may_be_packed_two_to_a_word(tmp_path: Path) -> None:
    pixels = np.array([[0, 1], [2, 3]], np.uint16)

    film = decode(film_file(tmp_path, pixels, VOILUTSequence=lut(0, [0, 51, 102, 255], 8, packed=True)))

    assert seen(film) == pytest.approx(np.array([[0, 0.2], [0.4, 1]]), abs=ONE_STEP)


def test_a_voi_lut_that_holds_more_bits_than_it_declares_is_not_wrapped(tmp_path: Path) -> None:
    film = decode(film_file(tmp_path, np.array([[0, 1]], np.uint16), VOILUTSequence=lut(0, [0, 4095], 8)))

    assert seen(film).tolist() == [[0, 1]]


def test_a_malformed_voi_lut_is_passed_over_and_told(tmp_path: Path) -> None:
    broken = lut(0, [0, 1, 2, 3], 10)
    broken[0].LUTDescriptor = [400, 0, 10]

    film = decode(film_file(tmp_path, ramp(12), BitsStored=12, VOILUTSequence=broken))

    assert film.flags == ("the header's VOI LUT is malformed: not used", FULL_RANGE_FLAG)


def test_a_malformed_modality_lut_is_refused(tmp_path: Path) -> None:
    broken = lut(0, [0, 1, 2, 3], 10)
    broken[0].LUTDescriptor = [400, 0, 10]

    assert "Modality LUT" in refusal(film_file(tmp_path, ramp(12), ModalityLUTSequence=broken))


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2000, "WindowWidth": 1000}])
def test_one_picture_in_both_monochromes_is_one_film(window: dict[str, Any], tmp_path: Path) -> None:
    pixels = ramp(12)
    turned = {"WindowCenter": 4095 - 2000 + 1, "WindowWidth": 1000} if window else {}

    two = decode(film_file(tmp_path, pixels, BitsStored=12, **window))
    inverted = {"PhotometricInterpretation": "MONOCHROME1", **turned}
    one = decode(film_file(tmp_path, (4095 - pixels).astype(np.uint16), BitsStored=12, **inverted))

    assert seen(one) == pytest.approx(seen(two), abs=1e-3)


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted", "flagged"),
    [
        ("MONOCHROME1", None, True, False),
        ("MONOCHROME1", "INVERSE", True, False),
        ("MONOCHROME1", "IDENTITY", False, True),
        ("MONOCHROME2", None, False, False),
        ("MONOCHROME2", "IDENTITY", False, False),
        ("MONOCHROME2", "INVERSE", True, True),
    ],
)
def test_presentation_lut_shape_inverts_once_and_decides(
    photometric: str, shape: str | None, inverted: bool, flagged: bool, tmp_path: Path
) -> None:
    header = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape}

    film = decode(film_file(tmp_path, ramp(12), **header))

    assert bool(film.pixels[0, 0] == 65535) is inverted
    assert any("contradict" in flag for flag in film.flags) is flagged


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_takes_no_part_in_the_range(photometric: str, tmp_path: Path) -> None:
    pixels = np.array([[0, 100], [200, 300], [0, 0]], np.uint16)
    expected = np.array([[0, 0], [0.5, 1], [0, 0]])
    if photometric == "MONOCHROME1":
        expected = np.array([[0, 1], [0.5, 0], [0, 0]])

    header = {"PhotometricInterpretation": photometric, "PixelPaddingValue": 0}

    assert seen(decode(film_file(tmp_path, pixels, **header))) == pytest.approx(expected, abs=ONE_STEP)


def test_a_padding_range_has_both_ends_inside(tmp_path: Path) -> None:
    pixels = np.array([[-2000, -1900], [-1800, 0], [50, 100]], np.int16)
    header = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1800}

    film = decode(film_file(tmp_path, pixels, **header))

    assert seen(film) == pytest.approx(np.array([[0, 0], [0, 0], [0.5, 1]]), abs=ONE_STEP)


def test_a_padding_value_of_signed_pixels_may_come_unsigned(tmp_path: Path) -> None:
    dataset = film_dataset(np.array([[-2000, 0], [50, 100]], np.int16))
    dataset.add_new("PixelPaddingValue", "US", 0x10000 - 2000)

    assert seen(decode(saved(dataset, tmp_path))) == pytest.approx(np.array([[0, 0], [0.5, 1]]), abs=ONE_STEP)


def test_a_film_of_nothing_but_padding_is_refused(tmp_path: Path) -> None:
    assert "padding" in refusal(film_file(tmp_path, np.zeros((4, 4), np.uint16), PixelPaddingValue=0))


def test_overlay_bits_above_the_stored_bits_are_no_pixels(tmp_path: Path) -> None:
    clean = decode(film_file(tmp_path, ramp(12), BitsStored=12))

    drawn = decode(
        film_file(tmp_path, ramp(12) | (0xF000 * (ramp(12) % 3 == 0)).astype(np.uint16), BitsStored=12)
    )

    assert drawn.pixel_digest == clean.pixel_digest
    assert np.array_equal(drawn.pixels, clean.pixels)


def test_the_sign_sits_in_the_highest_stored_bit(tmp_path: Path) -> None:
    unextended = ramp(12, signed=True) & 0x0FFF

    film = decode(film_file(tmp_path, unextended, BitsStored=12))

    assert film.pixel_digest == decode(film_file(tmp_path, ramp(12, signed=True), BitsStored=12)).pixel_digest


def test_values_at_the_top_of_the_word_are_shifted_down(tmp_path: Path) -> None:
    film = decode(film_file(tmp_path, ramp(12) << 4, BitsStored=12, HighBit=15))

    assert film.pixel_digest == decode(film_file(tmp_path, ramp(12), BitsStored=12)).pixel_digest


def test_a_grey_film_saved_as_rgb_is_the_grey_film(tmp_path: Path) -> None:
    grey = ramp(8)

    film = decode(film_file(tmp_path, np.stack([grey] * 3, axis=-1)))

    assert seen(film) == pytest.approx(grey / 255, abs=ONE_STEP)
    assert film.flags == ()


def test_a_colour_picture_is_shown_by_its_luminance_and_says_so(tmp_path: Path) -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200

    film = decode(film_file(tmp_path, red))

    assert film.pixels[0, 0] == round(200 * 0.299) * 257
    assert film.flags == ("a colour picture: shown by its luminance",)


def test_a_film_of_one_value_is_black(tmp_path: Path) -> None:
    assert not decode(film_file(tmp_path, np.full((4, 4), 77, np.uint16))).pixels.any()


def test_a_small_film_is_never_enlarged(tmp_path: Path) -> None:
    film = decode(film_file(tmp_path, ramp(12)))

    assert film.pixels.shape == (24, 20)
    assert (film.rows, film.columns) == (24, 20)
    assert film.pixels.dtype == np.uint16


def test_a_large_film_is_the_area_mean_of_what_a_reader_sees(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (2100, 1200)).astype(np.uint16)
    window = {"WindowCenter": 1500, "WindowWidth": 800}  # clips two thirds of the pixels

    film = decode(film_file(tmp_path, pixels, BitsStored=12, **window))

    shown = np.clip((pixels - 1499.5) / 799 + 0.5, 0, 1)
    assert seen(film) == pytest.approx(shown.reshape(700, 3, 400, 3).mean((1, 3)), abs=ONE_STEP)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 16),
    signed=st.booleans(),
    monochrome1=st.booleans(),
    center=st.integers(-40000, 70000),
    width=st.integers(2, 80000),
    slope=st.sampled_from([1.0, 0.25, -3.0]),
)
def test_any_window_and_any_bits_agree_with_the_standard(
    tmp_path_factory: pytest.TempPathFactory,
    bits: int,
    signed: bool,
    monochrome1: bool,
    center: int,
    width: int,
    slope: float,
) -> None:
    pixels = ramp(bits, signed=signed, shape=(8, 6))
    header = {
        "BitsStored": bits,
        "WindowCenter": center,
        "WindowWidth": width,
        "RescaleSlope": slope,
        "RescaleIntercept": 10,
        "PhotometricInterpretation": "MONOCHROME1" if monochrome1 else "MONOCHROME2",
    }
    shown = linear(pixels * slope + 10, center, width)

    film = decode(film_file(tmp_path_factory.mktemp("any"), pixels, **header))

    if film.flags:
        assert np.ptp(shown) == 0
    else:
        assert seen(film) == pytest.approx(1 - shown if monochrome1 else shown, abs=ONE_STEP)


def test_a_data_set_without_preamble_and_file_meta_decodes(tmp_path: Path) -> None:
    dataset = film_dataset(ramp(12), BitsStored=12)
    whole = decode(saved(dataset, tmp_path))
    for implicit in (True, False):
        path = tmp_path / f"bare-{implicit}"
        bare = Dataset({tag: dataset[tag] for tag in dataset.keys()})  # noqa: SIM118  # a Dataset yields elements
        bare.save_as(path, implicit_vr=implicit, little_endian=True)
        assert path.read_bytes()[128:132] != b"DICM"

        assert decode(path).pixel_digest == whole.pixel_digest


def test_the_digest_tells_pixels_from_header(tmp_path: Path) -> None:
    pixels = ramp(12)
    digest = decode(film_file(tmp_path, pixels)).pixel_digest
    changed = pixels.copy()
    changed[3, 3] ^= 1

    assert (
        decode(film_file(tmp_path, pixels, PatientName="Other", WindowCenter=1, WindowWidth=9)).pixel_digest
        == digest
    )
    assert decode(film_file(tmp_path, changed)).pixel_digest != digest
    assert decode(film_file(tmp_path, pixels.reshape(20, 24))).pixel_digest != digest
    assert decode(film_file(tmp_path, pixels.view(np.int16))).pixel_digest != digest


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"Rows": 0}, "0 rows"),
        ({"Columns": 0}, "0 columns"),
        ({"Rows": 65535, "Columns": 65535}, "65535 rows x 65535 columns is more than a film has"),
        ({"Rows": 25}, "cut short: 960 of 1000 bytes"),
        ({"Rows": None}, "Rows is missing"),
        ({"NumberOfFrames": 2}, "2 frames"),
        ({"NumberOfFrames": 2**31 - 1}, "2147483647 frames"),
        ({"BitsAllocated": 32, "BitsStored": 32}, "32 bits stored in 32"),
        ({"BitsStored": 0}, "0 bits stored"),
        ({"BitsStored": 12, "HighBit": 16}, "high bit 16"),
        ({"BitsStored": None}, "BitsStored is missing"),
        ({"PixelRepresentation": 2}, "Pixel Representation"),
        ({"SamplesPerPixel": 3}, "3 samples per pixel do not go with MONOCHROME2"),
        ({"SamplesPerPixel": 4}, "4 samples per pixel"),
        ({"PhotometricInterpretation": "RGB"}, "1 samples per pixel do not go with RGB"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "palette colour"),
        ({"PhotometricInterpretation": "HSV"}, "Photometric Interpretation"),
        ({"PhotometricInterpretation": None}, "Photometric Interpretation"),
        ({"RescaleSlope": 0}, "Rescale Slope"),
        ({"PixelData": None}, "no pixel data"),
    ],
    ids=str,
)
def test_a_header_that_makes_no_film_is_refused_with_its_reason(
    header: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    assert reason in refusal(film_file(tmp_path, ramp(12), **header))


def test_more_frames_than_a_number_holds_are_refused(tmp_path: Path) -> None:
    path = film_file(tmp_path, ramp(12), NumberOfFrames=1234567890)
    path.write_bytes(path.read_bytes().replace(b"1234567890", b"2147483648"))

    assert "NumberOfFrames" in refusal(path) or "frames" in refusal(path)


def test_nothing_is_allocated_for_what_a_header_announces(tmp_path: Path) -> None:
    path = film_file(tmp_path, ramp(12), Rows=9999, Columns=9999)
    tracemalloc.start()
    try:
        refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 10_000_000


def test_what_decides_nothing_is_not_read(tmp_path: Path) -> None:
    dataset = film_dataset(ramp(12))
    dataset.private_block(0x0009, "HILUM TEST", create=True).add_new(0x10, "OB", b"\0" * 10_000_000)
    path = saved(dataset, tmp_path)
    del dataset
    tracemalloc.start()
    try:
        decode(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 5_000_000


def test_a_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    whole = film_file(tmp_path, ramp(12)).read_bytes()
    for length in (0, 10, 131, 132, 200, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.dcm").write_bytes(whole[:length])

        refusal(tmp_path / "cut.dcm")


@pytest.mark.parametrize("seed", range(20))
def test_garbage_is_refused(seed: int, tmp_path: Path) -> None:
    garbage = np.random.default_rng(seed).integers(0, 256, 3000).astype(np.uint8).tobytes()
    (tmp_path / "garbage").write_bytes(b"\0" * 128 + b"DICM" * (seed % 2) + garbage)

    refusal(tmp_path / "garbage")


def test_a_file_that_is_not_there_is_a_fault_of_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "gone.dcm")


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, JPEGExtended12Bit])
def test_a_syntax_that_is_not_offered_is_refused_by_name(syntax: UID, tmp_path: Path) -> None:
    dataset = film_dataset(ramp(12))
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax.is_encapsulated:
        dataset = compressed_dataset(b"\xff\xd8\xff\xd9", ramp(12), syntax)

    assert refusal(saved(dataset, tmp_path)) == f"transfer syntax {syntax.name} is not supported"


@pytest.mark.fault(34)
def test_a_deflated_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    dataset = film_dataset(np.zeros((6000, 6000), np.uint16))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = saved(dataset, tmp_path)
    del dataset
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    try:
        refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 1_000_000


@pytest.mark.fault(36)
def test_a_thousand_nested_sequences_do_not_hang(tmp_path: Path) -> None:
    path = film_file(tmp_path, ramp(12))
    level = struct.pack("<HH2sHI", 0x0009, 0x1010, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    end = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    whole = path.read_bytes()
    at = whole.index(struct.pack("<HH", 0x0010, 0x0010) + b"PN")
    path.write_bytes(whole[:at] + level * 1000 + end * 1000 + whole[at:])

    assert "RecursionError" in refusal(path)


def test_compressed_and_uncompressed_pixel_data_are_not_taken_for_each_other(tmp_path: Path) -> None:
    native = film_dataset(ramp(12))
    native.file_meta.TransferSyntaxUID = JPEG2000Lossless
    path = film_file(tmp_path, ramp(12))
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 960), struct.pack("<I", 0xFFFFFFFF)))

    assert "compressed pixel data under an uncompressed" in refusal(path)
    native["PixelData"].is_undefined_length = False
    whole = film_file(tmp_path, ramp(12)).read_bytes()
    (tmp_path / "native.dcm").write_bytes(whole.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"))
    assert "uncompressed pixel data under a compressed" in refusal(tmp_path / "native.dcm")


@pytest.mark.fault(35)
@pytest.mark.parametrize(
    ("syntax", "frame", "reason"),
    [
        (JPEGBaseline8Bit, jpeg_frame(0xC0, **HUGE), "holds 65535 x 65535"),
        (JPEGLosslessSV1, jpeg_frame(0xC3, **HUGE), "holds 65535 x 65535"),
        (JPEGLSLossless, jpeg_frame(0xF7, **HUGE), "holds 65535 x 65535"),
        (
            JPEG2000Lossless,
            jpeg_2000_frame(rows=2**32 - 1, columns=2**32 - 1),
            "holds 4294967295 x 4294967295",
        ),
        (JPEGBaseline8Bit, jpeg_frame(0xC0, components=3), "x 3 samples"),
        (JPEG2000Lossless, jpeg_2000_frame(components=16384), "x 16384 samples"),
        # GDCM ends the process on the next three.
        (
            JPEGLosslessSV1,
            jpeg_frame(0xC3).replace(b"\xff\xda", b"\xff\xd5\x00\x04\x00\x00\xff\xda"),
            "codestream",
        ),
        (JPEGLosslessSV1, jpeg_frame(0xC3, precision=81), "81 bits in the codestream"),
        (JPEGLosslessSV1, jpeg_frame(0xC3).replace(b"\xff\xda", b"\xa8\xda"), "codestream"),
        (JPEGLosslessSV1, jpeg_frame(0xC0), "codestream"),
        (JPEGLosslessSV1, jpeg_frame(0xC3, end=b""), "cut short"),
        (JPEGLSLossless, jpeg_frame(0xF7, end=b""), "cut short"),
        (JPEG2000Lossless, jpeg_2000_frame(end=b""), "cut short"),
        (JPEGBaseline8Bit, jpeg_frame(0xC0), "damaged"),
        (JPEGLSLossless, jpeg_frame(0xF7), "damaged"),
        (JPEG2000Lossless, jpeg_2000_frame(), "damaged"),
        (JPEG2000Lossless, b"no codestream at all", "codestream"),
        (JPEGBaseline8Bit, b"\xff\xd8", "codestream"),
        (JPEGBaseline8Bit, b"\xff\xd8" + b"\xff" * 100, "codestream"),
        (RLELossless, b"\0" * 64, "0 RLE segments instead of 1"),
        (RLELossless, struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x07", "damaged"),
        (RLELossless, b"short", "damaged"),
    ],
)
def test_a_codestream_that_lies_is_refused_before_it_is_decoded(
    syntax: UID, frame: bytes, reason: str, tmp_path: Path
) -> None:
    dataset = compressed_dataset(frame + b"\0" * (len(frame) % 2), ramp(8), syntax)

    assert reason in refusal(saved(dataset, tmp_path))


def test_scans_without_end_are_not_decoded(tmp_path: Path) -> None:
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x00\x00"
    frame = jpeg_frame(0xC2).replace(scan, scan * 65)

    assert "more than 64 scans" in refusal(
        saved(compressed_dataset(frame, ramp(8), JPEGBaseline8Bit), tmp_path)
    )


def test_an_rle_bomb_fills_no_more_than_the_film(tmp_path: Path) -> None:
    frame = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x07" * 20_000  # 2.5 MB of runs for 480 pixels
    path = saved(compressed_dataset(frame, ramp(8), RLELossless, PixelPaddingValue=1), tmp_path)
    tracemalloc.start()
    try:
        film = decode(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert film.pixels.shape == (24, 20)
    assert peak < 2_000_000


def test_a_disk_that_fails_is_no_fault_of_the_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film_file(tmp_path, ramp(12))

    def broken(*_: Any, **__: Any) -> None:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr("worker.decode.stored_values", broken)

    with pytest.raises(OSError, match="Input/output"):
        decode(path)


def test_a_film_too_large_for_the_memory_limit_is_undecodable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("worker.decode.stored_values", exhausted)

    assert "memory" in refusal(film_file(tmp_path, ramp(12)))


def test_sigmoid_of_extreme_values_overflows_nowhere(tmp_path: Path) -> None:
    window = {"WindowCenter": 0, "WindowWidth": 0.001, "VOILUTFunction": "SIGMOID"}

    film = decode(film_file(tmp_path, ramp(16, signed=True), **window))

    assert math.isclose(seen(film).min(), 0)
    assert math.isclose(seen(film).max(), 1)
