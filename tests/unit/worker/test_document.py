from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage

from tests.unit.worker.reports import (
    LATERAL,
    LIMIT,
    MODEL,
    NEGATIVE,
    OPEN,
    POSITIVE,
    STUDY,
    as_read,
    complaints,
    encoded,
    header,
    image,
    minimal_header,
    of_series,
    tool,
)
from worker.document import build_document
from worker.page import NOT_PRINTABLE
from worker.structured_report import ImageResult

LATERAL_VIEW = image(LATERAL, header(2, ViewPosition="LL"))


def build(*images: ImageResult) -> Dataset:
    return build_document(images, of_series(9006, *images))


def pdf(document: Dataset) -> bytes:
    content: bytes = document.EncapsulatedDocument
    return content[: document.EncapsulatedDocumentLength]


def text(document: Dataset, folder: Path) -> str:
    """The words of the page, as a reader copies them."""
    path = folder / "page.pdf"
    path.write_bytes(pdf(document))
    return " ".join(tool("pdftotext", "poppler-utils", "-layout", str(path), "-").stdout.split())


def pictures(document: Dataset, folder: Path) -> list[list[str]]:
    """The pictures of the page: lines of pdfimages."""
    path = folder / "page.pdf"
    path.write_bytes(pdf(document))
    listed = tool("pdfimages", "poppler-utils", "-list", str(path)).stdout
    return [line.split() for line in listed.splitlines()[2:]]


def test_page_says_verdict_disclaimer_pattern_limits_and_network(tmp_path: Path) -> None:
    said = text(build(image(POSITIVE)), tmp_path)
    assert "AI: pneumonia PRESENT (score 87.3 %, threshold 50 %)" in said
    assert said.count("Research use only, not for diagnosis.") == 2
    assert "bacterial, from the film alone (no microbiology)." in said
    assert LIMIT in said
    assert f"{MODEL.name} {MODEL.version}" in said
    assert MODEL.sha256 in said
    assert "Preliminary: no physician has verified it." in said


@pytest.mark.parametrize("films", [1, 8])
def test_document_is_one_page(films: int, tmp_path: Path) -> None:
    wordy = replace(POSITIVE, flags=tuple(f"limit number {n} with quite a few words" for n in range(60)))
    path = tmp_path / "page.pdf"
    path.write_bytes(pdf(build(*[image(wordy, header(number + 1)) for number in range(films)])))
    assert "Pages:           1\n" in tool("pdfinfo", "poppler-utils", str(path)).stdout


def test_page_names_patient_and_study(tmp_path: Path) -> None:
    said = text(build(image(NEGATIVE)), tmp_path)
    for value in ("Müller, Jürgen", "P-0815", "1962-02-28", "ACC-4711", "2026-11-23"):
        assert value in said


def test_page_says_which_revision_it_is(tmp_path: Path) -> None:
    film = image(NEGATIVE)
    second = build_document([film], of_series(9006, film, revision=2))
    assert "Revision 2, replaces revision 1" in text(second, tmp_path)
    assert "replaces" not in text(build(film), tmp_path)


def test_page_of_a_study_that_was_not_analysed_says_so(tmp_path: Path) -> None:
    document = build(LATERAL_VIEW)
    said = text(document, tmp_path)
    assert "AI: NOT ANALYSED (view position LATERAL)" in said
    assert "This does not mean that it is normal" in said
    assert "Heat map" not in said
    assert document.ConceptNameCodeSequence[0].CodeMeaning == "Radiology Note"


def test_films_are_shown_side_by_side_and_only_a_positive_is_coloured(tmp_path: Path) -> None:
    document = build(image(POSITIVE), LATERAL_VIEW)
    first, second = pictures(document, tmp_path)
    assert (first[5], second[5]) == ("rgb", "gray")
    assert first[8] == second[8] == "jpeg"
    said = text(document, tmp_path)
    assert "Image 1 of 2 (series 1, image 1)" in said
    assert "Image 2 of 2 (series 1, image 2)" in said


def test_page_of_many_films_shows_six_with_the_positive_ones_among_them(tmp_path: Path) -> None:
    films = [image(NEGATIVE, header(number)) for number in range(1, 9)]
    films[7] = image(POSITIVE, header(8))
    document = build(*films)
    assert len(pictures(document, tmp_path)) == 6
    said = text(document, tmp_path)
    assert "Image 8 of 8" in said
    assert "2 more images are not shown here." in said


def test_film_without_a_picture_leaves_the_page_in_order(tmp_path: Path) -> None:
    document = build(image(NEGATIVE, film=None))
    assert pictures(document, tmp_path) == []
    assert "AI: pneumonia ABSENT" in text(document, tmp_path)


@pytest.mark.parametrize(
    ("character_set", "name", "drawn"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada, Tarou"),
        ("ISO_IR 144", "Люкceмбypг^Ольга", "Люкceмбypг, Ольга"),
        ("ISO_IR 100", "Müller-Lüdenscheidt^Jürgen^^Dr.^MdB", "Müller-Lüdenscheidt, Jürgen Dr. MdB"),
        ("ISO_IR 192", "Παπαδόπουλος^Γιώργος", "Παπαδόπουλος, Γιώργος"),
        ("ISO_IR 192", "王^小东=Wang^Xiaodong", "Wang, Xiaodong"),
        ("ISO_IR 192", "王^小东", NOT_PRINTABLE),
        ("ISO_IR 192", "קבלן^יוסי", NOT_PRINTABLE),
        ("ISO_IR 192", "MONONYM", "MONONYM"),
    ],
)
def test_name_is_drawn_whole_or_the_page_says_that_it_cannot(
    character_set: str | list[str], name: str, drawn: str, tmp_path: Path
) -> None:
    source = as_read(header(SpecificCharacterSet=character_set, PatientName=name, ReferringPhysicianName=""))
    assert drawn in text(build(image(NEGATIVE, source)), tmp_path)


def test_document_says_what_it_is_and_what_it_was_made_from() -> None:
    document = build(image(POSITIVE), LATERAL_VIEW)
    assert document.SOPClassUID == EncapsulatedPDFStorage
    assert (document.Modality, document.SeriesNumber) == ("DOC", 9006)
    assert document.MIMETypeOfEncapsulatedDocument == "application/pdf"
    assert document.BurnedInAnnotation == "YES"
    assert document.VerificationFlag == "UNVERIFIED"
    sources = [item.ReferencedSOPInstanceUID for item in document.SourceInstanceSequence]
    assert sources == [f"{STUDY}.1.1", f"{STUDY}.1.2"]
    assert pdf(document).startswith(b"%PDF-")
    assert pdf(document).rstrip().endswith(b"%%EOF")
    assert len(document.EncapsulatedDocument) % 2 == 0


def test_document_with_six_grainy_films_stays_small() -> None:
    grain = np.random.default_rng(0).integers(0, 65535, (1024, 1024), np.uint16)
    films = [image(POSITIVE, header(number), film=grain) for number in range(1, 7)]
    assert len(encoded(build(*films))) < 1_000_000


def test_wordy_limits_leave_the_page_in_order(tmp_path: Path) -> None:
    wordy = replace(OPEN, flags=tuple(f"limit number {n} with quite a few words" for n in range(60)))
    document = build(image(wordy))
    (picture,) = pictures(document, tmp_path)
    assert int(picture[4]) > 500
    said = text(document, tmp_path)
    assert "limit number 0" in said
    assert "…" in said  # more is left out, and the page shows it


@pytest.mark.parametrize("source", [header(), minimal_header()])
def test_dciodvfy_finds_nothing_to_say_about_a_document(source: Dataset, tmp_path: Path) -> None:
    assert complaints(build(image(POSITIVE, source)), tmp_path) == []
    assert complaints(build(image(LATERAL, source)), tmp_path) == []


def test_building_the_same_document_again_gives_the_same_bytes() -> None:
    assert encoded(build(image(POSITIVE))) == encoded(build(image(POSITIVE)))


def test_document_without_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        build_document([], of_series(9006, image(NEGATIVE)))
