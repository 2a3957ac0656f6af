import os
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedSRStorage, ExplicitVRLittleEndian

from service.core.content_tree import content_tree
from tests.unit.worker.reports import (
    LATERAL,
    LIMIT,
    MODEL,
    NEGATIVE,
    OPEN,
    POSITIVE,
    STUDY,
    complaints,
    encoded,
    header,
    image,
    minimal_header,
    of_series,
    reread,
    second_revision,
    tool,
)
from worker import wording
from worker.rendering import render_text
from worker.structured_report import ImageResult
from worker.text_report import build_text_report

GOLDEN = Path(__file__).parents[2] / "golden" / "sr"
# The tests' conftest clears HILUM_ variables, hence --noconftest.
REWRITE = (
    "HILUM_REWRITE_GOLDEN=1 .venv/bin/python -m pytest --noconftest -k golden "
    "tests/unit/worker/test_text_report.py"
)

LATERAL_VIEW = image(LATERAL, header(2, ViewPosition="LL"))


def build(*images: ImageResult) -> Dataset:
    return build_text_report(images, of_series(9003, *images))


REPORTS = {
    "text": lambda: build(image(POSITIVE), LATERAL_VIEW),
    "negative": lambda: build(image(NEGATIVE)),
    "open": lambda: build(image(OPEN)),
    "revision": lambda: build_text_report([image(NEGATIVE)], second_revision(image(NEGATIVE))),
    "minimal-header": lambda: build(image(POSITIVE, minimal_header())),
    "not-analysed": lambda: build(LATERAL_VIEW),
    "two-not-analysed": lambda: build(
        LATERAL_VIEW, image(LATERAL, header(3, SeriesInstanceUID=f"{STUDY}.3"))
    ),
}


def texts(report: Dataset) -> list[str]:
    return [item.value for item in content_tree(report) if item.value_type == "TEXT"]


def evidence(report: Dataset) -> set[str]:
    return {
        reference.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for reference in series.ReferencedSOPSequence
    }


def test_text_report_says_the_verdict_before_anything_else() -> None:
    said = [text for text in texts(REPORTS["text"]()) if "pneumonia" in text]
    assert said[0] == (
        "AI: pneumonia PRESENT (score 87.3 %, threshold 50 %). Research use only, not for diagnosis. "
        "1 of 2 images analysed."
    )


def test_text_report_says_pattern_limits_images_and_network() -> None:
    said = texts(REPORTS["text"]())
    assert "Pattern: bacterial, from the film alone (no microbiology)." in said
    assert f"Limit: {LIMIT}." in said
    assert any(text.startswith("Image 1 of 2 (series 1, image 1): AI: pneumonia PRESENT") for text in said)
    assert "Image 2 of 2 (series 1, image 2) not analysed: view position LATERAL." in said
    assert f"Network: {MODEL.name} {MODEL.version} (weights SHA-256 {MODEL.sha256})." in said


def test_no_line_of_a_finding_is_longer_than_a_viewer_shows() -> None:
    # OHIF 3.12 wraps no Finding and cuts off what does not fit.
    findings = [text for text in texts(REPORTS["text"]()) if text.startswith("Image ")]
    first, *others = findings[0].split("\r\n")
    assert first.endswith("AI: pneumonia PRESENT (score 87.3 %, threshold 50 %).")
    assert others[0] == "Research use only, not for diagnosis."
    assert f"Limit: {LIMIT}." in others
    assert others[-4:] == [
        "age 64 Y, outside of the validated 1 to 5 Y",
        "sex M",
        "view PA, outside of the validated AP",
        "scanner Example Imaging DR-1",
    ]
    assert max(len(line) for text in findings for line in text.split("\r\n")) <= 100


def test_text_report_is_a_diagnostic_imaging_report_by_its_template() -> None:
    report = REPORTS["text"]()
    title = report.ConceptNameCodeSequence[0]
    assert (title.CodeValue, title.CodeMeaning) == ("18748-4", "Diagnostic Imaging Report")
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "2000"


def test_study_without_an_analysed_image_gets_a_note_that_no_one_takes_for_a_reading() -> None:
    note = REPORTS["not-analysed"]()
    title = note.ConceptNameCodeSequence[0]
    assert (title.CodeValue, title.CodingSchemeDesignator) == ("75490-3", "LN")
    assert "ContentTemplateSequence" not in note
    said = texts(note)
    assert any(
        text.startswith("AI: NOT ANALYSED (view position LATERAL). Research use only, not for diagnosis.")
        for text in said
    )
    assert wording.NOT_ASSESSED in said
    assert "does not mean that it is normal" in wording.NOT_ASSESSED
    assert "Image 1 of 1 (series 1, image 2) not analysed: view position LATERAL." in said
    assert not any(word in text for text in said for word in ("ABSENT", "PRESENT"))


def test_note_names_each_image_with_its_reason() -> None:
    said = texts(REPORTS["two-not-analysed"]())
    assert sum("not analysed: view position LATERAL." in text for text in said) == 2
    assert evidence(REPORTS["two-not-analysed"]()) == {f"{STUDY}.1.2", f"{STUDY}.1.3"}


def test_note_is_known_by_the_first_letters_of_its_series() -> None:
    note, report = REPORTS["not-analysed"](), REPORTS["text"]()
    assert "NOT ANALYSED" in note.SeriesDescription[:22]
    assert report.SeriesDescription.startswith("AI Pneumonia text")
    assert {note.SeriesNumber, report.SeriesNumber} == {9003, 9004}


def test_every_image_is_evidence_and_a_number_is_inferred_from_its_image() -> None:
    report = REPORTS["text"]()
    assert evidence(report) == {f"{STUDY}.1.1", f"{STUDY}.1.2"}
    (reference,) = [item.value for item in content_tree(report) if item.value_type == "IMAGE"]
    assert reference.endswith(f"{STUDY}.1.1")


@pytest.mark.parametrize("name", REPORTS)
def test_every_item_of_a_text_report_has_a_name(name: str) -> None:
    # A viewer reads the name of each item without asking (OHIF 3.12).
    assert all(item.name for item in content_tree(REPORTS[name]()))


@pytest.mark.parametrize("name", REPORTS)
def test_text_report_is_complete_unverified_and_preliminary(name: str) -> None:
    report = REPORTS[name]()
    assert report.SOPClassUID == EnhancedSRStorage
    assert report.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    flags = report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag
    assert flags == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")


def test_revision_of_a_text_report_names_what_it_replaces() -> None:
    report = REPORTS["revision"]()
    assert any(
        text.startswith("Revision 2, replaces revision 1. AI: pneumonia ABSENT") for text in texts(report)
    )
    series = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == f"{STUDY}.9001.1"


@pytest.mark.parametrize("name", REPORTS)
def test_building_the_same_text_report_again_gives_the_same_bytes(name: str) -> None:
    assert encoded(REPORTS[name]()) == encoded(REPORTS[name]())


@pytest.mark.parametrize("name", REPORTS)
def test_dciodvfy_finds_nothing_to_say_about_a_text_report(name: str, tmp_path: Path) -> None:
    assert complaints(REPORTS[name](), tmp_path) == []


@pytest.mark.parametrize("program", ["dsr2html", "dsrdump"])
@pytest.mark.parametrize(
    ("name", "said"), [("text", "AI: pneumonia PRESENT"), ("not-analysed", "AI: NOT ANALYSED")]
)
def test_dcmtk_shows_the_verdict_of_a_text_report(program: str, name: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "report.dcm"
    path.write_bytes(encoded(REPORTS[name]()))
    long_texts = ["+Pl"] if program == "dsrdump" else []
    assert said in tool(program, "dcmtk", *long_texts, str(path)).stdout


def test_times_of_a_text_report_are_on_the_clock_of_the_source() -> None:
    report = build(image(NEGATIVE, header(TimezoneOffsetFromUTC="-0330")))
    assert (str(report.ContentTime), report.TimezoneOffsetFromUTC) == ("050015", "-0330")


def test_text_report_without_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        build_text_report([], of_series(9003, image(NEGATIVE)))


@pytest.mark.parametrize("name", ["text", "not-analysed"])
def test_text_report_reads_as_its_golden_tree(name: str) -> None:
    tree = render_text(reread(REPORTS[name]()))
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("HILUM_REWRITE_GOLDEN") == "1":
        golden.write_text(tree, encoding="utf-8")
    assert tree == golden.read_text(encoding="utf-8"), f"if it is meant so: {REWRITE}"
