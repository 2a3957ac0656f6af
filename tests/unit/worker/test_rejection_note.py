from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import KeyObjectSelectionDocumentStorage

from service.core.content_tree import content_tree
from tests.unit.worker.reports import (
    NEGATIVE,
    POSITIVE,
    STUDY,
    complaints,
    context,
    encoded,
    header,
    image,
    of_series,
    reread,
    tool,
)
from worker.heatmap import build_heatmap
from worker.rejection_note import build_rejection_note
from worker.structured_report import build_structured_report


def superseded(source: Dataset | None = None) -> list[Dataset]:
    """The headers of what the first revision sent."""
    film = image(POSITIVE, source)
    return [
        reread(build_structured_report([film], context(film)), stop_before_pixels=True),
        reread(build_heatmap(film, of_series(9002, film)), stop_before_pixels=True),
    ]


def build(rejected: list[Dataset]) -> Dataset:
    return build_rejection_note(rejected, of_series(9007, image(NEGATIVE), revision=2, instance_number=2))


def test_note_rejects_every_superseded_object_and_says_what_replaced_it() -> None:
    note = build(superseded())
    assert note.SOPClassUID == KeyObjectSelectionDocumentStorage
    items = list(content_tree(note))
    assert (items[0].name, items[0].name_code) == ("Rejected for Quality Reasons", ("113001", "DCM"))
    references = {item.value_type: item for item in items if item.value_type in ("IMAGE", "COMPOSITE")}
    assert references["COMPOSITE"].value.endswith(f"{STUDY}.9001.1")
    assert references["IMAGE"].value.endswith(f"{STUDY}.9002.1")
    assert any(
        item.value == "AI result superseded by revision 2. Use the newest revision only." for item in items
    )


def test_references_of_a_note_have_no_purpose() -> None:
    # TID 2010 forbids one.
    items = content_tree(build(superseded()))
    assert all(not item.name for item in items if item.value_type in ("IMAGE", "COMPOSITE"))


def test_evidence_of_a_note_finds_each_object_in_its_series() -> None:
    (study,) = build(superseded()).CurrentRequestedProcedureEvidenceSequence
    found = {
        series.SeriesInstanceUID: [item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence]
        for series in study.ReferencedSeriesSequence
    }
    assert found == {f"{STUDY}.9001": [f"{STUDY}.9001.1"], f"{STUDY}.9002": [f"{STUDY}.9002.1"]}


def test_note_has_its_own_series_and_the_number_of_the_revision() -> None:
    note = build(superseded())
    assert (note.SeriesNumber, note.SeriesInstanceUID, note.InstanceNumber) == (9007, f"{STUDY}.9007", 2)
    assert note.Modality == "KO"


def test_building_the_same_note_again_gives_the_same_bytes() -> None:
    assert encoded(build(superseded())) == encoded(build(superseded()))


def test_dciodvfy_finds_nothing_to_say_about_a_note(tmp_path: Path) -> None:
    assert complaints(build(superseded()), tmp_path) == []


def test_note_carries_the_order_and_the_clock_of_the_study(tmp_path: Path) -> None:
    order = Dataset()
    order.RequestedProcedureID = "RP-5"
    note = build(superseded(header(RequestAttributesSequence=[order], TimezoneOffsetFromUTC="-0330")))
    assert note.ReferencedRequestSequence[0].RequestedProcedureID == "RP-5"
    assert (str(note.ContentTime), note.TimezoneOffsetFromUTC) == ("050015", "-0330")
    assert complaints(note, tmp_path) == []


def test_dsrdump_names_the_title_of_a_note(tmp_path: Path) -> None:
    path = tmp_path / "note.dcm"
    path.write_bytes(encoded(build(superseded())))
    assert "Rejected for Quality Reasons" in tool("dsrdump", "dcmtk", str(path)).stdout


def test_note_about_nothing_or_about_two_studies_is_refused() -> None:
    strange = superseded(header(StudyInstanceUID=f"{STUDY}.77"))
    for rejected in ([], [*superseded(), *strange]):
        with pytest.raises(ValueError, match="one study"):
            build(rejected)
