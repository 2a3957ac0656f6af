"""Feedback in a real browser: one click, soon seen, also by others, by keyboard, and behind a link."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from sqlalchemy import select, update

from service.core.feedback_link import links_of
from service.core.tables import Feedback, Revision, Study
from tests.faults.web import Web
from tests.servers import eventually
from tests.viewers.test_dashboard import analysed, change, context, running, seen, signed_in, signed_out
from worker.context import Context

pytestmark = pytest.mark.viewer
__all__ = ["context", "running"]
BAR_MS = 300
_CLICKS = 10


def _stored(web: Web) -> list[Feedback]:
    with web.ledger.read() as session:
        return list(session.scalars(select(Feedback).order_by(Feedback.id)))


def _watch(page: Page) -> None:
    """Note in the page how long it is from a click to the entry that it shows, painted."""
    page.evaluate(
        """() => {
          window.took = [];
          let at = 0;
          document.addEventListener("click", (event) => {
            if (event.target.matches(".choices button")) at = performance.now();
          }, true);
          new MutationObserver(() => {
            if (!at) return;
            const begun = at;
            at = 0;
            requestAnimationFrame(() => setTimeout(() => window.took.push(performance.now() - begun)));
          }).observe(document.getElementById("feedback-history"), { childList: true });
        }"""
    )


def test_a_click_is_stored_and_shown_within_the_bar(
    running: Web, context: Context, page: Page, screenshots: Path
) -> None:
    uid = analysed(context, PatientName="Yellow^Canary", PatientID="CANARY7")
    signed_in(page, running.url, "clinician", f"/studies/{uid}")
    page.locator("#feedback").scroll_into_view_if_needed()
    _watch(page)
    for number in range(_CLICKS):
        name = ("Agree", "Disagree")[number % 2]
        page.get_by_role("button", name=name, exact=True).click()
        page.locator("#feedback-history tbody tr").nth(number).wait_for()
        eventually(lambda done=number + 1: page.evaluate("window.took.length") == done, 5)
    took = sorted(page.evaluate("window.took"))
    print(f"click to shown, ms: median {took[_CLICKS // 2]:.0f}, worst {took[-1]:.0f}, first to last {took}")
    assert took[-1] < BAR_MS, took
    assert len(_stored(running)) == _CLICKS
    assert page.locator("#feedback-said").inner_text() == "Stored: disagree."
    page.locator("#feedback").screenshot(path=screenshots / "feedback.png")
    assert page.heard == []  # type: ignore[attr-defined]


def test_finding_note_and_name_go_with_the_click_and_other_pages_see_it(
    running: Web, context: Context, page: Page, browser: Browser, screenshots: Path
) -> None:
    uid = analysed(context)
    signed_in(page, running.url, "clinician", f"/studies/{uid}")
    other, listed = browser.new_page(), browser.new_page(color_scheme="dark")
    signed_in(other, running.url, "administrator", f"/studies/{uid}")
    signed_in(listed, running.url, "viewer")
    listed.goto(f"{running.url}/?feedback=disagree")
    listed.get_by_text("No study fits these filters.").wait_for()
    page.get_by_label("Own finding").select_option("absent")
    page.get_by_label("Note").fill("Skin fold, no consolidation.")
    page.get_by_label("Your name").fill("Dr. Weber")
    page.get_by_role("button", name="Disagree").click()
    page.get_by_text("Skin fold, no consolidation.").wait_for()
    other.locator("#feedback-history", has_text="Dr. Weber").wait_for(timeout=5000)
    listed.locator("tbody tr", has_text=uid).wait_for(timeout=5000)
    listed.screenshot(path=screenshots / "feedback-list.png")
    assert page.get_by_label("Note").input_value() == ""
    assert page.get_by_label("Your name").input_value() == "Dr. Weber"
    seen(page, "feedback-given", screenshots)
    other.close()
    listed.close()


def test_the_keyboard_alone_gives_feedback_and_enter_in_a_field_gives_none(
    running: Web, context: Context, page: Page
) -> None:
    uid = analysed(context)
    signed_in(page, running.url, "clinician", f"/studies/{uid}")
    page.get_by_label("Your name").focus()
    page.keyboard.type("Weber")
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    assert _stored(running) == []
    for _ in range(4):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Disagree":
            break
    page.keyboard.press("Enter")
    page.locator("#feedback-history tbody tr").wait_for()
    assert [(item.assessment, item.reader) for item in _stored(running)] == [("disagree", "Weber")]
    # Who works with keys goes on from where they were.
    assert page.evaluate("document.activeElement.textContent") == "Disagree"


def test_without_a_script_the_form_stores_by_itself(running: Web, context: Context, browser: Browser) -> None:
    uid = analysed(context)
    window = browser.new_page(java_script_enabled=False)
    signed_in(window, running.url, "clinician", f"/studies/{uid}")
    window.get_by_role("button", name="Not usable").click()
    window.locator("#feedback-history tbody tr").wait_for()
    assert [item.assessment for item in _stored(running)] == ["not_usable"]
    window.close()


def test_what_is_refused_is_said_and_what_was_typed_is_kept(
    running: Web, context: Context, page: Page
) -> None:
    uid = analysed(context)
    signed_in(page, running.url, "clinician", f"/studies/{uid}")
    page.get_by_label("Own finding").select_option("absent")
    page.get_by_label("Note").fill("kept")
    page.get_by_role("button", name="Agree", exact=True).click()
    page.get_by_text("who agrees finds the same").wait_for()
    assert page.get_by_label("Note").input_value() == "kept"
    assert _stored(running) == []


def test_an_answer_that_breaks_off_is_not_taken_for_nothing_stored(
    running: Web, context: Context, page: Page
) -> None:
    signed_in(page, running.url, "clinician", f"/studies/{analysed(context)}")
    page.evaluate(
        """() => { window.fetch = async () => new Response(
             new ReadableStream({ pull(body) { body.error(new TypeError("network error")); } })); }"""
    )
    page.get_by_role("button", name="Agree", exact=True).click()
    page.get_by_text("Load this page again to see whether it was stored.").wait_for()
    page.get_by_text("Hilum does not answer: this page shows how things were.").wait_for()
    assert page.heard == []  # type: ignore[attr-defined]


def test_a_negative_that_was_drawn_is_marked_until_somebody_reviews_it(
    running: Web, context: Context, page: Page, screenshots: Path
) -> None:
    uid = analysed(context)

    def draw(_: object, study: Study) -> None:
        study.finding, study.probability, study.review_share = "absent", 0.1, 0.05

    change(running, uid, draw)
    with running.ledger.write() as session:
        session.execute(update(Revision).values(finding="absent", probability=0.1))
    signed_in(page, running.url, "clinician")
    page.get_by_role("link", name="1 to be reviewed").click()
    page.locator("tbody tr", has_text="to be reviewed").wait_for()
    seen(page, "to-be-reviewed", screenshots)
    page.locator("#rows a").first.click()
    page.get_by_text("To be reviewed: this negative was drawn by chance").wait_for()
    seen(page, "study-to-be-reviewed", screenshots)
    page.get_by_role("button", name="Agree", exact=True).click()
    page.locator("#feedback-history tbody tr").wait_for()
    page.goto(f"{running.url}/?feedback=to_review")
    page.get_by_text("No study fits these filters.").wait_for()
    assert _stored(running)[0].review_share == 0.05


def test_the_page_behind_a_link_can_be_used_by_everybody(
    running: Web, context: Context, page: Page, screenshots: Path
) -> None:
    uid = analysed(context, AccessionNumber="ACC-4711")
    with running.ledger.read() as session:
        token = links_of(session).token(uid, 1)
    page.goto(f"{running.url}/feedback/{token}")
    page.get_by_role("heading", name="Feedback on an AI result").wait_for()
    seen(page, "link", screenshots)
    page.get_by_label("Your name").fill("Dr. Weber")
    page.get_by_label("Note").fill("Left base")
    page.get_by_role("button", name="Agree", exact=True).click()
    page.get_by_text("Stored: agree.").wait_for()
    seen(page, "link-stored", screenshots)
    assert [(item.source, item.reader, item.note) for item in _stored(running)] == [
        ("link", "Dr. Weber", "Left base")
    ]
    page.goto(f"{running.url}/feedback/{token[:-5]}xxxxx")
    page.get_by_text("This is no link of this gateway.").wait_for()
    seen(page, "link-forged", screenshots)


def test_a_name_is_remembered_for_its_reader_and_not_for_the_next_one(
    running: Web, context: Context, page: Page
) -> None:
    uid = analysed(context)
    signed_in(page, running.url, "clinician", f"/studies/{uid}")
    page.get_by_label("Your name").fill("Dr. Weber")
    page.get_by_role("button", name="Unsure").click()
    page.get_by_text("Stored: unsure.").wait_for()
    page.reload()
    eventually(lambda: page.get_by_label("Your name").input_value() == "Dr. Weber", 5)
    signed_out(page)
    signed_in(page, running.url, "clinician", f"/studies/{uid}")
    page.get_by_text("Dr. Weber (signed in as").wait_for()
    page.wait_for_timeout(500)  # what the script would put there
    assert page.get_by_label("Your name").input_value() == ""
