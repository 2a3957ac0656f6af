"""The HTTP API over a real ledger: what it says."""

from collections.abc import Callable

from fastapi.testclient import TestClient

from service.core.heartbeat import ROLES, beat
from tests import factories


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
