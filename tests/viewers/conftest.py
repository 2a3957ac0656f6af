"""A browser, and where the screenshots go."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.servers import executable


@pytest.fixture
def screenshots(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Folder for screenshots: that of --screenshots (or HILUM_SCREENSHOTS), else the test's own."""
    given = request.config.getoption("--screenshots")
    folder = Path(given).absolute() if given else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=executable("chromium", "chromium"), args=["--disable-dev-shm-usage"]
        )
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A dark window; what its console says, but for advice, is in `page.heard`."""
    made = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="dark")  # type: ignore[arg-type]
    heard: list[str] = []
    made.heard = heard  # type: ignore[attr-defined]
    made.on("console", lambda message: message.type == "verbose" or heard.append(message.text))
    made.on("pageerror", lambda error: heard.append(str(error)))
    yield made
    made.close()
