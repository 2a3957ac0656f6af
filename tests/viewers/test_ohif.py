"""What a radiologist sees: our result objects in a real PACS, opened in a real OHIF in a real Chromium."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import ViewportSize
from pydicom import Dataset

from service.core.identifiers import derived_uid
from service.core.results import Finding, Result
from service.core.states import Assessment
from tests import factories
from tests.servers import Orthanc, storescu
from tests.unit.worker import reports
from tests.viewers.ohif import Ohif, Study, coloured, is_black
from worker import wording
from worker.assessment import build_assessment
from worker.decode import decode
from worker.heatmap import build_heatmap
from worker.report_context import ImageResult, Predecessor, ReportContext
from worker.structured_report import build_structured_report
from worker.text_report import build_text_report

pytestmark = pytest.mark.viewer

Open = Callable[..., Study]

_SR = "AI Pneumonia result"
_HEATMAP = "AI Pneumonia heatmap"
_NOTE = "AI: NOT ANALYSED"
_ASSESSMENT = "AI result: assessment"
# A screen that two windows share.
_HALF_A_SCREEN = ViewportSize(width=1200, height=800)


@pytest.fixture(scope="module")
def pacs() -> Iterator[Orthanc]:
    with Orthanc() as server:
        yield server


@pytest.fixture(scope="module")
def ohif(pacs: Orthanc) -> Iterator[Ohif]:
    with Ohif(pacs.http_url) as viewer:
        yield viewer


@pytest.fixture
def opened(pacs: Orthanc, ohif: Ohif, tmp_path: Path, screenshots: Path) -> Iterator[Open]:
    """Send films and results to the PACS and open their study; a crash of the viewer fails the test."""
    with ExitStack() as windows:

        def send_and_open(images: Sequence[ImageResult], *results: Dataset) -> Study:
            folder = tmp_path / "results"
            folder.mkdir()
            for result in results:
                result.save_as(folder / f"{result.SOPInstanceUID}.dcm", enforce_file_format=True)
            sent = storescu([tmp_path / "films", folder], pacs.aet, pacs.dicom_port)
            assert sent.returncode == 0, sent.stdout + sent.stderr
            study = ohif.open(images[0].source.StudyInstanceUID, screenshots)
            windows.callback(study.close)
            return study

        yield send_and_open


def film(tmp_path: Path, result: Result, study: str, number: int = 1) -> ImageResult:
    """Return a film with its result, as the worker has it."""
    source = factories.chest_film(f"{study} {number}", study=study, InstanceNumber=number)
    path = factories.write(source, tmp_path / "films")
    if result.finding is Finding.NOT_ANALYSED:
        return ImageResult(source, result)
    return ImageResult(source, result, reports.activation(), decode(path).pixels)


def context(images: Sequence[ImageResult], kind: str, revision: int = 1, part: int = 1) -> ReportContext:
    """Return the context of one result object of a study, in the series of its kind."""
    study = str(images[0].source.StudyInstanceUID)
    series = str(derived_uid("viewers", study, kind))
    first = reports.context(
        *images,
        series_instance_uid=series,
        sop_instance_uid=str(derived_uid(series, "1", str(part))),
        instance_number=1 + 100 * (part - 1),
    )
    if revision == 1:
        return first
    sr_class = "1.2.840.10008.5.1.4.1.1.88.34"
    return replace(
        first,
        sop_instance_uid=str(derived_uid(series, str(revision), str(part))),
        instance_number=revision,
        revision=revision,
        predecessors=(Predecessor(sr_class, first.sop_instance_uid, series),),
    )


def structured_report(images: Sequence[ImageResult], revision: int = 1) -> Dataset:
    return build_structured_report(images, context(images, "sr", revision))


def seen_without_fault(study: Study) -> None:
    """Nothing asks, nothing crashed, and there is an image."""
    assert "continue tracking" not in study.text()
    assert study.faults() == []
    assert not is_black(study.pixels())


def outlines_the_focus(study: Study) -> None:
    """There are two outlines: that of the film, and that of the focus of `reports.activation`."""
    whole, region = sorted(study.outlines(), key=lambda line: -np.ptp(line, axis=0).prod())
    # As fractions of the film's width and height.
    middle = (region.mean(axis=0) - whole.min(axis=0)) / np.ptp(whole, axis=0)
    assert middle == pytest.approx((0.3, 0.6), abs=0.05)
    assert (np.ptp(region, axis=0) < 0.5 * np.ptp(whole, axis=0)).all()


def shows_in_colour(study: Study, name: str) -> None:
    """The heat map opens and is in colour."""
    study.show(_HEATMAP)
    study.until(lambda: coloured(study.pixels()) > 0.02, "the heat map in colour")
    study.save(name)
    seen_without_fault(study)


def test_a_positive_says_so_over_the_film_and_outlines_the_region(opened: Open, tmp_path: Path) -> None:
    images = [film(tmp_path, reports.POSITIVE, "positive")]
    heatmap = build_heatmap(images[0], context(images, "heatmap"))
    study = opened(images, structured_report(images), heatmap)
    assert coloured(study.pixels()) < 0.01
    study.save("positive-film")

    study.show_result(_SR, "AI: pneumonia PRESENT")
    study.save("positive-sr")
    assert "Certainty of Finding: 87.34 %" in study.labels()
    seen_without_fault(study)
    outlines_the_focus(study)
    shows_in_colour(study, "positive-heatmap")


def test_a_negative_says_so_over_the_film_and_outlines_nothing(opened: Open, tmp_path: Path) -> None:
    images = [film(tmp_path, reports.NEGATIVE, "negative")]
    study = opened(images, structured_report(images))
    study.show_result(_SR, "AI: pneumonia ABSENT")
    study.save("negative-sr")
    assert "Certainty of Finding: 7.21 %" in study.labels()
    seen_without_fault(study)
    (whole,) = study.outlines()
    assert len(whole) > 5  # with fewer points it is a rectangle to be tracked


def test_a_study_not_analysed_says_so_as_a_page_of_text(opened: Open, tmp_path: Path) -> None:
    images = [film(tmp_path, reports.LATERAL, "not-analysed")]
    study = opened(images, build_text_report(images, context(images, "text")))
    study.show(_NOTE)
    study.until(lambda: "AI: NOT ANALYSED (view position LATERAL)" in study.text(), "the note's text")
    study.save("not-analysed")
    assert wording.NOT_ASSESSED in study.text()
    assert "pneumonia ABSENT" not in study.text()
    assert study.faults() == []


def test_what_a_reader_says_is_a_page_of_text_and_the_result_beside_it_is_as_before(
    opened: Open, tmp_path: Path
) -> None:
    images = [film(tmp_path, reports.POSITIVE, "assessed")]
    report = build_structured_report(
        images, replace(context(images, "sr"), feedback_url="https://h/feedback/x")
    )
    said = reports.reading(
        reports.POSITIVE, assessment=Assessment.DISAGREE, own_finding=Finding.ABSENT, note="Skin fold."
    )
    assessment = build_assessment([reports.reread(report)], said, context(images, "assessment"))
    study = opened(images, report, assessment)
    study.show(_ASSESSMENT)
    study.until(lambda: "Dr. Eva Weber disagrees with the AI result" in study.text(), "the assessment's text")
    study.save("assessment")
    assert "Own finding: pneumonia absent." in study.text()
    assert "Note by Dr. Eva Weber: Skin fold." in study.text()
    assert study.faults() == []
    study.show_result(_SR, "AI: pneumonia PRESENT")
    assert not any("https" in label for label in study.labels())  # the link is not written over the film
    seen_without_fault(study)


@pytest.mark.parametrize(
    "results",
    [
        pytest.param((reports.POSITIVE, reports.NEGATIVE), id="positive first"),
        pytest.param(
            (reports.NEGATIVE, reports.POSITIVE),
            id="negative first",
        ),
    ],
)
def test_of_two_films_the_most_suspicious_is_shown_with_its_own_result(
    results: tuple[Result, Result], opened: Open, tmp_path: Path
) -> None:
    """Every film is a display set of its own, and OHIF shows that of the first measurement group only."""
    name = "-".join(str(result.finding) for result in results)
    images = [film(tmp_path, result, name, number) for number, result in enumerate(results, start=1)]
    number = results.index(reports.POSITIVE) + 1
    positive = images[number - 1]
    heatmap = build_heatmap(positive, context(images, "heatmap"))
    study = opened(images, structured_report(images), heatmap)
    study.show_result(_SR, "AI: pneumonia")
    study.save(f"two-films-{name}")
    seen_without_fault(study)
    assert study.shown() == positive.source.SOPInstanceUID
    assert "AI: pneumonia PRESENT" in study.labels()
    assert "AI: pneumonia ABSENT" not in study.labels()
    assert f"Image {number} of 2; 2 of 2 images analysed." in study.labels()
    outlines_the_focus(study)
    shows_in_colour(study, f"two-films-{name}-heatmap")


def test_of_two_revisions_the_last_is_shown(opened: Open, tmp_path: Path) -> None:
    before = [film(tmp_path, reports.NEGATIVE, "revised")]
    limits = tuple(f"limit number {number}" for number in range(1, 6))
    after = [replace(before[0], result=replace(reports.POSITIVE, flags=limits))]
    study = opened(after, structured_report(before), structured_report(after, revision=2))
    study.show_result(_SR, "Revision 2, replaces revision 1")
    study.save("revision-2")
    assert all(limit in study.labels() for limit in limits)  # OHIF writes five lines and drops the others
    assert "AI: pneumonia PRESENT" in study.labels()
    assert "AI: pneumonia ABSENT" not in study.labels()
    seen_without_fault(study)


def test_the_label_of_a_result_is_within_the_window(opened: Open, tmp_path: Path) -> None:
    """OHIF starts the label at the right one of an outline's first two points, and cuts long lines off."""
    images = [film(tmp_path, reports.POSITIVE, "label")]
    study = opened(images, structured_report(images, revision=2))
    study.page.set_viewport_size(_HALF_A_SCREEN)
    study.show_result(_SR, "AI: pneumonia PRESENT")
    study.save("label-in-a-small-window")
    assert study.cut_off() == []


def test_a_group_without_coordinates_blackens_the_viewer_and_these_tests_notice(
    opened: Open, tmp_path: Path
) -> None:
    images = [film(tmp_path, reports.NEGATIVE, "without-coordinates")]
    report = structured_report(images)
    for measurement in numbers(report):
        measurement.pop("ContentSequence", None)
    study = opened(images, report)
    study.show(_SR)
    study.until(lambda: is_black(study.pixels()), "a black viewport")
    study.save("without-coordinates")
    assert study.faults()


def numbers(item: Dataset) -> Iterator[Dataset]:
    """Yield the NUM items of a content tree."""
    if item.get("ValueType") == "NUM":
        yield item
    for child in item.get("ContentSequence") or []:
        yield from numbers(child)
