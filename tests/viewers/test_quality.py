"""The quality page in a real browser: plots, tables, filters, without a script too."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.faults.web import Web
from tests.viewers.test_dashboard import analysed, context, running, seen, signed_in
from worker.context import Context

pytestmark = pytest.mark.viewer
__all__ = ["context", "running"]


def test_quality_is_seen_by_a_viewer_and_names_no_patient(
    running: Web, context: Context, page: Page, screenshots: Path
) -> None:
    uid = analysed(context, PatientName="Yellow^Canary", PatientID="CANARY7", PatientSex="F")
    signed_in(page, running.url, "clinician", f"/studies/{uid}")
    page.get_by_role("button", name="Agree", exact=True).click()
    page.locator("#feedback-history tbody tr").wait_for()
    page.get_by_role("button", name="Sign out").click()
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
