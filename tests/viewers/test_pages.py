"""What a person sees of the gateway in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright
from sqlalchemy import select

from service.core.ledger import now
from service.core.receive import Arrival, Intake
from service.core.spool import Spool
from service.core.states import DeliveryState, StudyState
from service.core.tables import Event, Outbox, Report, Study
from tests import factories
from tests.faults.web import Web, web
from tests.servers import eventually, executable
from tests.tokens import SECRETS, entries

pytestmark = pytest.mark.viewer
_SCRIPT = "<script>document.title = 'taken over'</script>"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Web]:
    """An API with tokens whose ledger holds three studies; the report of one is parked."""
    with web(tmp_path, api_tokens=entries()) as made:
        intake = Intake(made.ledger, Spool(made.settings.data_dir), made.settings)
        for seed in range(3):
            film = factories.phantom_chest(seed)
            path = factories.write(film, made.settings.data_dir / "incoming")
            intake.receive(Arrival(path, "TEST", film.SOPClassUID, film.SOPInstanceUID))
        with made.ledger.write() as session:
            positive, parked, _ = session.scalars(select(Study).order_by(Study.id))
            positive.state, positive.finding, positive.probability = StudyState.CONFIRMED, "present", 0.873
            parked.state, parked.finding, parked.probability = StudyState.REPORTED, "absent", 0.021
            parked.threshold, parked.reported_at = 0.5, now()
            parked.attention = f"PACS refuses the report: {_SCRIPT}"
            report = Report(
                study=parked,
                **dict.fromkeys(("kind", "path", "digest", "transfer_syntax_uid"), "sr"),
                **dict.fromkeys(("sop_instance_uid", "sop_class_uid", "series_instance_uid"), "1.2.3"),
                **dict.fromkeys(("revision", "part", "size"), 1),
                created_at=now(),
            )
            session.add(report)
            session.flush()
            session.add(
                Outbox(
                    destination="PACS",
                    report_id=report.id,
                    required=True,
                    state=DeliveryState.PARKED,
                    attempts=3,
                    ready_at=now(),
                    last_error=_SCRIPT,
                )
            )
        yield made


@pytest.fixture
def page() -> Iterator[Page]:
    """A window; what its console says, but for advice, is in `page.heard`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable("chromium", "chromium"), args=["--disable-dev-shm-usage"]
        )
        made = browser.new_page(viewport={"width": 1280, "height": 800})
        heard: list[str] = []
        made.heard = heard  # type: ignore[attr-defined]
        made.on("console", lambda message: message.type == "verbose" or heard.append(message.text))
        made.on("pageerror", lambda error: heard.append(str(error)))
        yield made
        browser.close()


def test_a_person_signs_in_sees_the_studies_and_gives_one_another_try(
    running: Web, page: Page, screenshots: Path
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{running.url}/")
    assert page.url == f"{running.url}/login"
    page.screenshot(path=screenshots / "login.png")
    page.get_by_label("API token").fill("no such token")
    page.get_by_role("button", name="Sign in").click()
    assert page.get_by_role("alert").inner_text().startswith("No such token")
    # Chromium tells of every answer that is an error.
    eventually(lambda: page.heard, 5)  # type: ignore[attr-defined]
    (refused,) = page.heard  # type: ignore[attr-defined]
    assert "401" in refused
    page.heard.clear()  # type: ignore[attr-defined]
    page.get_by_label("API token").fill(SECRETS["administrator"])
    page.keyboard.press("Enter")

    page.get_by_role("heading", name="Studies").wait_for()
    assert page.get_by_text("Research use only, not for diagnosis").is_visible()
    assert page.locator("tbody tr").count() == 3
    page.screenshot(path=screenshots / "studies.png")
    with page.expect_navigation():
        page.locator("tbody tr", has_text="refuses").get_by_role("link").click()
    assert _SCRIPT in page.locator("main").inner_text()
    assert page.title().startswith("Study ")
    page.screenshot(path=screenshots / "study.png", full_page=True)
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=screenshots / "study-dark.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 800})
    page.screenshot(path=screenshots / "study-narrow.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1280, "height": 800})
    page.get_by_role("button", name="Retry").click()
    page.get_by_text("administrator-token asked for another try").wait_for()

    page.get_by_role("link", name="API").click()
    page.get_by_text("/api/studies/{study_instance_uid}/retry").wait_for()
    page.screenshot(path=screenshots / "docs.png", full_page=True)
    page.go_back()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in").wait_for()

    # A script or style that the policy stops is told there, and so is an error.
    assert page.heard == []  # type: ignore[attr-defined]
    assert [url for url in asked if not url.startswith((running.url, "data:"))] == []


def test_the_description_of_the_api_tries_out_what_the_session_may(running: Web, page: Page) -> None:
    page.goto(f"{running.url}/login?next=/docs")
    page.get_by_label("API token").fill(SECRETS["clinician"])
    page.keyboard.press("Enter")
    page.get_by_text("/api/studies/{study_instance_uid}/retry").click()
    page.get_by_role("button", name="Try it out").click()
    uid = str(factories.phantom_chest(1).StudyInstanceUID)  # its report is parked
    page.get_by_placeholder("study_instance_uid").fill(uid)
    page.get_by_role("button", name="Execute").click()
    page.locator(".live-responses-table .response-col_status", has_text="200").wait_for()
    assert page.heard == []  # type: ignore[attr-defined]
    with running.ledger.read() as session:
        retried = session.scalars(select(Event.detail).where(Event.kind == "retried")).all()
    assert retried == ["clinician-token asked for another try"]
