"""The document of what a reader says: which result, what became of it, by whom."""

from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import EnhancedSRStorage

from service.core.content_tree import content_tree
from service.core.results import Finding
from service.core.states import Assessment
from tests.unit.worker.reports import (
    LATERAL,
    NEGATIVE,
    POSITIVE,
    STUDY,
    complaints,
    context,
    encoded,
    header,
    image,
    of_series,
    reading,
    reread,
    tool,
)
from worker import codes
from worker.assessment import build_assessment
from worker.document import build_document
from worker.report_context import Predecessor
from worker.structured_report import build_structured_report
from worker.text_report import build_text_report


def report(source: Dataset | None = None) -> Dataset:
    film = image(POSITIVE, source)
    return reread(build_structured_report([film], context(film)), stop_before_pixels=True)


def build(*assessed: Dataset, predecessors: tuple[Predecessor, ...] = (), **said: Any) -> Dataset:
    made = of_series(9008, image(POSITIVE), predecessors=predecessors)
    return build_assessment(assessed or [report()], reading(POSITIVE, **said), made)


def said(document: Dataset, concept: Code) -> list[str]:
    return [item.value for item in content_tree(document) if item.says(concept)]


@pytest.mark.parametrize(
    ("assessment", "own", "status", "presence"),
    [
        (Assessment.AGREE, None, "Accepted", ["Present (52101004, SCT)"]),
        (Assessment.DISAGREE, Finding.ABSENT, "Modified", ["Absent (272519000, SCT)"]),
        (Assessment.DISAGREE, None, "Rejected", []),
        (Assessment.UNSURE, None, "Undecided", []),
        (Assessment.UNSURE, Finding.INDETERMINATE, "Undecided", ["Undetermined (373068000, SCT)"]),
        (Assessment.NOT_USABLE, None, "Rejected", []),
    ],
)
def test_document_says_what_became_of_the_result(
    assessment: Assessment, own: Finding | None, status: str, presence: list[str], tmp_path: Path
) -> None:
    document = build(assessment=assessment, own_finding=own)
    assert said(document, codes.ASSESSMENT) == [f"{status} ({status.lower()}, 99HILUM)"]
    assert said(document, codes.PRESENCE) == presence
    assert bool(said(document, codes.REASON_FOR_ASSESSMENT)) is (assessment is Assessment.NOT_USABLE)
    assert complaints(document, tmp_path) == []


def test_document_names_the_report_and_the_reader() -> None:
    document = build(note="Left base.\nSeen with Dr. B.")
    assert document.SOPClassUID == EnhancedSRStorage
    assert said(document, codes.AI_RESULT_ASSESSED) == [f"Comprehensive 3D SR Storage, {STUDY}.9001.1"]
    assert said(document, Code("121005", "DCM", "Observer Type")) == ["Person (121006, DCM)"]
    assert said(document, Code("121008", "DCM", "Person Observer Name")) == ["Dr. Eva Weber^"]
    (conclusion,) = said(document, codes.CONCLUSION)
    assert conclusion.startswith(
        "Dr. Eva Weber agrees with the AI result of revision 1 by hilum-chest-resnet 1.0.0: AI:"
    )
    assert "Research use only, not for diagnosis." in conclusion
    assert said(document, codes.COMMENT) == ["Note by Dr. Eva Weber: Left base.\nSeen with Dr. B."]
    (study,) = document.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    assert [item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence] == [f"{STUDY}.9001.1"]
    assert (document.CompletionFlag, document.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert (document.PatientID, document.AccessionNumber) == ("P-0815", "ACC-4711")
    assert (document.SeriesNumber, document.InstanceNumber) == (9008, 1)


def test_a_changed_mind_names_what_it_replaces(tmp_path: Path) -> None:
    before = Predecessor(EnhancedSRStorage, f"{STUDY}.9008.77", f"{STUDY}.9008")
    document = build(predecessors=(before,))
    (study,) = document.PredecessorDocumentsSequence
    (item,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert item.ReferencedSOPInstanceUID == f"{STUDY}.9008.77"
    assert complaints(document, tmp_path) == []


def test_a_note_that_says_not_analysed_can_be_assessed_too(tmp_path: Path) -> None:
    lateral = image(LATERAL)
    note = reread(build_text_report([lateral], of_series(9004, lateral)))
    own = reading(LATERAL, assessment=Assessment.DISAGREE, own_finding=Finding.ABSENT)
    document = build_assessment([note], own, of_series(9008, lateral))
    assert "AI: NOT ANALYSED (view position LATERAL)" in said(document, codes.CONCLUSION)[0]
    assert complaints(document, tmp_path) == []


@pytest.mark.parametrize("name", ["Weber^Eva=x\\y", "山田 太郎", "W" * 64])
def test_any_name_of_a_reader_is_a_legal_one(name: str, tmp_path: Path) -> None:
    document = build(reader=name)
    (written,) = said(reread(document), Code("121008", "DCM", "Person Observer Name"))
    assert written == f"{'Weber Eva x y' if name.startswith('Weber') else name[:63]}^"
    assert complaints(document, tmp_path) == []


def test_the_same_assessment_has_the_same_bytes() -> None:
    assert encoded(build(note="a")) == encoded(build(note="a"))


def test_documents_of_two_studies_are_not_assessed_together() -> None:
    other = report(header(StudyInstanceUID=f"{STUDY}.77"))
    with pytest.raises(ValueError, match="of one study"):
        build(report(), other)
    with pytest.raises(ValueError, match="of one study"):
        build_assessment([], reading(NEGATIVE), of_series(9008, image(NEGATIVE)))


def test_dsrdump_reads_the_document(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(encoded(build()))
    run = tool("dsrdump", "dcmtk", str(path))
    assert run.returncode == 0, run.stderr
    assert "AI Result Assessment" in run.stdout
    assert "Accepted" in run.stdout


LINK = "https://hilum.hospital.local/feedback/WyIxLjIiLDFd.aScBcQ." + "x" * 150


def test_each_form_of_the_report_carries_the_link_for_feedback_and_no_film_is_written_over() -> None:
    film, lateral = image(POSITIVE), image(LATERAL)
    made = reread(build_structured_report([film], context(film, feedback_url=LINK)))
    linked = f"Feedback on this result: {LINK}"
    items = [item for item in content_tree(made) if item.value == linked]
    # Below Qualitative Evaluations: a viewer writes the comments of a measurement group over the film.
    assert [(item.depth, item.says(codes.COMMENT)) for item in items] == [(2, True)]
    for images in ([film], [lateral]):
        text = reread(build_text_report(images, of_series(9003, *images, feedback_url=LINK)))
        assert linked in said(text, codes.CONCLUSION)
    page = build_document([film], of_series(9006, film, feedback_url=LINK))
    assert LINK.encode() in bytes(page.EncapsulatedDocument)  # as what a click opens
    without = build_document([film], of_series(9006, film))
    assert b"/URI" not in bytes(without.EncapsulatedDocument)


def test_a_report_with_a_link_is_valid(tmp_path: Path) -> None:
    film = image(POSITIVE)
    made = build_structured_report([film], context(film, feedback_url=LINK))
    assert complaints(made, tmp_path) == []
    assert complaints(build_document([film], of_series(9006, film, feedback_url=LINK)), tmp_path) == []
