from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import JPEGBaseline8Bit, SecondaryCaptureImageStorage

from tests.unit.worker.reports import (
    AT,
    COLUMNS,
    MODEL,
    NEGATIVE,
    POSITIVE,
    ROWS,
    STUDY,
    activation,
    as_read,
    complaints,
    context,
    encoded,
    film,
    header,
    image,
    minimal_header,
    reread,
)
from worker import heatmap
from worker.colours import OPACITY, overlay, overlay_png
from worker.contour import area, resampled
from worker.heatmap import build_heatmap, contour, plain_of
from worker.picture import png
from worker.structured_report import ImageResult, ReportContext


def of_the_map(*images: ImageResult) -> ReportContext:
    series = f"{STUDY}.9002"
    return replace(context(*images), series_instance_uid=series, sop_instance_uid=f"{series}.1")


def build(shown: ImageResult) -> Dataset:
    return build_heatmap(shown, of_the_map(shown))


def corner(rows: int, columns: int) -> NDArray[np.float32]:
    """A map with one bright square: the right fifth of the width, the upper fifth of the height."""
    cells = np.zeros((rows, columns), np.float32)
    cells[: rows // 5, -columns // 5 :] = 1
    return cells


def test_bright_corner_is_outlined_at_the_same_place_on_the_film() -> None:
    (outline,) = contour(corner(50, 40), ROWS, COLUMNS)
    assert outline[:, 0].min() == pytest.approx(COLUMNS * 0.8, abs=COLUMNS * 0.01)
    assert outline[:, 0].max() == pytest.approx(COLUMNS, abs=0.5)
    assert outline[:, 1].min() == pytest.approx(0, abs=0.5)
    assert outline[:, 1].max() == pytest.approx(ROWS * 0.2, abs=ROWS * 0.01)
    assert area(outline) == pytest.approx(0.04 * ROWS * COLUMNS, rel=0.02)


def test_bright_corner_is_coloured_at_the_same_place_on_the_overlay() -> None:
    shown = film(500, 400)
    coloured = overlay(shown, corner(50, 40))
    assert (coloured.shape, coloured.dtype) == ((500, 400, 3), np.uint8)
    red_over_blue = coloured[..., 0].astype(int) - coloured[..., 2]
    assert red_over_blue[5:90, 330:395].min() > 60
    untouched = np.ones((500, 400), bool)
    untouched[:115, 305:] = False
    grey = np.repeat((shown >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(coloured[untouched], grey[untouched])


def test_bright_corner_stays_in_its_corner_of_the_secondary_capture() -> None:
    capture = build(image(POSITIVE, film=film(1024, 700), activation=corner(50, 40)))
    pixels = reread(capture).pixel_array.astype(int)
    height = round(capture.Columns * 1024 / 700)
    red_over_blue = pixels[..., 0] - pixels[..., 2]
    right, top = slice(round(capture.Columns * 0.83), None), slice(0, round(height * 0.17))
    assert red_over_blue[top, right].min() > 40
    assert abs(red_over_blue[: round(height * 0.95), : round(capture.Columns * 0.7)]).max() < 25


@pytest.mark.parametrize("shape", [(1024, 839), (700, 1024), (1024, 1024), (440, 440), (1024, 300)])
def test_secondary_capture_keeps_the_aspect_ratio_and_writes_below_the_film(shape: tuple[int, int]) -> None:
    white = np.full(shape, 65535, np.uint16)
    dark = np.zeros((16, 13), np.float32)
    capture = build(image(POSITIVE, film=white, activation=dark))
    assert max(capture.Rows, capture.Columns) <= 1024
    pixels = reread(capture).pixel_array
    height = int(np.argmax(pixels[:, 2, 0] < 128))  # where the white film ends and the black strip begins
    assert height / capture.Columns == pytest.approx(shape[0] / shape[1], rel=0.01)
    assert pixels[: height - 8].min() > 245
    assert pixels[height + 8 :, :3].max() < 30
    assert pixels[height + 8 :].max() > 200


def test_legend_says_verdict_disclaimer_and_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    wrapped = heatmap._wrapped
    monkeypatch.setattr(heatmap, "_wrapped", lambda text, *rest: drawn.append(text) or wrapped(text, *rest))
    build(image(POSITIVE))
    assert "AI: pneumonia PRESENT (score 87.3 %, threshold 50 %)" in drawn
    assert "AI result, not for primary diagnosis. Research use only." in drawn
    assert any(text.startswith("Limits: outside the validated population") for text in drawn)


def test_long_limits_leave_room_for_the_film() -> None:
    wordy = replace(POSITIVE, flags=tuple(f"limit number {n} with quite a few words" for n in range(40)))
    capture = build(image(wordy, film=film(1024, 400)))
    pixels = reread(capture).pixel_array
    assert np.argmax(pixels[:, 2, 0] < 16) > 0.6 * capture.Rows


def test_secondary_capture_says_what_it_is_and_what_it_was_made_from() -> None:
    capture = build(image(POSITIVE))
    assert capture.SOPClassUID == SecondaryCaptureImageStorage
    assert list(capture.ImageType) == ["DERIVED", "SECONDARY"]
    assert (capture.Modality, capture.ConversionType) == ("OT", "WSD")
    assert (capture.SeriesNumber, capture.SeriesInstanceUID) == (9002, f"{STUDY}.9002")
    assert capture.SeriesDescription.startswith("AI Pneumonia heatmap")
    assert (capture.BurnedInAnnotation, capture.BodyPartExamined) == ("NO", "CHEST")
    (source,) = capture.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == f"{STUDY}.1.1"
    assert source.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    assert MODEL.name in capture.DerivationDescription
    assert list(capture.PatientOrientation) == ["L", "F"]
    written = capture.DateOfSecondaryCapture, capture.TimeOfSecondaryCapture, capture.SeriesTime
    assert [str(value) for value in written] == ["20261123", "093015", "093015"]


def test_secondary_capture_is_a_small_baseline_jpeg_that_says_it_is_lossy() -> None:
    capture = build(image(POSITIVE))
    assert capture.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
    assert capture.PhotometricInterpretation == "YBR_FULL_422"
    assert capture.LossyImageCompression == "01"
    assert capture.LossyImageCompressionMethod == "ISO_10918_1"
    (frame,) = generate_frames(capture.PixelData, number_of_frames=1)
    uncompressed = capture.Rows * capture.Columns * 3
    assert float(capture.LossyImageCompressionRatio) == pytest.approx(uncompressed / len(frame), rel=0.01)
    assert b"\xff\xc0" in frame  # the baseline process
    assert len(encoded(capture)) < 400_000
    with Image.open(BytesIO(frame)) as decoded:
        assert decoded.size == (capture.Columns, capture.Rows)


def test_lossy_steps_of_the_source_stay_on_record() -> None:
    source = header(
        LossyImageCompression="01",
        LossyImageCompressionRatio=10,
        LossyImageCompressionMethod="ISO_15444_1",
    )
    capture = build(image(POSITIVE, source))
    assert list(capture.LossyImageCompressionMethod) == ["ISO_15444_1", "ISO_10918_1"]
    assert capture.LossyImageCompressionRatio[0] == 10


def test_burned_in_annotation_of_the_source_is_not_denied() -> None:
    assert build(image(POSITIVE, header(BurnedInAnnotation="YES"))).BurnedInAnnotation == "YES"


def test_patient_study_and_times_are_those_of_the_source() -> None:
    source = as_read(header(TimezoneOffsetFromUTC="-0330"))
    capture = reread(build(image(POSITIVE, source)))
    for keyword in ("PatientName", "PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyInstanceUID"):
        assert capture[keyword].value == source[keyword].value, keyword
    assert capture.TimezoneOffsetFromUTC == "-0330"
    assert (capture.ContentDate, capture.ContentTime) == ("20261123", "050015")


@pytest.mark.parametrize("orientation", [None, ["L"], ["L", "F"]])
def test_dciodvfy_finds_nothing_to_say_about_a_heat_map(
    orientation: list[str] | None, tmp_path: Path
) -> None:
    assert complaints(build(image(POSITIVE, header(PatientOrientation=orientation))), tmp_path) == []


def test_dciodvfy_finds_nothing_to_say_about_the_heat_map_of_a_minimal_header(tmp_path: Path) -> None:
    assert complaints(build(image(POSITIVE, minimal_header())), tmp_path) == []


def test_dciodvfy_finds_nothing_to_say_about_the_uncompressed_heat_map(tmp_path: Path) -> None:
    plain = plain_of(build(image(POSITIVE)), series_instance_uid="1.2.3", sop_instance_uid="1.2.4")
    assert complaints(plain, tmp_path) == []


@pytest.mark.parametrize("name", ["RG1_UNCR.dcm", "RG1_J2KR.dcm"])
def test_real_film_gets_a_valid_heat_map(name: str, tmp_path: Path) -> None:
    path = get_testdata_file(name, download=False)
    assert path, "pydicom-data is missing: pip install pydicom-data"
    assert complaints(build(image(POSITIVE, dcmread(path, stop_before_pixels=True))), tmp_path) == []


def test_building_the_same_heat_map_again_gives_the_same_bytes() -> None:
    assert encoded(build(image(POSITIVE))) == encoded(build(image(POSITIVE)))


def test_heat_map_of_a_negative_can_be_built_when_asked_for() -> None:
    assert build(image(NEGATIVE)).InstanceNumber == 1


@pytest.mark.parametrize("missing", ["film", "activation"])
def test_heat_map_without_its_parts_is_refused(missing: str) -> None:
    with pytest.raises(ValueError, match="needs a film and an activation map"):
        build(image(POSITIVE, **{missing: None}))


def test_outlines_are_closed_and_never_taken_for_a_rectangle() -> None:
    speck = np.zeros((9, 9), np.float32)
    speck[4, 4] = 1
    for cells in (speck, activation(), corner(50, 40), np.ones((3, 3), np.float32)):
        outlines = contour(cells, ROWS, COLUMNS)
        assert outlines
        for outline in outlines:
            assert 5 < len(outline) <= 97
            np.testing.assert_array_equal(outline[0], outline[-1])
            assert outline.min() >= 0
            assert (outline.max(axis=0) <= (COLUMNS, ROWS)).all()


def test_outlines_do_not_depend_on_the_scale_of_the_map() -> None:
    for whole, faint in zip(
        contour(activation(), ROWS, COLUMNS), contour(activation() * 0.25, ROWS, COLUMNS), strict=True
    ):
        np.testing.assert_allclose(whole, faint, atol=0.5)


def test_map_of_zeros_has_no_outline() -> None:
    assert contour(np.zeros((7, 7), np.float32), ROWS, COLUMNS) == []


def test_largest_region_is_outlined_first_and_specks_are_left_out() -> None:
    cells = np.zeros((100, 100), np.float32)
    cells[10:20, 10:20] = cells[50:90, 50:90] = cells[2, 97] = 1
    outlines = contour(cells, ROWS, COLUMNS)
    assert [round(area(line) / ROWS / COLUMNS, 2) for line in outlines] == [0.16, 0.01]


def test_map_is_resampled_from_edge_to_edge() -> None:
    cells = np.zeros((2, 2), np.float32)
    cells[0, 1] = 1
    fine = resampled(cells, 8, 6)
    assert fine.shape == (8, 6)
    assert fine[0, 5] > 0.9
    assert fine[7, 0] < 0.1


def test_film_becomes_a_grey_png_of_eight_bits_and_an_overlay_a_coloured_one() -> None:
    shown = film(60, 50)
    with (
        Image.open(BytesIO(png(shown))) as grey,
        Image.open(BytesIO(png(overlay(shown, activation())))) as rgb,
    ):
        assert (grey.mode, grey.size) == ("L", (50, 60))
        assert (rgb.mode, rgb.size) == ("RGB", (50, 60))
        np.testing.assert_array_equal(np.asarray(grey), shown >> 8)
        np.testing.assert_array_equal(np.asarray(rgb), overlay(shown, activation()))


def test_the_map_alone_laid_over_the_film_looks_as_in_the_heat_map() -> None:
    shown = film(512, 400)
    with Image.open(BytesIO(overlay_png(activation(), 512, 400))) as made:
        # As a browser enlarges it.
        enlarged = made.convert("RGBA").resize((400, 512), Image.Resampling.BILINEAR)
        layer = np.asarray(enlarged, np.float64)
    opacity = OPACITY * layer[..., 3:] / 255
    laid_over = (shown >> 8)[..., None] * (1 - opacity) + layer[..., :3] * opacity
    # The heat map rounds down in each of its two steps.
    assert np.abs(laid_over - overlay(shown, activation())).max() < 2.5


def test_time_of_the_context_is_the_only_clock() -> None:
    shown = image(POSITIVE)
    later = build_heatmap(shown, replace(of_the_map(shown), at=AT.replace(hour=10)))
    assert encoded(later) != encoded(build(shown))
    assert str(later.InstanceCreationTime) == "103015"
