from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, GrayscaleSoftcopyPresentationStateStorage

from tests.unit.worker.reports import (
    COLUMNS,
    LATERAL,
    NEGATIVE,
    OPEN,
    POSITIVE,
    ROWS,
    STUDY,
    activation,
    as_read,
    complaints,
    encoded,
    header,
    image,
    minimal_header,
    of_series,
    reread,
    tool,
)
from worker.contour import contour
from worker.presentation_state import build_presentation_state
from worker.structured_report import ImageResult

SMALL = {"Rows": 2000, "Columns": 1500, "ImagerPixelSpacing": [0.2, 0.1]}


def build(*images: ImageResult) -> Dataset:
    return build_presentation_state(images, of_series(9005, *images))


def annotations(state: Dataset, layer: str, number: int = 1) -> list[Dataset]:
    return [
        item
        for item in state.GraphicAnnotationSequence
        if item.GraphicLayer == layer
        and item.ReferencedImageSequence[0].ReferencedSOPInstanceUID == f"{STUDY}.1.{number}"
    ]


def shown(state: Dataset) -> list[str]:
    return [
        reference.ReferencedSOPInstanceUID.removeprefix(f"{STUDY}.1.")
        for series in state.ReferencedSeriesSequence
        for reference in series.ReferencedImageSequence
    ]


def ramp(photometric_interpretation: str, shape: str) -> Dataset:
    """A film of one shade a column, from the lowest stored value at the left to the highest."""
    film = header(
        PhotometricInterpretation=photometric_interpretation,
        PresentationLUTShape=shape,
        SamplesPerPixel=1,
        BitsAllocated=16,
        BitsStored=12,
        HighBit=11,
        PixelRepresentation=0,
        Rows=64,
        Columns=64,
        WindowCenter=2048,
        WindowWidth=4096,
    )
    film.PixelData = np.repeat(np.linspace(0, 4095, 64).astype("<u2")[None], 64, 0).tobytes()
    film["PixelData"].VR = "OW"
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return film


def rendered(film: Dataset, state: Dataset, folder: Path) -> NDArray[np.uint8]:
    """What dcmtk makes of the film under the presentation state."""
    paths = [str(folder / name) for name in ("state.dcm", "film.dcm", "film.pgm")]
    for path, dataset in zip(paths, (state, film), strict=False):
        Path(path).write_bytes(encoded(dataset))
    tool("dcmp2pgm", "dcmtk", "-p", *paths)
    with Image.open(paths[2]) as picture:
        return np.asarray(picture)


def test_positive_is_outlined_where_the_report_outlines_it() -> None:
    (annotation,) = annotations(build(image(POSITIVE)), "AI HEATMAP")
    outlines = contour(activation(), ROWS, COLUMNS)
    assert len(annotation.GraphicObjectSequence) == len(outlines)
    drawn = annotation.GraphicObjectSequence[0]
    assert (drawn.GraphicType, drawn.GraphicAnnotationUnits, drawn.GraphicFilled) == (
        "POLYLINE",
        "PIXEL",
        "N",
    )
    points = np.array(drawn.GraphicData).reshape(-1, 2)
    np.testing.assert_allclose(points, outlines[0], atol=0.01)
    np.testing.assert_array_equal(points[0], points[-1])


@pytest.mark.parametrize("result", [NEGATIVE, OPEN])
def test_only_a_positive_is_outlined(result: Any) -> None:
    assert annotations(build(image(result)), "AI HEATMAP") == []


def test_verdict_stands_on_every_analysed_film_inside_it() -> None:
    state = build(image(POSITIVE), image(NEGATIVE, header(2, **SMALL)))
    for number, word, columns, rows in ((1, "PRESENT", COLUMNS, ROWS), (2, "ABSENT", 1500, 2000)):
        (annotation,) = annotations(state, "AI VERDICT", number)
        (text,) = annotation.TextObjectSequence
        assert f"AI: pneumonia {word}" in text.UnformattedTextValue
        assert "Research use only, not for diagnosis." in text.UnformattedTextValue
        left, top = text.BoundingBoxTopLeftHandCorner
        right, bottom = text.BoundingBoxBottomRightHandCorner
        assert 0 < left < right < columns
        assert 0 < top < bottom < rows


def test_whole_area_of_each_film_is_displayed_in_its_own_shape() -> None:
    state = build(image(POSITIVE), image(NEGATIVE, header(2, **SMALL)))
    first, second = state.DisplayedAreaSelectionSequence
    assert list(first.DisplayedAreaBottomRightHandCorner) == [COLUMNS, ROWS]
    assert list(second.DisplayedAreaBottomRightHandCorner) == [1500, 2000]
    assert list(second.PresentationPixelSpacing) == [0.2, 0.1]
    assert second.ReferencedImageSequence[0].ReferencedSOPInstanceUID == f"{STUDY}.1.2"
    assert {area.PresentationSizeMode for area in (first, second)} == {"SCALE TO FIT"}


@pytest.mark.parametrize(("ratio", "stated"), [(None, [1, 1]), ([4, 3], [4, 3]), ([0, 3], [1, 1])])
def test_film_without_a_scale_has_the_shape_of_its_pixels(ratio: list[int] | None, stated: list[int]) -> None:
    state = build(image(NEGATIVE, header(ImagerPixelSpacing=None, PixelAspectRatio=ratio)))
    (area,) = state.DisplayedAreaSelectionSequence
    assert list(area.PresentationPixelAspectRatio) == stated
    assert "PresentationPixelSpacing" not in area


def test_first_window_of_each_film_is_kept() -> None:
    state = build(
        image(POSITIVE, header(WindowCenter=[2000, 300], WindowWidth=[4000, 100], VOILUTFunction="SIGMOID")),
        image(NEGATIVE, header(2, WindowCenter=1000, WindowWidth=0)),
    )
    (item,) = state.SoftcopyVOILUTSequence
    assert (item.WindowCenter, item.WindowWidth, item.VOILUTFunction) == (2000, 4000, "SIGMOID")
    assert item.ReferencedImageSequence[0].ReferencedSOPInstanceUID == f"{STUDY}.1.1"


def test_voi_lut_goes_before_the_window_and_survives_an_implicit_source(tmp_path: Path) -> None:
    lut = Dataset()
    lut.add_new("LUTDescriptor", "US", [4, 0, 12])
    lut.add_new("LUTData", "US", [0, 100, 1000, 4095])
    source = header(VOILUTSequence=[lut], WindowCenter=1, WindowWidth=2)
    implicit = BytesIO()
    source.save_as(implicit, implicit_vr=True, little_endian=True)
    implicit.seek(0)
    state = reread(build(image(NEGATIVE, dcmread(implicit, force=True))))
    (item,) = state.SoftcopyVOILUTSequence
    kept = item.VOILUTSequence[0]
    assert list(kept.LUTDescriptor) == [4, 0, 16]
    entries = np.frombuffer(kept.LUTData, "<u2")
    np.testing.assert_allclose(entries / 65535, np.array([0, 100, 1000, 4095]) / 4095, atol=1e-5)
    assert "WindowCenter" not in item
    assert complaints(state, tmp_path) == []


def test_malformed_voi_lut_gives_way_to_the_window() -> None:
    lut = Dataset()
    lut.add_new("LUTDescriptor", "US", [4, 0, 12])
    state = build(image(NEGATIVE, header(VOILUTSequence=[lut], WindowCenter=10, WindowWidth=20)))
    (item,) = state.SoftcopyVOILUTSequence
    assert (item.WindowCenter, item.WindowWidth) == (10, 20)


def test_modality_lut_of_a_signed_film_is_kept(tmp_path: Path) -> None:
    lut = Dataset()
    lut.add_new("LUTDescriptor", "SS", [3, -1, 16])
    lut.add_new("LUTData", "US", [7, 8, 60000])
    lut.ModalityLUTType = "OD"
    state = reread(build(image(NEGATIVE, header(ModalityLUTSequence=[lut], PixelRepresentation=1))))
    (kept,) = state.ModalityLUTSequence
    assert (list(kept.LUTDescriptor), kept.ModalityLUTType) == ([3, -1, 16], "OD")
    assert np.frombuffer(kept.LUTData, "<u2").tolist() == [7, 8, 60000]
    assert complaints(state, tmp_path) == []


@pytest.mark.parametrize(
    ("photometric_interpretation", "shape"), [("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY")]
)
def test_dcmtk_shows_the_film_with_its_own_polarity(
    photometric_interpretation: str, shape: str, tmp_path: Path
) -> None:
    film = ramp(photometric_interpretation, shape)
    state = build(image(NEGATIVE, as_read(film)))
    assert state.PresentationLUTShape == shape
    shades = rendered(film, state, tmp_path)[32]
    ends = (255, 0) if shape == "INVERSE" else (0, 255)
    assert (shades[0], shades[-1]) == ends


def test_film_that_needs_another_modality_lut_is_left_out_and_counted() -> None:
    other = {"RescaleSlope": 2, "RescaleIntercept": -1024, "RescaleType": "US"}
    state = build(
        image(POSITIVE, header(1, **other)),
        image(NEGATIVE, header(2)),
        image(NEGATIVE, header(3, RescaleSlope=1, RescaleIntercept=0)),
    )
    assert shown(state) == ["1"]  # the conclusion is about it
    assert state.ContentDescription == "AI pneumonia, 1 of 3 images shown"
    assert (state.RescaleSlope, state.RescaleIntercept) == (2, -1024)


def test_identity_modality_lut_is_none() -> None:
    state = build(
        image(POSITIVE, header(RescaleSlope=1, RescaleIntercept=0, RescaleType="US")),
        image(NEGATIVE, header(2)),
    )
    assert shown(state) == ["1", "2"]
    assert "RescaleSlope" not in state


def test_shutter_of_the_films_is_kept_when_they_share_it(tmp_path: Path) -> None:
    shutter = {
        "ShutterShape": "RECTANGULAR",
        "ShutterLeftVerticalEdge": 10,
        "ShutterRightVerticalEdge": 2000,
        "ShutterUpperHorizontalEdge": 10,
        "ShutterLowerHorizontalEdge": 2400,
    }
    state = build(image(POSITIVE, header(**shutter)))
    assert (state.ShutterShape, state.ShutterRightVerticalEdge) == ("RECTANGULAR", 2000)
    assert complaints(state, tmp_path) == []
    assert "ShutterShape" not in build(image(POSITIVE, header(**shutter)), image(NEGATIVE, header(2)))


def test_films_without_a_number_are_not_referred_to() -> None:
    state = build(image(LATERAL, header(1)), image(NEGATIVE, header(2)))
    assert shown(state) == ["2"]
    assert state.ContentDescription == "AI pneumonia, 1 of 2 images shown"


def test_presentation_state_says_what_it_is_in_its_own_series() -> None:
    state = build(image(POSITIVE))
    assert state.SOPClassUID == GrayscaleSoftcopyPresentationStateStorage
    assert (state.Modality, state.SeriesNumber, state.SeriesInstanceUID) == ("PR", 9005, f"{STUDY}.9005")
    assert (str(state.PresentationCreationDate), str(state.PresentationCreationTime)) == (
        "20261123",
        "093015",
    )
    assert state.ContentLabel == "AI_PNEUMONIA"


def test_building_the_same_presentation_state_again_gives_the_same_bytes() -> None:
    assert encoded(build(image(POSITIVE))) == encoded(build(image(POSITIVE)))


@pytest.mark.parametrize("source", [header(), minimal_header(), header(PatientOrientation=None)])
def test_validators_find_nothing_to_say_about_a_presentation_state(source: Dataset, tmp_path: Path) -> None:
    state = build(image(POSITIVE, source), image(NEGATIVE, header(2, **SMALL)))
    assert complaints(state, tmp_path) == []
    if state.PatientName:  # dcmpschk takes its absence in the source for a fault
        run = tool("dcmpschk", "dcmtk", str(tmp_path / "object.dcm"))
        assert "Test passed" in run.stdout + run.stderr


def test_presentation_state_without_an_analysed_image_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one analysed image"):
        build(image(LATERAL))


def test_source_of_a_presentation_state_is_left_as_it_is() -> None:
    source = as_read(header(WindowCenter=[1, 2], WindowWidth=[3, 4]))
    before = source.to_json()
    build(image(POSITIVE, source))
    assert source.to_json() == before
