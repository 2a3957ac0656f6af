"""OHIF as a radiologist has it: the demonstration's viewer and configuration, on a real PACS, in a browser.

`Ohif` serves viewer and DICOMweb on one origin, as deploy/ohif/nginx.conf does, and drives Debian's Chromium.
`Study` is one open study: what can be clicked, what is written over the image, what the pixels are.
"""

import io
import json
import mimetypes
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import httpx
import numpy as np
import numpy.typing as npt
from PIL import Image
from playwright.sync_api import Locator, Page, ViewportSize, sync_playwright

from tests.servers import ROOT, ServerError, eventually, executable

FOLDER = ROOT / ".ohif"
CONFIGURATION = ROOT / "deploy/ohif/app-config.js"
HILUM_CONFIGURATION = ROOT / "deploy/ohif/hilum/app-config.js"
PIN = ROOT / "deploy/ohif/pin.json"

# Software rendering, beside whatever else the machine does.
PATIENCE = 45.0
_MILLISECONDS = 1000
_SIZE = ViewportSize(width=1500, height=900)
_FLAGS = (
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
)
# OHIF logs what it catches as debug: the level says nothing.
_FAULTS = ("Error Boundary", "TypeError", "ReferenceError")

_SIGN_IN = ("/login", "/assets/hilum.css", "/assets/icon.svg")
_PASSED_ON = ("Accept", "Host", "Cookie", "Origin", "Sec-Fetch-Site", "Content-Type")

Points = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


def installed() -> Path:
    """Return the folder of the built viewer, or fail with what to do."""
    pin = json.loads(PIN.read_text(encoding="utf-8"))
    package = FOLDER / "package.json"
    found = json.loads(package.read_text(encoding="utf-8"))["version"] if package.exists() else "no version"
    if found != pin["version"]:
        raise ServerError(
            f"OHIF {pin['version']} is needed and {FOLDER.name} has {found}: "
            "run `make ohif`, which needs npm and the network"
        )
    return FOLDER / "dist"


class Ohif:
    """The viewer on a PACS's DICOMweb, with a browser in front of it; a context manager.

    With `hilum` the PACS is Hilum itself, behind what deploy/ohif/hilum/nginx.conf says.
    """

    def __init__(self, pacs_url: str, *, hilum: bool = False) -> None:
        self._pacs = httpx.Client(base_url=pacs_url, timeout=PATIENCE)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(installed(), self._pacs, hilum=hilum))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._playwright = sync_playwright().start()
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        # A profile on disk keeps the viewer's compiled scripts from one study to the next.
        self._context = self._playwright.chromium.launch_persistent_context(
            self._profile.name,
            executable_path=executable("chromium", "chromium"),
            args=list(_FLAGS),
            viewport=_SIZE,
            service_workers="block",
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()
        self._playwright.stop()
        self._profile.cleanup()
        self._server.shutdown()
        self._server.server_close()
        self._pacs.close()

    def page(self) -> Page:
        """Return a new window of the browser."""
        page = self._context.new_page()
        page.set_default_timeout(PATIENCE * _MILLISECONDS)
        return page

    def open(self, study_instance_uid: str, screenshots: Path) -> "Study":
        """Open a study as a click in the PACS does, and return when its first image is shown."""
        page = self.page()
        study = Study(page, screenshots)
        page.goto(f"{self.url}/viewer?StudyInstanceUIDs={study_instance_uid}")
        study.until(lambda: not is_black(study.pixels()), "an image is shown")
        return study


class Study:
    """A study in the viewer's window."""

    def __init__(self, page: Page, screenshots: Path) -> None:
        self.page = page
        self.console: list[str] = []
        self._screenshots = screenshots
        page.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.console.append(f"pageerror: {error}"))
        # The tour of the viewer lies over everything until it is skipped.
        skip = page.get_by_text("Skip all")
        page.add_locator_handler(skip, lambda found: found.first.click(), no_wait_after=True)

    def until(self, predicate: Callable[[], object], message: str) -> None:
        """Wait for something to be seen; fail with a screenshot and the console."""

        def asked() -> object:
            self.page.wait_for_timeout(100)  # lets the browser's events come in
            return predicate()

        try:
            eventually(asked, PATIENCE, message)
        except ServerError as late:
            path = self.save("not-seen")
            console = "\n".join(line[:300] for line in self.console[-20:])
            raise ServerError(
                f"{late}\nscreenshot: {path}\ntext: {self.text()}\nconsole:\n{console}"
            ) from None

    def thumbnail(self, series: str) -> Locator:
        """Return the thumbnail of the first series whose description begins like this."""
        return self.page.locator('[data-cy^="study-browser-thumbnail"]', has_text=series).first

    def show(self, series: str) -> None:
        """Double-click a series once it is listed."""
        self.until(lambda: self.thumbnail(series).count(), f"a series {series!r}")
        self.thumbnail(series).dblclick()

    def show_result(self, series: str, label: str) -> None:
        """Double-click a structured report, and return when the label is written over the image."""
        self.show(series)
        self.until(lambda: label in self.labels(), label)

    def shown(self) -> str:
        """Return the SOP Instance UID of the image in the viewport."""
        image_id: str = self.page.evaluate(
            "cornerstone.getRenderingEngines()[0].getViewports()[0].getCurrentImageId()"
        )
        return image_id.partition("/instances/")[2].partition("/")[0]

    def text(self) -> str:
        """Return all that is written in the window, labels over the image included."""
        text: str = self.page.evaluate("document.body.innerText")
        return " ".join(text.split())

    def labels(self) -> str:
        """Return what is written over the image by its annotations."""
        return " ".join(" ".join(self._viewport().locator("svg text").all_text_contents()).split())

    def cut_off(self) -> list[str]:
        """Return the lines written over the image that reach beyond the viewport."""
        lines: list[str] = self._viewport().evaluate(
            """pane => {
                const {left, right, top, bottom} = pane.getBoundingClientRect();
                return [...pane.querySelectorAll('svg text tspan')].filter(line => {
                    const box = line.getBoundingClientRect();
                    return box.left < left || box.right > right || box.top < top || box.bottom > bottom;
                }).map(line => line.textContent);
            }"""
        )
        return lines

    def pixels(self) -> Pixels:
        """Return the viewport as RGB, (h, w, 3)."""
        viewport = self._viewport()
        if not viewport.count():
            return np.zeros((1, 1, 3), np.uint8)
        return _rgb(viewport.screenshot(animations="disabled"))

    def outlines(self) -> list[Points]:
        """Return the polylines drawn over the image, each (n, 2) in pixels of the viewport."""
        drawn: list[str] = (
            self._viewport()
            .locator("svg polyline")
            .evaluate_all("lines => lines.map(line => line.getAttribute('points'))")
        )
        return [np.array(line.replace(",", " ").split(), np.float64).reshape(-1, 2) for line in drawn]

    def save(self, name: str) -> Path:
        """Write a screenshot of the window into the folder for screenshots."""
        path = self._screenshots / f"{name}.png"
        self.page.screenshot(path=path)
        return path

    def faults(self) -> list[str]:
        """Return the console's lines that tell of a crash, whatever their level."""
        return [line for line in self.console if any(fault in line for fault in _FAULTS)]

    def close(self) -> None:
        self.page.close()

    def _viewport(self) -> Locator:
        return self.page.locator('[data-cy="viewport-pane"]').first


def is_black(pixels: Pixels) -> bool:
    """Return whether a viewport shows no image: nearly everything as dark as the window."""
    return float((pixels.max(axis=2) > 64).mean()) < 0.05


def coloured(pixels: Pixels) -> float:
    """Return the share of a viewport that is plainly in colour."""
    values = pixels.astype(np.int16)
    return float((values.max(axis=2) - values.min(axis=2) > 60).mean())


def _rgb(png: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.uint8)


def _handler(folder: Path, pacs: httpx.Client, *, hilum: bool) -> type[BaseHTTPRequestHandler]:
    """Return the handler that does what deploy/ohif/nginx.conf says, or that of Hilum."""
    configuration = HILUM_CONFIGURATION if hilum else CONFIGURATION
    passed = ("/dicomweb/", *_SIGN_IN) if hilum else ("/dicom-web", "/wado")
    types = mimetypes.MimeTypes()
    types.add_type("application/wasm", ".wasm")
    types.add_type("text/javascript", ".js")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith(passed):
                self._pass_on()
                return
            if hilum and "hilum=" not in self.headers.get("Cookie", ""):
                self._answer(302, b"", "text/plain", Location=f"/login?next={self.path}")
                return
            file = folder / path.lstrip("/")
            if path == "/app-config.js":
                file = configuration
            elif not file.is_file():
                file = folder / "index.html"
            content_type = types.guess_type(file.name)[0] or "application/octet-stream"
            self._answer(200, file.read_bytes(), content_type, cache="max-age=3600")

        def _pass_on(self) -> None:
            headers = {name: self.headers[name] for name in _PASSED_ON if name in self.headers}
            headers["Forwarded"] = f"host={self.headers['Host']};proto=http"
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = pacs.request(self.command, self.path, headers=headers, content=body)
            content_type = answer.headers.get("Content-Type", "application/octet-stream")
            back = {
                name: answer.headers[name] for name in ("Location", "Set-Cookie") if name in answer.headers
            }
            self._answer(answer.status_code, answer.content, content_type, **back)

        def do_POST(self) -> None:
            if hilum and self.path == "/login":
                self._pass_on()
            else:
                self._answer(403, b"", "text/plain")

        def _answer(
            self, status: int, body: bytes, content_type: str, cache: str = "no-store", **more: str
        ) -> None:
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", cache)
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep the tests' output quiet."""

    return Handler
