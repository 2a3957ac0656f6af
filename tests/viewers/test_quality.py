"""The quality page in a real browser: plots, tables, filters, without a script too."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from service.api.page.document import document
from service.api.page.figures import shown
from service.core.quality import By
from tests.faults.web import Web
from tests.integration.test_quality import END, MONDAY, Filled, agree, disagree, filled
from tests.viewers.test_dashboard import analysed, context, running, seen, signed_in, signed_out
from worker.context import Context

pytestmark = pytest.mark.viewer
__all__ = ["context", "filled", "running"]


def test_quality_is_seen_by_a_viewer_and_names_no_patient(
    running: Web, context: Context, page: Page, screenshots: Path
) -> None:
    uid = analysed(context, PatientName="Yellow^Canary", PatientID="CANARY7", PatientSex="F")
    signed_in(page, running.url, "clinician", f"/studies/{uid}")
    page.get_by_role("button", name="Agree", exact=True).click()
    page.locator("#feedback-history tbody tr").wait_for()
    signed_out(page)
    signed_in(page, running.url, "viewer", "/quality")
    assert "1 with a result" in page.locator("main").inner_text()
    assert page.locator("#groups tbody tr").count() == 1
    page.get_by_role("link", name="Quality").and_(page.locator("[aria-current]")).wait_for()
    assert page.locator(".plot .mark").count() >= 3
    seen(page, "quality", screenshots)
    page.get_by_label("By", exact=True).select_option("sex")
    page.get_by_role("button", name="Show").click()
    page.get_by_role("heading", name="By sex", exact=True).wait_for()
    assert page.locator("#groups tbody th").inner_text() == "F"
    assert "anary" not in page.content()
    assert page.heard == []  # type: ignore[attr-defined]


def test_quality_needs_no_script(running: Web, context: Context, browser: Browser) -> None:
    analysed(context)
    window = browser.new_page(java_script_enabled=False)
    signed_in(window, running.url, "viewer", "/quality")
    window.get_by_label("By", exact=True).select_option("modality")
    window.get_by_role("button", name="Show").click()
    window.get_by_role("heading", name="By modality").wait_for()
    window.close()


def test_the_report_by_scanner_shows_all_columns_on_a_screen_and_on_paper(
    filled: Filled, page: Page, tmp_path: Path
) -> None:
    for number in range(40):
        what = {"scanner": f"Manufacturer Model {number % 3}", "at": MONDAY}
        filled.study("present", agree() if number % 4 else disagree(), **what)
        filled.study("absent", agree() if number % 7 else disagree(), share=0.5, **what)
    with filled.ledger.read() as session:
        values = shown(session, (MONDAY, END), By.SCANNER, filled.settings.zone)
    path = tmp_path / "quality.html"
    path.write_text(document("quality_report.html", version="1", **values), encoding="utf-8")
    page.goto(path.as_uri())
    cut = "[...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert page.evaluate(cut) == 0
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 1000, "height": 1414})  # what Chromium shrinks to a page of A4
    assert page.evaluate(cut) == 0
