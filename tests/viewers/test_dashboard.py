"""The dashboard in a real browser: what is seen, by whom, how soon, and that everybody can use it."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page
from sqlalchemy import delete, select

from service.core.circuits import failed
from service.core.claims import claim
from service.core.enqueue import Enqueuer
from service.core.errors import OutOfResources
from service.core.heartbeat import ROLES, beat
from service.core.leases import (
    DECODE,
    release,
)
from service.core.ledger import record_event
from service.core.states import StudyState
from service.core.tables import Heartbeat, Study
from service.scheduler.scheduler import give_up_exhausted
from tests import factories
from tests.faults.pacs import Pacs
from tests.faults.web import Web, web
from tests.pipeline import film, receive, says, send_all, work
from tests.servers import ROOT, Gateway, ServerError, eventually, free_port
from tests.tokens import SECRETS, entries
from worker.context import Context

pytestmark = pytest.mark.viewer
_AXE = ROOT / ".axe/axe.min.js"
_NARROW = {"width": 390, "height": 800}
_WIDE = {"width": 1280, "height": 900}


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """An API with tokens over a ledger in which real films were analysed by a network that says 90 %."""
    says(monkeypatch, 0.9)
    settings = {"study_quiet_seconds": 0, "destinations": "PACS=dicom://PACS@127.0.0.1:4"}
    with web(tmp_path, api_tokens=entries(), population="flag", **settings) as made:
        for role in ROLES:
            beat(made.ledger, role)
        yield made


@pytest.fixture
def context(running: Web) -> Iterator[Context]:
    made = Context.open(running.settings)
    yield made
    made.ledger.close()


def signed_in(page: Page, url: str, role: str, path: str = "/") -> None:
    page.goto(f"{url}/login?next={path}")
    page.get_by_label("API token").fill(SECRETS[role])
    # The page of the sign-in is loaded already: waiting for a heading would be waiting for its own.
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert "/login" not in page.url


def signed_out(page: Page) -> None:
    with page.expect_navigation():
        page.get_by_role("button", name="Sign out").click()


def analysed(context: Context, seed: int = 0, **header: Any) -> str:
    """Let a film through every queue but the last, and return its study."""
    made = film(seed, **header)
    receive(context, made)
    work(context)
    return str(made.StudyInstanceUID)


def change(web: Web, study_instance_uid: str, alter: Callable[[Any, Study], None]) -> None:
    with web.ledger.write() as session:
        alter(session, session.scalars(select(Study).filter_by(study_instance_uid=study_instance_uid)).one())


def faults(page: Page) -> list[str]:
    """Return what axe-core finds that is serious or critical, in both themes."""
    if not _AXE.exists():
        raise ServerError("axe-core is needed: run `make axe`, which needs npm and the network")
    found = []
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.evaluate(_AXE.read_text(encoding="utf-8"))
        told = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        found += [
            f"{scheme}: {item['id']} {node['html']}: {node['failureSummary']}"
            for item in told["violations"]
            if item["impact"] in ("serious", "critical")
            for node in item["nodes"]
        ]
    page.emulate_media(color_scheme="dark")
    return found


def seen(page: Page, name: str, screenshots: Path) -> None:
    """Leave a picture of the page, wide and narrow; it must fit and please axe-core both times."""
    for width, size in (("", _WIDE), ("-narrow", _NARROW)):
        page.set_viewport_size(size)  # type: ignore[arg-type]
        page.screenshot(path=screenshots / f"{name}{width}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], f"{name}{width}"
        assert faults(page) == [], f"{name}{width}"
    page.set_viewport_size(_WIDE)  # type: ignore[arg-type]


def test_every_page_can_be_used_by_everybody_and_fits_a_telephone(
    running: Web, context: Context, page: Page, screenshots: Path
) -> None:
    uid = analysed(context, PatientName="Yellow^Canary", PatientID="CANARY7", AccessionNumber="ACC7")
    knee = film(2, ViewPosition="LL")
    receive(context, knee)
    work(context)
    receive(context, film(3))
    failed(running.ledger, "PACS", "PACS at 127.0.0.1:4 cannot be reached")
    page.goto(f"{running.url}/login")
    seen(page, "login", screenshots)
    signed_in(page, running.url, "administrator")
    assert page.locator("tbody tr").count() == 3
    seen(page, "studies", screenshots)
    for name, path in (
        *(("study", f"/studies/{uid}"), ("study-not-analysed", f"/studies/{knee.StudyInstanceUID}")),
        *(("system", "/system"), ("nothing", "/nothing"), ("filtered", "/?state=held")),
    ):
        page.goto(f"{running.url}{path}")
        page.wait_for_load_state("networkidle") if name == "study" else page.locator("h1").wait_for()
        seen(page, name, screenshots)
    page.goto(f"{running.url}/studies/{uid}")
    page.get_by_role("link", name="Structured report, revision 1").click()
    page.get_by_role("heading", name="All that it says").wait_for()
    seen(page, "report", screenshots)
    page.get_by_label("Find a study").fill("no such accession")
    page.keyboard.press("Enter")
    page.get_by_text("has come to Hilum").wait_for()
    seen(page, "not-found", screenshots)
    # Chromium tells of the page that is not there.
    assert [line for line in page.heard if "404" not in line] == []  # type: ignore[attr-defined]


def test_a_film_is_shown_with_its_activation_map_and_answers_to_sliders_and_keys(
    running: Web, context: Context, page: Page, screenshots: Path
) -> None:
    signed_in(page, running.url, "clinician", f"/studies/{analysed(context)}")
    shown = page.locator("img.plain")
    eventually(lambda: shown.evaluate("image => image.complete && image.naturalWidth"), 10)
    assert shown.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [460, 489]
    box = page.locator("img.activation").bounding_box()
    assert box == shown.bounding_box()

    def style(what: str) -> str:
        return str(page.locator(f".{what}").evaluate("item => item.style.cssText"))

    page.get_by_label("Activation map").fill("0")
    assert "opacity: 0;" in style("activation")
    page.get_by_label("Window").fill("100")
    page.get_by_label("Level").fill("50")
    linear = page.locator("feFuncR")
    assert float(linear.get_attribute("slope") or 0) == pytest.approx(2.55)
    assert float(linear.get_attribute("intercept") or 9) == pytest.approx(0.5 - 50 / 255 * 2.55)
    page.locator(".stage").focus()
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    assert "scale(1.2)" in style("layers")
    assert "translate(-30px, 0px)" in style("layers")
    page.locator(".film").screenshot(path=screenshots / "film-windowed.png")
    page.get_by_role("button", name="Put back").click()
    assert "scale(1)" in style("layers")
    assert "opacity: 0.55;" in style("activation")
    page.locator(".film").screenshot(path=screenshots / "film.png")
    assert page.heard == []  # type: ignore[attr-defined]


def test_whose_study_it_is_is_seen_by_those_roles_that_may(
    running: Web, context: Context, page: Page
) -> None:
    uid = analysed(context, PatientName="Yellow^Canary", PatientID="CANARY7", AccessionNumber="ACC7")
    signed_in(page, running.url, "viewer", f"/studies/{uid}")
    assert "Canary" not in page.content()
    assert page.get_by_text("Your role does not see films and reports.").count() == 2
    page.get_by_label("Find a study").fill("ACC7")
    page.keyboard.press("Enter")
    page.get_by_text("No study of that UID has come to Hilum.").wait_for()
    signed_out(page)
    signed_in(page, running.url, "clinician")
    page.get_by_label("Find a study").fill("ACC7")
    page.keyboard.press("Enter")
    page.get_by_text("Yellow Canary, ID CANARY7").wait_for()
    assert page.url == f"{running.url}/studies/{uid}"


def test_a_list_that_is_filtered_follows_what_happens(running: Web, context: Context, page: Page) -> None:
    uid = analysed(context)
    signed_in(page, running.url, "viewer", "/")
    page.goto(f"{running.url}/?state=failed")
    page.get_by_text("No study fits these filters.").wait_for()

    def fail(session: Any, study: Study) -> None:
        study.state, study.reason = StudyState.FAILED, "inference failed 3 times (its process died)"
        record_event(session, study, "failed", study.reason)

    change(running, uid, fail)
    page.locator("tbody tr", has_text=uid).wait_for(timeout=3000)
    row = page.locator("tbody tr", has_text=uid)
    row.get_by_role("link").focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="No report: the analysis failed.").wait_for()
    assert page.get_by_text("Ask a clinician or an administrator to press Retry").is_visible()


def _refused(status: int) -> Callable[[Context], str]:
    def cause(context: Context) -> str:
        port = urlsplit(context.settings.destinations[0].url).port
        with Pacs(statuses=[status] * 9, queries=False, port=port).serving():
            uid = analysed(context)
            send_all(context)
        return uid

    return cause


def _pacs_down(context: Context) -> str:
    uid = analysed(context)
    send_all(context, rounds=1)
    return uid


def _waits(context: Context) -> str:
    made = film()
    receive(context, made)
    return str(made.StudyInstanceUID)


def _silent(context: Context) -> str:
    with context.ledger.write() as session:
        session.execute(delete(Heartbeat).where(Heartbeat.role == "decode"))
    return _waits(context)


def _no_redis(context: Context) -> str:
    with context.ledger.write() as session:
        session.execute(delete(Heartbeat).where(Heartbeat.role == "scheduler"))
    uid = _waits(context)
    fault = Enqueuer(context.ledger, f"redis://127.0.0.1:{free_port()}/0").enqueue_ready()
    assert fault
    beat(context.ledger, "scheduler", fault)
    return uid


def _two_patients(context: Context) -> str:
    one = film(PatientID="A")
    receive(context, one, film(1, PatientID="B", StudyInstanceUID=one.StudyInstanceUID))
    work(context)
    return str(one.StudyInstanceUID)


def _killed_three_times(context: Context) -> str:
    uid = _waits(context)
    for _ in range(3):
        (lease,) = claim(context.ledger, DECODE, 1)
        release(context.ledger, lease, "its process died", 0)
    give_up_exhausted(context.ledger)
    work(context)
    return uid


def _told(**header: Any) -> Callable[[Context], str]:
    def cause(context: Context) -> str:
        port = urlsplit(context.settings.destinations[0].url).port
        with Pacs(queries=False, port=port).serving():
            uid = analysed(context, **header)
            send_all(context)
        return uid

    return cause


_NOT_ANALYSED = "A report that nothing was analysed is in PACS"
# The failure, what the page begins with, one of the things that it says are to be done.
_CAUSES: dict[str, tuple[Callable[[Context], str], str, str]] = {
    "pacs-down": (_pacs_down, "The report is made and waits: PACS cannot be reached.", "See that PACS runs"),
    "not-authorised": (_refused(0x0124), "The report was made, and PACS refused it", "allow our AE title"),
    "sop-class": (_refused(0x0122), "The report was made, and PACS refused it", "Let the PACS accept"),
    "identity": (_refused(0xA778), "The report was made, and PACS refused it", "Correct the patient"),
    "no-worker": (_silent, "No report yet: no worker decodes films.", "hilum worker --queue decode"),
    "redis-down": (_no_redis, "No report yet: Redis cannot be reached.", "docker compose restart redis"),
    "held": (_two_patients, "No report: this study holds images of two patients", "Find out whose images"),
    "killed": (_killed_three_times, "No report: the analysis failed.", "Give the worker more memory"),
    "not-chest": (_told(ViewPosition="LL"), _NOT_ANALYSED, "its header says otherwise"),
    "population": (_told(PatientAge="064Y"), _NOT_ANALYSED, "HILUM_POPULATION=flag"),
}


@pytest.mark.parametrize("cause", _CAUSES)
def test_a_stranger_reads_why_a_study_has_no_report_and_what_to_do(
    cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: Page, screenshots: Path
) -> None:
    """Each is caused as it comes about: by the code that meets it, not by writing down what it would say."""
    says(monkeypatch, 0.9)
    fault, words, to_do = _CAUSES[cause]
    settings = {"study_quiet_seconds": 0, "destinations": f"PACS=dicom://PACS@127.0.0.1:{free_port()}"}
    with web(tmp_path, **settings) as running:
        for role in ROLES:
            beat(running.ledger, role)
        context = Context.open(running.settings)
        uid = fault(context)
        page.goto(running.url)
        page.locator("#rows a").first.click()
        page.locator("#answer").wait_for()
        assert page.url.endswith(uid)
        page.screenshot(path=screenshots / f"why-{cause}.png")
        assert page.locator("#answer-said").inner_text().startswith(words)
        assert to_do in page.locator("#answer").inner_text()
        context.ledger.close()


def test_a_full_disk_is_said_on_every_page(tmp_path: Path, page: Page, screenshots: Path) -> None:
    with web(tmp_path, min_free_bytes=10**15) as running:
        for role in ROLES:
            beat(running.ledger, role)
        context = Context.open(running.settings)
        with pytest.raises(OutOfResources):
            receive(context, film())
        context.ledger.close()
        page.goto(running.url)
        page.get_by_text("the disk is full, and new images are refused.").wait_for()
        page.get_by_role("link", name="What to do").click()
        page.get_by_text("hilum purge --expired --dry-run").wait_for()
        page.screenshot(path=screenshots / "why-disk-full.png")


def _row_seen_at(page: Page) -> None:
    """Note in the page when the first row of the list is there, in milliseconds of this machine's clock."""
    page.evaluate(
        """new MutationObserver(() => {
             window.seenAt ??= document.querySelector("#rows tr") ? Date.now() : undefined;
           }).observe(document.getElementById("rows"), {childList: true})"""
    )


def test_a_study_is_seen_within_a_second_of_its_c_store_response(
    gateway: Callable[..., Gateway], page: Page, tmp_path: Path, screenshots: Path
) -> None:
    """The real gateway takes its time to start."""
    started = gateway(min_free_bytes=0, population="flag")
    page.goto(started.http_url)
    page.get_by_text("No study has come yet").wait_for()
    _row_seen_at(page)
    sent = started.send(factories.write(film(1), tmp_path))
    answered = time.time()
    assert sent.returncode == 0, sent.stderr
    page.locator("#rows tr").first.wait_for(timeout=5000)
    late = page.evaluate("window.seenAt") / 1000 - answered
    print(f"a study was seen {late:.3f} s after storescu had ended")
    assert late < 1
    page.locator("td.state-reported").wait_for(timeout=60000)
    page.locator("#rows a").click()
    page.locator("img.activation, img.plain").first.wait_for(timeout=10000)
    page.wait_for_load_state("load")
    page.screenshot(path=screenshots / "study-real.png", full_page=True)
    page.get_by_role("link", name="System").click()
    page.get_by_text("Every part of Hilum works.").wait_for()
    # Told with the listener's next sign of life, and shown when the page next asks.
    page.get_by_text("from TEST at 127.0.0.1").first.wait_for(timeout=30000)
    page.screenshot(path=screenshots / "system-real.png", full_page=True)
    assert page.heard == []  # type: ignore[attr-defined]
