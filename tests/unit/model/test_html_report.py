from __future__ import annotations

from dataclasses import replace
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.measuring.cases import Case, Left, Seen
from model.measuring.evaluation import evaluate
from model.measuring.html_report import MOST_PICTURES, html_report, pictures
from model.predict import Predictor
from tests.unit.model.conftest import chest

HOSTILE = "<script>alert(1)</script>&.png"


class Page(HTMLParser):
    """What a page holds: its text, its elements with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.elements, self.open = "", list[tuple[str, dict[str, str | None]]](), list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(path: Path) -> Seen | Left:
    return Seen(chest(np.random.default_rng(len(path.name)), False))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Sixteen films that the network cannot tell apart, so that half of them are called wrongly."""
    folder = tmp_path_factory.mktemp("films")
    listed = []
    for number in range(16):
        path = folder / f"{'x' * number}.png"
        path.touch()
        site = ["Ward <A>", "$x_{$"][number // 2 % 2]
        listed.append(
            Case(f"{number}.png", path, number % 2, bacterial=number % 4 // 2 if number % 2 else -1,
                 attributes={"site": site})
        )  # fmt: skip
    listed[0] = replace(listed[0], file=HOSTILE)
    listed[1] = replace(listed[1], file="1" + HOSTILE)
    return listed


@pytest.fixture(scope="module")
def report(cases: list[Case], predictor: Predictor) -> dict[str, Any]:
    gone = Case("gone.dcm", Path("gone.dcm"), 1)
    return evaluate([*cases, gone], predictor, read, resamples=20)


@pytest.fixture(scope="module")
def written(report: dict[str, Any], cases: list[Case], predictor: Predictor) -> str:
    worst = pictures(report["errors"][:MOST_PICTURES], cases, predictor, read)
    return html_report(report, predictor.info, worst, date(2026, 1, 15))


@pytest.fixture
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out: drawing them takes longer than all the rest."""
    monkeypatch.setattr("model.measuring.html_report.svg", lambda figure: b"<svg/>")


def test_the_page_says_what_the_figures_say(
    written: str, report: dict[str, Any], predictor: Predictor
) -> None:
    page, counts = Page(written), report["confusion"]
    assert not page.open
    for said in (
        "Research use only, not for diagnosis.",
        "Of 100 films with pneumonia it called",
        f"Counted: {counts['tp']} of 8 and {counts['fp']} of 8",
        predictor.info.sha256,
        predictor.info.trained_on,
        f"{report['auc']:.3f}",
        "50 of 100",
        "no such file",
        "Ward <A>",
        "Bacterial or viral",
        "1 to 5 years",
        "2026-01-15",
    ):
        assert said in " ".join(page.text.split()), said


def test_the_page_loads_nothing(written: str, report: dict[str, Any]) -> None:
    page = Page(written)
    for loader in ("http://", "https://", "url(", "@import"):
        assert loader not in written
    assert not {"link", "script", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    # Histogram, calibration, ROC, precision and recall, subgroups; two for each of the wrong films.
    assert len(page.all("img")) == 5 + 2 * min(len(report["errors"]), MOST_PICTURES)
    assert all((image["src"] or "").startswith("data:image/") for image in page.all("img"))


def test_every_picture_and_every_table_speaks_for_itself(written: str) -> None:
    page = Page(written)
    assert page.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(header.get("scope") in ("col", "row") for header in page.all("th"))


def test_a_file_name_is_shown_and_never_run(written: str, report: dict[str, Any]) -> None:
    assert any(HOSTILE in error["file"] for error in report["errors"][:MOST_PICTURES])
    assert "<script" not in written
    assert HOSTILE in Page(written).text


def test_the_same_report_is_the_same_page(
    written: str, report: dict[str, Any], cases: list[Case], predictor: Predictor
) -> None:
    worst = pictures(report["errors"][:MOST_PICTURES], cases, predictor, read)
    assert html_report(report, predictor.info, worst, date(2026, 1, 15)) == written


@pytest.mark.usefixtures("_undrawn")
def test_a_page_without_errors_subgroups_and_kinds_is_whole(
    report: dict[str, Any], predictor: Predictor
) -> None:
    bare = {**report, "subgroups": [], "pattern": None, "errors": []}
    bare["not_analysed"] = {"n": 0, "unreadable": 0, "films": []}
    text = Page(html_report(bare, predictor.info)).text
    assert "No film was called wrongly." in text
    assert "Bacterial or viral" not in text


@pytest.mark.usefixtures("_undrawn")
def test_a_network_no_better_than_chance_is_said_to_be_so(
    report: dict[str, Any], predictor: Predictor
) -> None:
    def page(low: float) -> str:
        return html_report({**report, "auc_ci": [low, 0.9]}, predictor.info)

    assert "no better than chance" in page(0.45)
    assert "no better than chance" not in page(0.55)


@pytest.mark.usefixtures("_undrawn")
@pytest.mark.parametrize(
    ("sensitivity", "said"), [(1.0, "100"), (0.9996, "99.96"), (0.004, "0.4"), (0.0, "0"), (0.974, "97")]
)
def test_nearly_all_is_never_called_all(
    sensitivity: float, said: str, report: dict[str, Any], predictor: Predictor
) -> None:
    written = html_report({**report, "sensitivity": sensitivity}, predictor.info)
    assert f"<strong>{said}</strong> pneumonia" in written


def test_a_film_that_is_gone_since_it_was_scored_has_no_picture(
    report: dict[str, Any], cases: list[Case], predictor: Predictor
) -> None:
    gone = [replace(case, path=Path("gone.png")) for case in cases]
    assert pictures(report["errors"], gone, predictor, read) == []
