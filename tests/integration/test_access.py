"""Who gets in on the web, how, for how long, and what they may do."""

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from service.api.access import SESSION_SECONDS
from service.api.rates import Rates
from service.api.roles import MAY, Act
from service.core.ledger import now
from service.core.states import InstanceState
from service.core.tables import Event, Instance, SignIn
from tests import audit_trail, factories
from tests.tokens import HASHES, SECRETS, bearer, csrf, entries, sign_in

Clients = Callable[..., Any]
UID = str(factories.phantom_chest(0).StudyInstanceUID)
_OPEN = {"/healthz", "/readyz", "/login"}
_STUDY = "/studies/{study_instance_uid}"
_PAGES = {
    *("/", "/quality", "/system", "/search", "/docs", "/logout", _STUDY, f"{_STUDY}/retry"),
    *(f"{_STUDY}/films/{{instance_id}}.png", f"{_STUDY}/films/{{instance_id}}/activation.png"),
    *(f"{_STUDY}/reports/{{report_id}}", f"{_STUDY}/feedback"),
}
# Opened by a signature and nothing else: `test_feedback.py`.
_SIGNED = "/feedback/{token}"
_SAFE = {"GET", "HEAD"}


def routes(client: Any) -> Iterator[tuple[str, str]]:
    """Yield method and path of every route, those of the OpenAPI document and those that it leaves out."""
    for route in iter_route_contexts(client.app.routes):
        for method in getattr(route, "methods", None) or {"GET"}:
            yield method, route.path
    for path, methods in client.app.openapi()["paths"].items():
        for method in methods:
            yield method.upper(), path


def ask(client: Any, method: str, path: str, **options: Any) -> Any:
    path = path.replace("{study_instance_uid}", UID).replace("{instance_id}", "1").replace("{report_id}", "1")
    return client.request(method, path, follow_redirects=False, **options)


def test_nobody_who_is_unknown_gets_past_health_and_sign_in(client: Clients) -> None:
    api = client(api_tokens=entries())
    asked = set(routes(api))
    assert {path for _, path in asked} >= {*_OPEN, *_PAGES, "/dicomweb/studies", "/metrics", "/openapi.json"}
    for method, path in asked:
        for headers in ({}, {"Cookie": "hilum=x"}, {"Authorization": "Basic eDp4"}):
            answer = ask(api, method, path, headers=headers)
            if path == _SIGNED:
                assert answer.status_code in {404, 429}, path
            elif path in _OPEN:
                assert answer.status_code in {200, 303, 401, 503}, path
            elif path in _PAGES:
                assert answer.status_code == 303, path
                assert answer.headers["Location"].startswith("/login"), path
            elif not path.endswith("/assets"):
                assert answer.status_code == 401, path
                assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_path_that_does_not_exist_tells_a_stranger_nothing_else(client: Clients) -> None:
    api = client(api_tokens=entries())
    assert ask(api, "GET", "/api/nothing").status_code == 401
    assert ask(api, "GET", "/nothing").headers["Location"] == "/login?next=/nothing"


def test_a_viewer_changes_nothing(client: Clients) -> None:
    api = client(api_tokens=entries())
    before = events(api)
    unsafe = {(method, path) for method, path in routes(api) if method not in _SAFE} - {
        ("POST", "/login"),
        ("POST", "/logout"),
        ("POST", "/search"),  # what is sought is in no address; it changes nothing
        ("POST", _SIGNED),
    }
    assert len(unsafe) >= 4
    for method, path in unsafe:
        assert ask(api, method, path, headers=bearer("viewer")).status_code == 403, path
    repeated = sign_in(api, "viewer")
    for method, path in unsafe:
        data = {"data": {"csrf": repeated}} if path in _PAGES else {}
        answer = ask(api, method, path, headers={"X-CSRF-Token": repeated}, **data)
        assert answer.status_code == 403, path
        assert "viewer" in answer.text
    assert events(api) == before


def test_the_table_of_roles_is_what_the_routes_do(client: Clients) -> None:
    api = client(api_tokens=entries())
    acts = {
        Act.READ: ("GET", "/api/studies", 200),
        Act.SEE_FILMS: ("GET", f"/studies/{UID}/films/1.png", 404),  # let in, and there is no picture
        Act.RETRY: ("POST", f"/api/studies/{UID}/retry", 200),
        Act.SEND_AS_BUILT: ("POST", f"/api/studies/{UID}/retry?as_built=true", 200),
        Act.RETRIEVE: ("GET", "/dicomweb/studies", 200),
        Act.STORE: ("POST", "/dicomweb/studies", 415),  # let in, and told that there is no body
        Act.ASSESS: ("POST", f"/api/studies/{UID}/feedback", 422),  # the same
        Act.SEE_READERS: ("GET", "/api/feedback.csv", 200),
    }
    # Patients have no route of their own: `test_pages.py`.
    assert set(acts) == set(Act) - {Act.SEE_PATIENTS}
    for role, allowed in MAY.items():
        for act, (method, path, status) in acts.items():
            answer = ask(api, method, path, headers=bearer(role))
            assert answer.status_code == (status if act in allowed else 403), f"{role}: {act}"


def test_the_history_of_a_study_names_who_asked_for_another_try(client: Clients) -> None:
    api = client(api_tokens=entries())
    before = events(api)
    answer = ask(api, "POST", f"/api/studies/{UID}/retry", headers=bearer("clinician"))
    assert (answer.status_code, answer.json()) == (200, {"status": "nothing to try again"})
    assert events(api) == before
    with api.ledger.write() as session:
        session.execute(update(Instance).values(state=InstanceState.FAILED))
    answer = ask(api, "POST", f"/api/studies/{UID}/retry", headers=bearer("clinician"))
    assert answer.json() == {"status": "retried"}
    assert "clinician-token asked for another try" in events(api)


# --- sessions -----------------------------------------------------------------------------------------------


def test_signing_in_gives_a_cookie_that_scripts_other_sites_and_plain_http_do_not_get(
    client: Clients,
) -> None:
    answer = client("https://hilum.example", api_tokens=entries()).post(
        "/login", data={"token": SECRETS["viewer"]}, follow_redirects=False
    )
    name, *attributes = answer.headers["Set-Cookie"].split("; ")
    assert name.startswith("__Host-hilum=")
    assert SECRETS["viewer"] not in name
    assert {item.lower() for item in attributes} == {
        *("httponly", "samesite=strict", "path=/", "secure", f"max-age={SESSION_SECONDS}")
    }
    plain = client("http://hilum.example", api_tokens=entries())
    answer = plain.post("/login", data={"token": SECRETS["viewer"]}, follow_redirects=False)
    assert answer.headers["Set-Cookie"].startswith("hilum=")
    assert "HttpOnly" in answer.headers["Set-Cookie"]
    assert plain.get("/").status_code == 200


def test_a_session_shows_the_pages_and_the_api(client: Clients) -> None:
    api = client(api_tokens=entries())
    sign_in(api, "viewer")
    for path in ("/", f"/studies/{UID}", "/docs", "/openapi.json", "/api/studies", "/metrics"):
        assert ask(api, "GET", path).status_code == 200, path


def test_a_session_holds_on_every_replica_and_nowhere_in_clear(client: Clients) -> None:
    one, other = client(api_tokens=entries()), client(api_tokens=entries())
    sign_in(one, "viewer")
    other.cookies = one.cookies
    assert ask(other, "GET", "/").status_code == 200
    with one.ledger.read() as session:
        kept = session.scalars(select(SignIn)).one()
    assert kept.session_sha256 == hashlib.sha256(one.cookies["hilum"].encode()).hexdigest()


def test_a_session_ends_with_its_token(client: Clients) -> None:
    api = client(api_tokens=entries())
    sign_in(api, "viewer")
    later = client(api_tokens=entries("clinician", "administrator"))
    later.cookies = api.cookies
    assert ask(later, "GET", "/").status_code == 303
    # The same name with a new secret is another token.
    renewed = client(api_tokens=f"viewer-token:viewer:{'0' * 64}")
    renewed.cookies = api.cookies
    assert ask(renewed, "GET", "/").status_code == 303


def test_a_session_ends_when_its_user_signs_out_for_whoever_has_the_cookie(client: Clients) -> None:
    api, thief = client(api_tokens=entries()), client(api_tokens=entries())
    repeated = sign_in(api, "viewer")
    thief.cookies.set("hilum", api.cookies["hilum"])
    assert ask(thief, "GET", "/").status_code == 200
    answer = ask(api, "POST", "/logout", data={"csrf": repeated})
    assert answer.headers["Location"] == "/login"
    assert "Max-Age=0" in answer.headers["Set-Cookie"]
    assert ask(thief, "GET", "/").status_code == 303


def test_a_session_ends_after_a_shift_however_busy_it_was(client: Clients) -> None:
    api = client(api_tokens=entries())
    sign_in(api, "viewer")
    with api.ledger.write() as session:
        until = session.scalars(select(SignIn.until)).one()
        assert timedelta(seconds=SESSION_SECONDS - 60) < until - now() <= timedelta(seconds=SESSION_SECONDS)
        session.execute(update(SignIn).values(until=now()))
    assert ask(api, "GET", "/").status_code == 303
    sign_in(api, "clinician")
    with api.ledger.read() as session:
        assert session.scalars(select(SignIn.token_sha256)).all() == [HASHES["clinician"]]


@pytest.mark.parametrize(
    ("wanted", "led_to"),
    [
        (f"/studies/{UID}", f"/studies/{UID}"),
        ("/docs", "/docs"),
        (f"/viewer?StudyInstanceUIDs={UID}", f"/viewer?StudyInstanceUIDs={UID}"),
        ("/viewer?StudyInstanceUIDs=1.2&next=//evil.example", "/"),
        ("//evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/studies/1.2\r\nSet-Cookie: x=y", "/"),
    ],
)
def test_signing_in_leads_back_to_our_own_pages_alone(client: Clients, wanted: str, led_to: str) -> None:
    data = {"token": SECRETS["viewer"], "next": wanted}
    assert ask(client(api_tokens=entries()), "POST", "/login", data=data).headers["Location"] == led_to


def test_a_page_that_was_asked_for_comes_after_signing_in(client: Clients) -> None:
    api = client(api_tokens=entries())
    asked = ask(api, "GET", "/studies/1.2.3").headers["Location"]
    assert asked == "/login?next=/studies/1.2.3"
    assert 'name="next" value="/studies/1.2.3"' in api.get(asked).text


def test_a_wrong_token_signs_nobody_in_and_is_not_repeated(client: Clients) -> None:
    answer = ask(client(api_tokens=entries()), "POST", "/login", data={"token": "<b>wrong"})
    assert answer.status_code == 401
    assert "Set-Cookie" not in answer.headers
    assert "No such token" in answer.text
    assert "wrong&gt;" not in answer.text
    assert "<b>wrong" not in answer.text


@pytest.mark.parametrize("content", ["x" * 4000, "caf\xe9", '"', "=;,", "%00", ""])
def test_a_cookie_that_is_none_of_ours_is_no_session(client: Clients, content: str) -> None:
    headers = {"Cookie": b"hilum=" + content.encode("latin-1")}
    assert ask(client(api_tokens=entries()), "GET", "/", headers=headers).status_code == 303


@pytest.mark.parametrize("secret", ["", "caf\xe9", "\xff" * 100, "x" * 4000])
def test_an_odd_bearer_token_is_just_wrong(client: Clients, secret: str) -> None:
    headers = {"Authorization": b"Bearer " + secret.encode("latin-1")}
    assert ask(client(api_tokens=entries()), "GET", "/api/studies", headers=headers).status_code == 401


# --- other sites' pages -------------------------------------------------------------------------------------


def test_no_unsafe_request_is_served_for_a_cookie_alone(client: Clients) -> None:
    api = client(api_tokens=entries())
    sign_in(api, "administrator")
    before = events(api)
    for method, path in set(routes(api)):
        if method not in _SAFE and path not in ("/login", _SIGNED):
            for headers in ({}, {"X-CSRF-Token": "wrong"}, {"X-CSRF-Token": b"\xff"}):
                data = {"data": {"csrf": "wrong"}} if path in _PAGES else {}
                assert ask(api, method, path, headers=headers, **data).status_code == 403, path
    assert events(api) == before
    assert ask(api, "GET", "/").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1.evil.example"},
    ],
)
def test_another_site_s_page_does_nothing_even_with_the_token_of_ours(
    client: Clients, headers: dict[str, str]
) -> None:
    api = client(api_tokens=entries())
    repeated = sign_in(api, "administrator")
    given = {**headers, "X-CSRF-Token": repeated}
    assert ask(api, "POST", f"/api/studies/{UID}/retry", headers=given).status_code == 403
    data = {"csrf": repeated}
    assert ask(api, "POST", f"/studies/{UID}/retry", headers=headers, data=data).status_code == 403
    signing_in = {"token": SECRETS["administrator"]}
    assert ask(api, "POST", "/login", headers=headers, data=signing_in).status_code == 403


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://127.0.0.1"}, {}])
def test_our_own_pages_act(client: Clients, headers: dict[str, str]) -> None:
    api = client(api_tokens=entries())
    repeated = sign_in(api, "clinician")
    given = {**headers, "X-CSRF-Token": repeated}
    assert ask(api, "POST", f"/api/studies/{UID}/retry", headers=given).status_code == 200
    answer = ask(api, "POST", f"/studies/{UID}/retry", headers=headers, data={"csrf": repeated})
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/studies/{UID}")


def test_what_a_form_repeats_is_of_its_own_session(client: Clients) -> None:
    api = client(api_tokens=entries())
    earlier = sign_in(api, "clinician")
    later = sign_in(api, "clinician")
    assert earlier != later
    assert ask(api, "POST", f"/studies/{UID}/retry", data={"csrf": earlier}).status_code == 403


def test_a_bearer_token_needs_no_page(client: Clients) -> None:
    headers = {**bearer("clinician"), "Sec-Fetch-Site": "cross-site"}
    api = client(api_tokens=entries())
    assert ask(api, "POST", f"/api/studies/{UID}/retry", headers=headers).status_code == 200


# --- without tokens -----------------------------------------------------------------------------------------


def test_without_tokens_this_machine_sees_the_pages_without_signing_in(client: Clients) -> None:
    api = client()
    for path in ("/", f"/studies/{UID}", "/docs", "/api/studies"):
        assert ask(api, "GET", path).status_code == 200, path
    assert ask(api, "GET", "/login").headers["Location"] == "/"
    assert ask(api, "POST", "/login", data={"token": "x"}).headers["Location"] == "/"
    assert csrf(api.get(f"/studies/{UID}").text) == ""
    assert ask(api, "POST", f"/studies/{UID}/retry").status_code == 303


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "127.0.0.1:x", "[::1", "::1"])
def test_without_tokens_another_name_of_this_machine_is_not_answered(client: Clients, host: str) -> None:
    api = client()
    for path in ("/", "/api/studies", "/docs", f"/studies/{UID}"):
        assert ask(api, "GET", path, headers={"Host": host}).status_code == 403, path


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080", "[::1]"]
)
def test_without_tokens_this_machine_is_answered_by_each_of_its_names(client: Clients, host: str) -> None:
    assert ask(client(), "GET", "/", headers={"Host": host}).status_code == 200


def test_without_tokens_another_site_s_page_sees_and_does_nothing(client: Clients) -> None:
    api = client()
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}):
        assert ask(api, "GET", "/", headers=headers).status_code == 403
        assert ask(api, "POST", f"/studies/{UID}/retry", headers=headers).status_code == 403
        assert ask(api, "POST", f"/api/studies/{UID}/retry", headers=headers).status_code == 403


# --- how often ----------------------------------------------------------------------------------------------


def test_who_guesses_tokens_is_soon_told_nothing_any_more(client: Clients) -> None:
    api = client(api_tokens=entries(), rates=Rates(failures=3))
    for _ in range(3):
        assert ask(api, "GET", "/api/studies", headers={"Authorization": "Bearer x"}).status_code == 401
    for headers in ({"Authorization": "Bearer x"}, bearer("viewer")):
        for method, path in (("GET", "/api/studies"), ("POST", "/dicomweb/studies")):
            answer = ask(api, method, path, headers=headers)
            assert answer.status_code == 429
            assert 1 <= int(answer.headers["Retry-After"]) <= 120
    answer = ask(api, "POST", "/login", data={"token": SECRETS["viewer"]})
    assert answer.status_code == 429
    assert "Set-Cookie" not in answer.headers


def test_wrong_sign_ins_count_as_guesses(client: Clients) -> None:
    api = client(api_tokens=entries(), rates=Rates(failures=3))
    for _ in range(3):
        assert ask(api, "POST", "/login", data={"token": "x"}).status_code == 401
    assert ask(api, "POST", "/login", data={"token": SECRETS["viewer"]}).status_code == 429


def test_a_machine_of_ipv6_is_counted_by_its_network_and_audited_by_its_address(client: Clients) -> None:
    api = client(api_tokens=entries(), rates=Rates(failures=3))
    wrong, addresses = {"Authorization": "Bearer x"}, [f"2001:db8::{number}" for number in range(1, 5)]
    answers = [
        ask(
            TestClient(api.app, base_url="http://127.0.0.1", client=(address, 1)),
            "GET",
            "/api/studies",
            headers=wrong,
        )
        for address in addresses
    ]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 429]
    neighbour = TestClient(api.app, base_url="http://127.0.0.1", client=("2001:db8:0:1::1", 1))
    assert ask(neighbour, "GET", "/api/studies", headers=bearer("viewer")).status_code == 200
    told = audit_trail.of(api.data_dir, "110114")
    users = [item.xpath("ActiveParticipant[@UserIsRequestor='true']")[0] for item in told]
    assert [user.get("NetworkAccessPointID") for user in users] == [*addresses[:3], "2001:db8:0:1::1"]
    assert {user.get("NetworkAccessPointTypeCode") for user in users} == {"2"}


def test_who_was_in_before_is_not_locked_out_by_a_neighbour_who_guesses(client: Clients) -> None:
    api = client(api_tokens=entries(), rates=Rates(failures=3))
    assert ask(api, "POST", "/dicomweb/studies", headers=bearer("clinician")).status_code == 415
    for _ in range(5):
        ask(api, "POST", "/dicomweb/studies", headers={"Authorization": "Bearer x"})
    assert ask(api, "POST", "/dicomweb/studies", headers=bearer("clinician")).status_code == 415
    assert ask(api, "POST", "/dicomweb/studies", headers=bearer("administrator")).status_code == 429


def test_a_client_asks_so_often_and_no_more_but_uploads(client: Clients) -> None:
    api = client(api_tokens=entries(), rates=Rates(requests=5))
    headers = bearer("clinician")
    for _ in range(5):
        assert ask(api, "GET", "/api/studies", headers=headers).status_code == 200
    answer = ask(api, "GET", "/api/studies", headers=headers)
    assert answer.status_code == 429
    assert json.loads(answer.text)["detail"].startswith("too many requests")
    assert int(answer.headers["Retry-After"]) >= 1
    assert ask(api, "GET", "/login").status_code == 429
    for _ in range(10):
        assert ask(api, "POST", "/dicomweb/studies", headers=headers).status_code == 415


def events(api: Any) -> list[str]:
    with api.ledger.read() as session:
        return list(session.scalars(select(Event.detail).where(Event.kind == "retried")))
