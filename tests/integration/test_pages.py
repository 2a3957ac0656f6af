"""What the pages show, to whom, and what no page, answer or log line says."""

import json
import logging
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from service.api import schemas
from service.api.app import create_app
from service.core import logs
from service.core.circuits import failed
from service.core.heartbeat import beat
from service.core.ledger import Ledger, expected_revision, now, record_event
from service.core.settings import load
from service.core.states import DeliveryState, StudyState
from service.core.tables import Outbox, Report, Study
from tests import factories
from tests.tokens import bearer, entries, sign_in

Clients = Callable[..., Any]
UID = str(factories.phantom_chest(0).StudyInstanceUID)
_LISTED = r'<th scope="row" class="uid"><a href="/studies/([0-9.]+)"'
_SCRIPT = "<script>alert(1)</script>'\"&"


@pytest.fixture
def troubled(client: Clients) -> Clients:
    """The same, but one study has a result, a parked report, and a script wherever a peer has its say."""
    ledger = client().ledger
    with ledger.write() as session:
        study = session.query(Study).filter_by(study_instance_uid=UID).one()
        study.state, study.reason = StudyState.FAILED, f"reason {_SCRIPT}"
        study.attention, study.result_reason = f"attention {_SCRIPT}", f"result {_SCRIPT}"
        study.finding, study.probability, study.threshold = "present", 0.798, 0.5
        study.flags, study.pattern = [f"flag {_SCRIPT}"], f"pattern {_SCRIPT}"
        instance = study.instances[0]
        instance.reason, instance.flags = f"image {_SCRIPT}", [f"image flag {_SCRIPT}"]
        report = Report(
            study=study,
            kind="sr",
            revision=1,
            part=1,
            sop_instance_uid="1.2.3",
            sop_class_uid="1.2",
            series_instance_uid="1.2.4",
            transfer_syntax_uid="1.2",
            path="x",
            digest="x",
            size=1,
            created_at=now(),
        )
        session.add(report)
        session.flush()
        session.add(
            Outbox(
                destination=f"PACS {_SCRIPT}",
                report_id=report.id,
                required=True,
                state=DeliveryState.PARKED,
                ready_at=now(),
                last_error=f"last error {_SCRIPT}",
            )
        )
        record_event(session, study, "parked", f"detail {_SCRIPT}")
    return client


def test_the_start_page_lists_the_newest_studies_first(client: Clients) -> None:
    page = client().get("/").text
    listed = re.findall(_LISTED, page)
    assert listed == [str(factories.phantom_chest(seed).StudyInstanceUID) for seed in (2, 1, 0)]
    assert "receiving" in page


def test_older_studies_are_a_page_further(client: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.page.routes._PAGE_ROWS", 2)
    api = client()
    first = api.get("/").text
    older = re.search(r'href="(/\?cursor=\d+)">Older', first)
    assert older
    page = api.get(older[1]).text
    assert re.findall(_LISTED, page) == [UID]
    assert "Older" not in page
    assert ">Newest<" in page
    assert "No study is older" in api.get("/?cursor=0").text
    newer = re.search(r'href="(/\?newer=\d+)">Newer', page)
    assert newer
    assert re.findall(_LISTED, api.get(newer[1]).text) == re.findall(_LISTED, first)


def test_the_oldest_studies_are_one_page_away(client: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.page.routes._PAGE_ROWS", 2)
    api = client()
    assert 'href="/?newer=0">Oldest' in api.get("/").text
    last = api.get("/?newer=0").text
    assert re.findall(_LISTED, last) == [
        str(factories.phantom_chest(seed).StudyInstanceUID) for seed in (1, 0)
    ]
    assert ">Older<" not in last
    assert ">Newer<" in last


@pytest.mark.parametrize(
    ("chosen", "fits"),
    [
        ("state=failed", True),
        ("state=held", False),
        ("finding=present&state=&since=&until=", True),
        ("finding=absent", False),
        ("attention=true", True),
        ("since=2000-01-01&until=2999-12-31", True),
        ("since=2999-01-01", False),
        ("until=2000-01-01", False),
        ("since=0001-01-01&until=9999-12-31", True),
        ("finding=present&attention=true&state=failed", True),
    ],
)
def test_a_list_shows_what_was_chosen_and_no_more(troubled: Clients, chosen: str, fits: bool) -> None:
    page = troubled(timezone="Pacific/Kiritimati").get(f"/?{chosen}").text
    assert (UID in re.findall(_LISTED, page)) is fits
    if "since" not in chosen:
        assert len(re.findall(_LISTED, page)) == fits


def test_a_study_is_found_by_what_the_role_may_know(client: Clients) -> None:
    for role, by_patient in (("viewer", False), ("clinician", True)):
        api = client(api_tokens=entries())
        csrf = sign_in(api, role)
        found = api.post("/search", data={"csrf": csrf, "q": f" {UID} "})
        assert found.url.path == f"/studies/{UID}"
        assert ("CANARY0" in found.text) is by_patient
        found = api.post("/search", data={"csrf": csrf, "q": "CANARY0"})
        assert (found.url.path == f"/studies/{UID}") is by_patient
        page = api.post("/search", data={"csrf": csrf, "q": "1.2.826"})
        assert len(re.findall(_LISTED, page.text)) == 3
        # Nothing of it comes into an address, or back into the page.
        page = api.post("/search", data={"csrf": csrf, "q": "Nobody\x00^Here%_"}).text
        assert "has come to Hilum" in page
        assert "Nobody" not in page


def test_who_has_not_signed_in_is_not_told_whose_study_it_is(client: Clients) -> None:
    api = client()
    assert "CANARY" not in api.get(f"/studies/{UID}").text
    assert "has come to Hilum" in api.post("/search", data={"q": "CANARY0"}).text


def test_who_looks_at_a_patient_s_study_is_written_down_once(client: Clients) -> None:
    api = client(api_tokens=entries())
    sign_in(api, "clinician")
    for _ in range(3):
        api.get(f"/studies/{UID}")
    folder = api.data_dir / "audit"
    written = "".join(path.read_text() for path in folder.glob("*") if path.is_file())
    assert written.count("DICOM Instances Accessed") == 1
    assert "CANARY0" in written
    assert "Canary^Yellow" not in written


def test_a_study_s_page_says_what_is_wrong_and_all_that_happened(troubled: Clients) -> None:
    page = troubled().get(f"/studies/{UID}").text
    for said in ("79.8 %", "threshold 50.0 %", "present", "failed", "parked", "received", "PACS", "sr"):
        assert said in page, said


def test_a_number_in_a_list_stands_with_its_limits(client: Clients) -> None:
    api = client()
    with api.ledger.write() as session:
        study = session.query(Study).filter_by(study_instance_uid=UID).one()
        study.finding, study.probability, study.flags = "present", 0.798, ["outside the validated population"]
    row = api.get("/").text.partition(f'data-uid="{UID}"')[2].partition("</tr>")[0]
    assert "79.8 %" in row
    assert "<td>outside the validated population</td>" in row
    listed = api.get("/api/studies").json()["studies"]
    said = next(item for item in listed if item["study_instance_uid"] == UID) | {"attention": "parked"}
    assert schemas.StudySummary(**said).to_know == "parked; outside the validated population"


def test_what_peers_and_data_sets_say_is_text_and_never_a_script(troubled: Clients) -> None:
    api = troubled()
    page = api.get(f"/studies/{UID}").text
    for said in (
        *("reason", "attention", "result", "flag", "pattern", "image", "image flag"),
        *("PACS", "last error", "detail"),
    ):
        assert f"{said} &lt;script&gt;alert(1)&lt;/script&gt;&#39;&#34;&amp;" in page, said
    for path in ("/", f"/studies/{UID}", "/system"):
        assert "<script>" not in api.get(path).text
    # As JSON it is JSON, whatever a browser would like to make of it.
    answer = api.get(f"/api/studies/{UID}")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_path_or_parameter_is_not_repeated_as_a_script(client: Clients) -> None:
    api = client()
    for path in ("/studies/<script>", "/<script>", "/?cursor=<script>", "/login?next=<script>"):
        assert "<script>" not in api.get(path).text


def test_no_page_runs_a_script_of_its_own_or_asks_another_server(troubled: Clients) -> None:
    api = troubled(api_tokens=entries())
    login = api.get("/login").text
    sign_in(api, "administrator")
    for page in (login, *(api.get(path).text for path in ("/", f"/studies/{UID}", "/docs", "/nothing"))):
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|javascript:", page)
        for url in re.findall(r'(?:src|href|action)="([^"]*)"', page):
            assert re.match(r"/(?!/)|#", url), url
            if "assets" in url:
                assert api.get(url).status_code == 200, url
        assert '<html lang="en">' in page


def test_every_page_says_that_it_is_for_research(client: Clients) -> None:
    api = client(api_tokens=entries())
    assert "Research use only, not for diagnosis" in api.get("/login").text
    sign_in(api, "viewer")
    for path in ("/", f"/studies/{UID}", "/nothing"):
        assert "Research use only, not for diagnosis" in api.get(path).text


def test_the_system_page_shows_queues_workers_destinations_disk_callers_and_versions(client: Clients) -> None:
    asked = client(destinations="PACS=dicom://PACS@127.0.0.1:4,OTHER=dicom://OTHER@127.0.0.1:5")
    seen = {"at": now().isoformat(), "ae_title": "ROUTER", "address": "10.0.0.7", "reason": ""}
    beat(asked.ledger, "listener", about={"echo": seen})
    beat(asked.ledger, "infer", about={"device": "NVIDIA H100"})
    failed(asked.ledger, "PACS", "PACS at 127.0.0.1:4 cannot be reached")
    page = re.sub(r"<[^>]+>|\s+", " ", asked.get("/system").text)
    text = re.sub(r"\s+", " ", page)
    for said in (
        r"decode 3 3 \d",
        r"PACS away since .*, next try .* dicom://PACS@127\.0\.0\.1:4 .*cannot be reached",
        r"OTHER not used yet",
        r"infer alive \S+ \S+ \S+ NVIDIA H100",
        r"Last C-ECHO \S+ \S+ from ROUTER at 10\.0\.0\.7",
        r"Data folder [0-9.]+ [MGT]B free of",
        rf"Ledger SQLite, revision {expected_revision()}",
        rf"listener alive \S+ \S+ {re.escape(version('hilum'))}",
    ):
        assert re.search(said, text), (said, text)


def test_only_who_may_act_is_shown_a_button(troubled: Clients) -> None:
    for role, buttons in (("viewer", 0), ("clinician", 1), ("administrator", 2)):
        api = troubled(api_tokens=entries())
        sign_in(api, role)
        page = api.get(f"/studies/{UID}").text
        assert page.count("<button>Retry</button>") + page.count(">Send as it is</button>") == buttons, role


def test_the_button_gives_another_try_and_shows_it(troubled: Clients) -> None:
    api = troubled(api_tokens=entries())
    csrf = sign_in(api, "administrator")
    answer = api.post(f"/studies/{UID}/retry", data={"csrf": csrf, "as_built": "true"})
    assert answer.url.path == f"/studies/{UID}"
    assert "administrator-token asked for another try, and to send what is parked as it is" in answer.text
    with api.ledger.read() as session:
        delivery = session.query(Outbox).one()
    assert (delivery.state, delivery.as_built) == (DeliveryState.PENDING, True)


def test_no_page_names_a_patient(client: Clients) -> None:
    api = client()
    for path in ("/", f"/studies/{UID}"):
        assert "canary" not in api.get(path).text.lower()


# --- headers ------------------------------------------------------------------------------------------------


def test_every_answer_has_the_headers_that_keep_it_where_it_belongs(troubled: Clients) -> None:
    api = troubled(api_tokens=entries())
    answers = [api.get(path, follow_redirects=False) for path in ("/", "/login", "/healthz", "/api/studies")]
    sign_in(api, "viewer")
    paths = (
        "/",
        f"/studies/{UID}",
        "/docs",
        "/openapi.json",
        "/api/studies",
        "/metrics",
        "/nothing",
        "/api/no",
    )
    answers += [api.get(path) for path in paths]
    answers.append(api.post("/login", content=b"x" * 100_000))
    assert {answer.status_code for answer in answers} == {200, 303, 401, 404, 413}
    for answer in answers:
        policy = dict(item.split(" ", 1) for item in answer.headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy.get("script-src", "'self'") == "'self'"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] in {"no-referrer", "same-origin"}
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert "Strict-Transport-Security" not in answer.headers
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_over_tls_a_browser_is_told_to_stay_there(client: Clients) -> None:
    api = client("https://hilum.example", api_tokens=entries())
    for path in ("/login", "/healthz", "/api/studies"):
        assert api.get(path).headers["Strict-Transport-Security"] == "max-age=31536000"


def test_what_does_not_change_is_kept_but_asked_for_anew(client: Clients) -> None:
    api = client()
    answer = api.get("/assets/hilum.css")
    assert answer.headers["Cache-Control"] == "no-cache"
    assert api.get("/assets/hilum.css", headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304


# --- what is not served -------------------------------------------------------------------------------------


@pytest.fixture
def broken(client: Clients, monkeypatch: pytest.MonkeyPatch) -> Clients:
    """An API in which reading studies fails with a message that names a patient."""

    def fail(*_: object) -> None:
        value = "Canary^Yellow"
        raise ValueError(f"Invalid value for VR PN: {value!r}")

    monkeypatch.setattr("service.api.status.list_studies", fail)
    return client


@pytest.mark.parametrize("path", ["/", "/api/studies"])
def test_what_breaks_inside_is_told_to_nobody_and_logged_without_values(
    broken: Clients, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configured = structlog.get_config()
    try:
        logs.configure("api")
        # A logger that is kept would write there for every later test of this process.
        structlog.configure(cache_logger_on_first_use=False)
        answer = broken().get(path, headers={"Authorization": "Bearer Canary"})
        written = capsys.readouterr()
    finally:
        root.handlers[:], root.level = before
        structlog.configure(**configured)
        structlog.contextvars.clear_contextvars()
    assert answer.status_code == 500
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Type"].startswith("text/html" if path == "/" else "application/json")
    for text in (answer.text, written.out, written.err):
        assert "canary" not in text.lower()
    for inside in ("Traceback", "ValueError", ".py", "fail"):
        assert inside not in answer.text
    (line,) = [json.loads(line) for line in written.err.splitlines() if "api.failed" in line]
    assert (line["error"], line["route"]) == ("ValueError", path)
    assert line["where"][-1].startswith("test_pages.py:")


def test_a_ledger_that_is_away_is_said_to_be(client: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise OperationalError("SELECT 'Canary'", {}, Exception("Canary"))

    api = client(api_tokens=entries())
    sign_in(api, "viewer")
    monkeypatch.setattr("service.core.ledger.Ledger.read", away)
    for path in ("/", "/api/studies"):
        answer = api.get(path)
        assert answer.status_code == 503
        assert "the ledger cannot be reached (OperationalError)" in answer.text
        assert "Canary" not in answer.text
    assert api.get("/api/studies", headers=bearer("viewer")).status_code == 503


def test_a_page_that_is_not_there_is_a_page_and_an_answer_of_the_api_is_json(client: Clients) -> None:
    api = client()
    for path in ("/nothing", "/studies/1.2.3", "/studies/x"):
        answer = api.get(path)
        assert (answer.status_code, answer.headers["Content-Type"]) == (404, "text/html; charset=utf-8")
        assert "To the studies" in answer.text
    assert api.get("/api/nothing").json() == {"detail": "Not Found"}
    assert "cursor" in api.get("/?cursor=x").text


def test_a_wrong_parameter_is_named_and_its_value_not_repeated(client: Clients) -> None:
    answer = client().get("/api/studies", params={"state": "Canary^Yellow"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "state"]
    assert "Canary" not in answer.text


@pytest.mark.parametrize(
    "uid",
    ["..%2F..%2Fetc%2Fpasswd", "%00", "1.2%00.3", "9" * 8000, "1..2", "%FF", "1.2.3%0d%0aX: y", "%ED%A0%80"],
)
def test_what_is_no_uid_is_no_study(client: Clients, uid: str) -> None:
    api = client()
    for method, path in (
        *(("GET", f"/api/studies/{uid}"), ("GET", f"/studies/{uid}")),
        *(("POST", f"/api/studies/{uid}/retry"), ("POST", f"/studies/{uid}/retry")),
    ):
        assert api.request(method, path).status_code in {404, 405}, path


def test_what_is_no_uid_is_not_asked_of_postgresql(tmp_path: Path, postgresql: str) -> None:
    settings = load(data_dir=tmp_path, database_url=postgresql)
    ledger = Ledger(postgresql)
    with TestClient(create_app(settings, ledger), base_url="http://127.0.0.1") as api:
        # A NUL in a text is an error there.
        for path in ("/api/studies/1.2%00.3", "/studies/1.2%00.3"):
            assert api.get(path).status_code == 404
        assert api.post("/api/studies/1.2%00.3/retry").status_code == 404
        assert api.get("/").status_code == 200
    ledger.close()
