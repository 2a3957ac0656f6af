"""What a radiologist sees in OHIF that asks no PACS but Hilum itself, having signed in there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page
from pydicom import Dataset

from tests import audit_trail
from tests.faults.web import Web, web
from tests.pipeline import film, opened_at, receive, says, work
from tests.tokens import SECRETS, entries
from tests.viewers.ohif import Ohif, Study, coloured, is_black

pytestmark = pytest.mark.viewer

_OBJECTS = '["sr", "heatmap", "pdf"]'


@pytest.fixture(scope="module")
def sent() -> list[Dataset]:
    """Films of two patients."""
    return [
        film(f"ohif {number}", PatientName=f"Viewer^Patient{number}", StudyDate=f"2026010{number}")
        for number in (1, 2)
    ]


@pytest.fixture(scope="module")
def hilum(sent: list[Dataset], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("ohif")
    configuration = folder / "hilum.toml"
    configuration.write_text(
        f'[destinations.PACS]\nurl = "dicom://PACS@127.0.0.1:104"\nobjects = {_OBJECTS}\n', encoding="utf-8"
    )
    with pytest.MonkeyPatch.context() as patched:
        says(patched, 0.9)
        context = opened_at(folder, config=configuration)
        receive(context, *sent)
        for _ in sent:
            work(context)
        context.ledger.close()
        with web(folder, data_dir=context.settings.data_dir, api_tokens=entries()) as running:
            yield running


@pytest.fixture(scope="module")
def ohif(hilum: Web) -> Iterator[Ohif]:
    """The viewer, with a browser that nobody has signed in with."""
    with Ohif(hilum.url, hilum=True) as viewer:
        yield viewer


def signed_in(ohif: Ohif) -> Page:
    """Open the list of studies, and sign in where that is asked for first."""
    page = ohif.page()
    page.goto(f"{ohif.url}/")
    if "/login" in page.url:
        page.fill("#token", SECRETS["clinician"])
        with page.expect_navigation():
            page.click("main button")
    return page


def test_a_reader_signs_in_finds_the_study_and_sees_film_verdict_and_heat_map(
    hilum: Web, ohif: Ohif, sent: list[Dataset], screenshots: Path
) -> None:
    page = signed_in(ohif)
    listed = Study(page, screenshots)
    listed.until(lambda: "Patient2" in listed.text() and "Patient1" in listed.text(), "the list of studies")
    page.get_by_text("Viewer, Patient2").first.click()
    listed.until(lambda: "AI Pneumonia result" in listed.text(), "the series of the study")
    listed.save("hilum-study-list")

    study = ohif.open(sent[1].StudyInstanceUID, screenshots)
    try:
        assert study.shown() == sent[1].SOPInstanceUID
        assert coloured(study.pixels()) < 0.01
        study.save("hilum-film")
        study.show_result("AI Pneumonia result", "AI: pneumonia PRESENT")
        study.save("hilum-sr")
        assert "Certainty of Finding" in study.labels()
        study.show("AI Pneumonia heatmap")
        study.until(lambda: coloured(study.pixels()) > 0.02, "the heat map in colour")
        study.save("hilum-heatmap")
        assert study.faults() == []
        assert not is_black(study.pixels())
        study.show("AI Pneumonia page")
        pages = study.page.locator("object[type='application/pdf']")
        study.until(pages.count, "the page as a PDF")
        read = "page => fetch(page.data).then(answer => answer.text()).then(text => text.slice(0, 5))"
        assert pages.first.evaluate(read) == "%PDF-"
        study.save("hilum-page")
        assert study.faults() == []
    finally:
        study.close()

    told = audit_trail.of(hilum.settings.data_dir, "110103")
    assert [item.xpath("string(ActiveParticipant[1]/@UserID)") for item in told] == ["clinician-token"]
    assert audit_trail.objects(told[0], "110180") == [sent[1].StudyInstanceUID]
    assert audit_trail.of(hilum.settings.data_dir, "110112")


def test_the_list_of_studies_is_searched_by_what_is_typed(ohif: Ohif, screenshots: Path) -> None:
    page = signed_in(ohif)
    page.goto(f"{ohif.url}/?patientName=patient1")
    listed = Study(page, screenshots)
    listed.until(lambda: "Patient1" in listed.text(), "the one study that matches")
    listed.save("hilum-search")
    assert "Patient2" not in listed.text()
