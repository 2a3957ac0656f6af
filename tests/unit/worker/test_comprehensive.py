from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage

from tests.unit.worker.reports import (
    NEGATIVE,
    POSITIVE,
    STUDY,
    complaints,
    context,
    encoded,
    image,
    reread,
    second_revision,
    tool,
)
from worker.comprehensive import comprehensive_of
from worker.rendering import render_text
from worker.structured_report import ImageResult, Predecessor, build_structured_report
from worker.text_report import build_text_report

SERIES = f"{STUDY}.9008"


def stored(*images: ImageResult) -> Dataset:
    return reread(build_structured_report(images, context(*images)))


def copy_of(report: Dataset, *predecessors: Predecessor) -> Dataset:
    return comprehensive_of(
        report, series_instance_uid=SERIES, sop_instance_uid=f"{SERIES}.1", predecessors=predecessors
    )


def test_copy_differs_in_its_identity_and_in_nothing_else() -> None:
    report = stored(image(POSITIVE))
    copy = reread(copy_of(report))
    differing = {element.keyword for element in report if copy.get(element.tag) != element}
    assert differing == {"SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"}
    assert {element.keyword for element in copy} == {element.keyword for element in report}
    identity = copy.SOPClassUID, copy.SOPInstanceUID, copy.SeriesInstanceUID
    assert identity == (ComprehensiveSRStorage, f"{SERIES}.1", SERIES)
    meta = copy.file_meta
    assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) == identity[:2]
    assert render_text(copy) == render_text(report)


def test_copying_leaves_the_report_as_it_is() -> None:
    report = stored(image(POSITIVE))
    before = encoded(report)
    copy_of(report, Predecessor(ComprehensiveSRStorage, f"{SERIES}.0", SERIES))
    assert encoded(report) == before
    assert report.file_meta.MediaStorageSOPClassUID == Comprehensive3DSRStorage


def test_copy_replaces_copies_and_not_what_its_destination_never_saw() -> None:
    film = image(NEGATIVE)
    second = reread(build_structured_report([film], second_revision(film)))
    assert "PredecessorDocumentsSequence" in second
    assert "PredecessorDocumentsSequence" not in copy_of(second)
    copy = copy_of(second, Predecessor(ComprehensiveSRStorage, f"{SERIES}.0", SERIES))
    (replaced,) = copy.PredecessorDocumentsSequence
    assert replaced.StudyInstanceUID == STUDY
    (series,) = replaced.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == SERIES
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == f"{SERIES}.0"


def test_copying_again_gives_the_same_bytes_from_a_file_or_from_memory() -> None:
    film = image(POSITIVE)
    built = build_structured_report([film], context(film))
    assert encoded(copy_of(built)) == encoded(copy_of(reread(built))) == encoded(copy_of(reread(built)))


@pytest.mark.parametrize("result", [POSITIVE, NEGATIVE])
def test_dciodvfy_finds_nothing_to_say_about_a_copy(result: object, tmp_path: Path) -> None:
    assert complaints(copy_of(stored(image(result))), tmp_path) == []  # type: ignore[arg-type]


def test_dsr2html_shows_finding_and_verdict_of_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "report.dcm"
    path.write_bytes(encoded(copy_of(stored(image(POSITIVE)))))
    page = tool("dsr2html", "dcmtk", str(path)).stdout
    assert "Pneumonia" in page
    assert "AI: pneumonia PRESENT" in page


def test_content_in_three_dimensions_is_refused() -> None:
    report = stored(image(POSITIVE))
    outline = Dataset()
    outline.ValueType = "SCOORD3D"
    report.ContentSequence[-1].ContentSequence.append(outline)
    with pytest.raises(ValueError, match="no place for SCOORD3D"):
        copy_of(report)


def test_only_a_comprehensive_3d_sr_is_copied() -> None:
    film = image(NEGATIVE)
    text = dcmread(BytesIO(encoded(build_text_report([film], context(film)))))
    with pytest.raises(ValueError, match="only a Comprehensive 3D SR"):
        copy_of(text)
