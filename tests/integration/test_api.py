"""The HTTP API over a real ledger: what it says, and to whom."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.api.app import create_app
from service.core.heartbeat import ROLES, beat
from service.core.ledger import Ledger, migrate
from service.core.receive import Arrival, Intake
from service.core.settings import load
from service.core.spool import Spool
from tests import factories

_LOCAL = "http://127.0.0.1"
_OPEN = {"/healthz", "/readyz"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    """Make clients of an API whose ledger holds three studies."""
    base = load(data_dir=tmp_path, min_free_bytes=0)
    migrate(base.sqlalchemy_url)
    ledger, spool = Ledger(base.sqlalchemy_url), Spool(tmp_path)
    spool.make()
    intake = Intake(ledger, spool, base)
    for seed in range(3):
        film = factories.phantom_chest(seed, PatientName="Canary^Yellow", PatientID=f"CANARY{seed}")
        path = factories.write(film, spool.incoming)
        intake.receive(Arrival(path, "TEST", film.SOPClassUID, film.SOPInstanceUID))

    def make(base_url: str = _LOCAL, **settings: object) -> TestClient:
        made = TestClient(create_app(load(data_dir=tmp_path, **settings), ledger), base_url=base_url)
        made.ledger = ledger  # type: ignore[attr-defined]
        return made

    yield make
    ledger.close()


def test_studies_are_listed_newest_first_in_pages(client: Callable[..., TestClient]) -> None:
    api = client()
    uids = [str(factories.phantom_chest(seed).StudyInstanceUID) for seed in (2, 1, 0)]
    first = api.get("/api/studies", params={"limit": 2}).json()
    assert [study["study_instance_uid"] for study in first["studies"]] == uids[:2]
    second = api.get("/api/studies", params={"limit": 2, "cursor": first["cursor"]}).json()
    assert [study["study_instance_uid"] for study in second["studies"]] == uids[2:]
    assert second["cursor"] is None


def test_studies_can_be_asked_for_by_state(client: Callable[..., TestClient]) -> None:
    api = client()
    assert len(api.get("/api/studies", params={"state": "receiving"}).json()["studies"]) == 3
    assert not api.get("/api/studies", params={"state": "failed"}).json()["studies"]
    assert api.get("/api/studies", params={"state": "lost"}).status_code == 422


def test_one_study_has_all_the_fields_that_others_script_against(client: Callable[..., TestClient]) -> None:
    study = client().get(f"/api/studies/{factories.phantom_chest(0).StudyInstanceUID}").json()
    assert {
        *("study_instance_uid", "state", "revision", "attention", "received_at", "reported_at"),
        *("delivered_at", "confirmed_at", "result", "instances", "model", "reports", "deliveries", "events"),
    } <= set(study)
    (instance,) = study["instances"]
    assert {"sop_instance_uid", "sop_class_uid", "state", "finding", "probability", "reason", "flags"} <= set(
        instance
    )
    assert study["events"][0]["kind"] == "received"


def test_no_answer_names_a_patient(client: Callable[..., TestClient]) -> None:
    api = client()
    uid = factories.phantom_chest(0).StudyInstanceUID
    for path in ("/api/studies", f"/api/studies/{uid}", "/metrics", "/api/studies/CANARY"):
        assert "canary" not in api.get(path).text.lower().replace("/api/studies/canary", "")


def test_an_unknown_study_is_not_found(client: Callable[..., TestClient]) -> None:
    api = client()
    assert api.get("/api/studies/1.2.3").status_code == 404
    assert api.post("/api/studies/1.2.3/retry").status_code == 404


def test_without_tokens_only_this_machine_by_its_own_name_is_answered(
    client: Callable[..., TestClient],
) -> None:
    assert client().get("/api/studies").status_code == 200
    assert client(base_url="http://evil.example").get("/api/studies").status_code == 403


def test_with_tokens_every_route_but_health_asks_for_one(client: Callable[..., TestClient]) -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    api = client(api_tokens=f"ward:viewer:{digest}")
    paths = {*client().get("/openapi.json").json()["paths"], "/docs", "/openapi.json"}
    for path in paths:
        expected = {200, 503} if path in _OPEN else {401, 405}
        assert api.get(path.replace("{study_instance_uid}", "1.2.3")).status_code in expected, path
    assert api.post("/api/studies/1.2.3/retry").status_code == 401
    shown = {"Authorization": "Bearer secret"}
    assert api.get("/api/studies", headers=shown).status_code == 200
    assert api.get("/api/studies", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert api.post("/api/studies/1.2.3/retry", headers=shown).status_code == 403


def test_readiness_names_every_role_that_is_silent(client: Callable[..., TestClient]) -> None:
    api = client()
    answer = api.get("/readyz")
    assert answer.status_code == 503
    assert set(answer.json()["faults"]) == set(ROLES)
    for role in ROLES:
        beat(api.ledger, role, "Redis cannot be reached" if role == "scheduler" else "")  # type: ignore[attr-defined]
    assert api.get("/readyz").json()["faults"] == {"scheduler": "Redis cannot be reached"}


def test_the_metrics_say_what_waits(client: Callable[..., TestClient]) -> None:
    text = client().get("/metrics").text
    assert 'hilum_ready{queue="decode"} 3.0' in text
    assert 'hilum_studies{state="receiving"} 3.0' in text
    assert 'hilum_role_up{role="listener"} 0.0' in text


def test_the_documentation_needs_no_other_server(client: Callable[..., TestClient]) -> None:
    api = client()
    page = api.get("/docs").text
    assert "https://" not in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert api.get(f"/docs/assets/{asset}").status_code == 200
