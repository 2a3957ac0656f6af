from html.parser import HTMLParser

import pytest
from pydicom.dataset import Dataset

from service.core.content_tree import content_tree
from tests.unit.worker.reports import (
    LATERAL,
    LIMIT,
    MODEL,
    NEGATIVE,
    OPEN,
    POSITIVE,
    context,
    header,
    image,
    reread,
)
from worker.rendering import render_html, render_text
from worker.structured_report import ImageResult, build_structured_report


def report(*images: ImageResult) -> Dataset:
    return reread(build_structured_report(images, context(*images)))


class Page(HTMLParser):
    """What a browser would show, and what it would fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href", "action")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)


@pytest.mark.parametrize(
    ("result", "verdict", "number"),
    [
        (POSITIVE, "AI: pneumonia PRESENT (score 87.3 %, threshold 50 %).", "87.34 %, present"),
        (NEGATIVE, "AI: pneumonia ABSENT (score 7.2 %, threshold 50 %).", "7.21 %, absent"),
        (OPEN, "AI: pneumonia INDETERMINATE (score 47.1 %, threshold 50 %).", "47.12 %, undetermined"),
    ],
)
def test_page_of_a_report_says_title_verdict_number_and_model(result, verdict: str, number: str) -> None:
    page = Page(render_html(report(image(result))))
    # The title of the window, the heading, the verdict.
    assert page.text.startswith(f"Imaging Measurement Report Imaging Measurement Report {verdict}")
    assert "Research use only, not for diagnosis." in page.text
    assert f"Certainty of finding {number}" in page.text
    assert f"Name {MODEL.name} Version {MODEL.version} Weights SHA-256 {MODEL.sha256}" in page.text


def test_page_states_limits_and_what_was_not_analysed() -> None:
    page = Page(render_html(report(image(POSITIVE), image(LATERAL, header(2)))))
    stated = page.text.partition("Comments and limits")[2].partition("Algorithm")[0]
    assert f"Limit: {LIMIT}." in stated
    assert "Image 2 of 2 (series 1, image 2) not analysed: view position LATERAL." in stated


def test_page_gives_the_number_of_each_image() -> None:
    page = Page(render_html(report(image(NEGATIVE), image(POSITIVE, header(2)))))
    assert "image 1 7.21 %, absent" in page.text
    assert "image 2 87.34 %, present" in page.text


def test_page_names_the_patient_and_the_stage_of_the_document() -> None:
    page = Page(render_html(report(image(NEGATIVE))))
    assert "Müller^Jürgen" in page.text
    assert "1962-02-28" in page.text
    assert "UNVERIFIED" in page.text


def test_page_is_well_formed_and_fetches_nothing() -> None:
    html = render_html(report(image(POSITIVE)))
    page = Page(html)
    assert page.fetched == []
    assert page.open == []
    assert "url(" not in html
    assert "@import" not in html


def test_page_shows_markup_in_a_header_as_text() -> None:
    html = render_html(report(image(NEGATIVE, header(PatientName="<script>alert(1)</script>^X"))))
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_page_holds_every_item_of_the_content_tree() -> None:
    shown = report(image(POSITIVE))
    page = Page(render_html(shown))
    for item in content_tree(shown):
        assert item.name in page.text
        assert " ".join(item.value.split()) in page.text


def test_report_of_somebody_else_renders_too() -> None:
    other = Dataset()
    other.ValueType = "CONTAINER"
    name = Dataset()
    name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = (
        "18748-4",
        "LN",
        "Diagnostic Imaging Report",
    )
    other.ConceptNameCodeSequence = [name]
    finding, empty = Dataset(), Dataset()
    finding.ValueType, finding.RelationshipType, finding.TextValue = "TEXT", "CONTAINS", "No finding."
    empty.ValueType, empty.RelationshipType = "NUM", "CONTAINS"
    other.ContentSequence = [finding, empty]
    page = Page(render_html(other))
    assert "Diagnostic Imaging Report" in page.text
    assert "No finding." in page.text


def test_text_indents_each_item_below_its_parent() -> None:
    lines = render_text(report(image(NEGATIVE))).splitlines()
    assert lines[0] == "CONTAINER (126000, DCM, Imaging Measurement Report)"
    assert "      CONTAINS NUM (111012, DCM, Certainty of Finding) = 7.21 %" in lines
