"""Write the pictures of the README anew, from the demo in Chromium.

python deploy/screenshots/take.py            (make screenshots)
"""

import shutil
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from service.commands.demo import demo

FOLDER = Path(__file__).parent
SIZE = {"width": 1000, "height": 640}
# Enough for a film in grey under a map in colours; a third of the bytes.
COLOURS = 128


def take(url: str) -> None:
    """Photograph the list, the study with the most suspicious film, and the system page."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is needed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--disable-dev-shm-usage"])
        page = browser.new_page(viewport=SIZE, color_scheme="dark")  # type: ignore[arg-type]
        page.goto(url)
        page.locator("#rows tr").first.wait_for()
        _keep(page, "studies")
        page.goto(f"{url}/system")
        _keep(page, "system")
        page.goto(url)
        page.locator("tr[data-finding=present] a").first.click()
        film = page.locator("figure.film").first
        film.locator("img.activation").wait_for()
        page.wait_for_load_state("networkidle")
        _keep(page, "study")
        film.scroll_into_view_if_needed()
        film.evaluate("item => item.scrollIntoView()")
        _keep(page, "film")
        browser.close()


def _keep(page: Page, name: str) -> None:
    seen = Image.open(BytesIO(page.screenshot())).convert("RGB")
    seen.quantize(COLOURS, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as out:
        sys.exit(demo([], Path(out), take))
