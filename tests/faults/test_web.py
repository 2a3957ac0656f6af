"""Requests that no browser sends, to a real server: too long, too slow, too many, from where they say."""

import re
import socket
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from service.api import gate
from service.api.gate import MAX_BODY_BYTES
from service.api.rates import Rates
from tests.faults.web import Web, WebPeer, web
from tests.servers import eventually
from tests.tokens import SECRETS, bearer, entries

_FORM = "application/x-www-form-urlencoded"


def asked(running: Web, head: str, content: bytes = b"") -> int:
    """Send a request as it is written, with its line ends mended, and return the status."""
    with running.peer() as peer:
        peer.send(head.strip().replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + content)
        return peer.status()


# --- bodies -------------------------------------------------------------------------------------------------


def test_a_body_is_as_long_as_it_may_be_and_no_longer(tmp_path: Path) -> None:
    with web(tmp_path, api_tokens=entries()) as running:
        for content in (b"token=" + b"x" * MAX_BODY_BYTES, iter([b"token=", *[b"x" * 8192] * 9])):
            answer = httpx.post(f"{running.url}/login", content=content, headers={"Content-Type": _FORM})
            assert answer.status_code == 413
        fits = b"x=" + b"x" * (MAX_BODY_BYTES - 2)
        answer = httpx.post(f"{running.url}/login", content=fits, headers={"Content-Type": _FORM})
        assert answer.status_code == 401


def test_a_length_that_is_announced_is_refused_before_it_comes(tmp_path: Path) -> None:
    with web(tmp_path, api_tokens=entries()) as running:
        head = f"POST /login HTTP/1.1\nHost: x\nContent-Type: {_FORM}\nContent-Length: 99999999999999999999"
        assert asked(running, head) == 413
        assert asked(running, head + "9") == 400
        assert asked(running, head.replace("99999999999999999999", "-1")) == 400


def test_no_compressed_body_is_unpacked(tmp_path: Path) -> None:
    with web(tmp_path, api_tokens=entries()) as running:
        for encoding in ("gzip", "deflate", "br", "identity, gzip", "x"):
            headers = {**bearer("administrator"), "Content-Encoding": encoding, "Content-Type": _FORM}
            for path in ("/login", "/api/studies/1.2.3/retry", "/studies/1.2.3/retry"):
                assert httpx.post(running.url + path, content=b"x", headers=headers).status_code == 415, path
            assert running.post(b"x", **headers).status_code == 415


def test_a_body_of_another_kind_is_not_read(tmp_path: Path) -> None:
    retry = "/api/studies/1.2.3/retry"
    with web(tmp_path, api_tokens=entries()) as running:
        for path, media_type in (
            *(("/login", "application/json"), ("/login", "multipart/form-data; boundary=x")),
            *(("/login", "text/plain"), ("/login", ""), ("/login", "x" * 5000)),
            *((retry, _FORM), (retry, "text/plain"), (retry, "multipart/form-data; boundary=x")),
        ):
            headers = {**bearer("administrator"), "Content-Type": media_type}
            answer = httpx.post(running.url + path, content=b"x=y", headers=headers)
            assert answer.status_code == 415, (path, media_type)


def test_a_body_that_drips_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.5)
    with web(tmp_path, api_tokens=entries()) as running:
        head = f"POST /login HTTP/1.1\nHost: x\nContent-Type: {_FORM}\nContent-Length: 100"
        assert asked(running, head, b"token=") == 408


def test_nobody_unknown_is_read_from(tmp_path: Path) -> None:
    with web(tmp_path, api_tokens=entries()) as running:
        head = "POST /api/studies/1.2.3/retry HTTP/1.1\nHost: x\nContent-Type: application/json"
        assert asked(running, f"{head}\nContent-Length: 100") == 401


# --- heads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["", entries()])
def test_an_odd_host_is_no_fault_of_the_server(tmp_path: Path, tokens: str) -> None:
    with web(tmp_path, api_tokens=tokens) as running:
        for host in ("", "[", "[::1", "a b", "\xff", "x" * 4000, "evil.example:99999", "/..", "@", "%00"):
            for path in ("/", "/api/studies", "/docs/", "/login", "/assets/hilum.css", "/nothing/"):
                status = asked(running, f"GET {path} HTTP/1.1\nHost: {host}")
                assert 0 < status < 500, (host, path)


def test_no_answer_leads_to_the_host_that_the_request_names(tmp_path: Path) -> None:
    with web(tmp_path, api_tokens=entries()) as running:
        for shown in ({}, bearer("viewer")):
            for path in ("/", "/docs/", "/studies/1.2.3/", "/api/studies/", "//evil.example"):
                answer = httpx.get(running.url + path, headers={"Host": "evil.example", **shown})
                led_to = answer.headers.get("Location", "/")
                assert re.match(r"/(?!/)", led_to), path
                assert answer.status_code != 307, path


_ODD_PATHS = (
    *("/../../etc/passwd", "/assets/../templates/base.html", "/assets/..%2f..%2f__init__.py", "/assets/%00"),
    *("/assets/%2e%2e/x", "/assets//etc/passwd", "/docs/assets/../../openapi.json", "//evil.example/"),
    *("/%ff%fe", "/api/studies/%2e%2e", f"/studies/{'1.' * 3000}2", "/studies/%EF%BC%91"),
    *("/?cursor=" + "9" * 5000, "/?cursor=-1", "/api/studies?state=%00", "/api/studies?since=x"),
    *("/api/studies?since=0001-01-01T00:00:00%2B14:00", "/api/studies?since=9999-12-31T23:59:59-14:00"),
)


def test_an_odd_path_is_no_fault_of_the_server_and_no_way_out_of_its_folder(tmp_path: Path) -> None:
    with web(tmp_path) as running:
        for path in _ODD_PATHS:
            with running.peer() as peer:
                peer.send(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
                content = b"".join(iter(lambda: peer.socket.recv(65536), b""))
            assert int(content.split(b" ", 2)[1]) in {200, 404, 422}, path
            for secret in (b"root:", b"{% block", b"import "):
                assert secret not in content, path


def test_a_head_that_does_not_end_is_refused(tmp_path: Path) -> None:
    with web(tmp_path) as running, running.peer() as peer:
        peer.send(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        with suppress(ConnectionError):  # closed while we were still sending
            for _ in range(100):
                peer.send(b"X: " + b"x" * 10_000 + b"\r\n")
        assert peer.status() in {0, 400}


# --- clients ------------------------------------------------------------------------------------------------


def test_one_address_takes_no_more_than_its_share_of_connections(tmp_path: Path) -> None:
    bounds = {"connections_per_address": 5, "between_requests": 20.0}
    with web(tmp_path, protocol=bounds) as running:
        peers = [running.peer() for _ in range(5)]
        eventually(lambda: httpx_status(running) == 0, message="one more is closed at once")
        # Another address of this machine is somebody else.
        with socket.create_connection(
            ("127.0.0.1", running.settings.http_port), source_address=("127.0.0.2", 0)
        ) as other:
            other.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert other.recv(64).startswith(b"HTTP/1.1 200")
        for peer in peers:
            peer.socket.close()
        eventually(lambda: httpx_status(running) == 200, message="there is room again")


def test_a_proxy_takes_as_many_connections_as_it_needs(tmp_path: Path) -> None:
    bounds = {"connections_per_address": 2, "between_requests": 20.0}
    with web(tmp_path, protocol=bounds, trusted_proxies="127.0.0.0/8") as running:
        peers = [running.peer() for _ in range(5)]
        assert httpx_status(running) == 200
        for peer in peers:
            peer.socket.close()


def test_all_connections_together_have_a_bound(tmp_path: Path) -> None:
    bounds = {"connections_at_a_time": 2, "between_requests": 20.0}
    with web(tmp_path, protocol=bounds, trusted_proxies="127.0.0.1") as running:
        peers = [running.peer() for _ in range(2)]
        eventually(lambda: httpx_status(running) == 0)
        for peer in peers:
            peer.socket.close()
        eventually(lambda: httpx_status(running) == 200)


def test_a_stranger_s_word_on_where_it_comes_from_is_not_believed(tmp_path: Path) -> None:
    with web(tmp_path, api_tokens=entries(), rates=Rates(failures=2)) as running:
        statuses = []
        for number in range(4):
            headers = {"X-Forwarded-For": f"10.0.0.{number}", "X-Forwarded-Proto": "https"}
            headers["Authorization"] = "Bearer x"
            answer = httpx.get(f"{running.url}/api/studies", headers=headers)
            statuses.append(answer.status_code)
            assert "Strict-Transport-Security" not in answer.headers
        assert statuses == [401, 401, 429, 429]


def test_a_proxy_s_word_on_who_asks_is_believed(tmp_path: Path) -> None:
    with web(tmp_path, api_tokens=entries(), rates=Rates(failures=2), trusted_proxies="127.0.0.1") as running:
        for number in range(4):
            headers = {"X-Forwarded-For": f"10.0.0.{number}", "X-Forwarded-Proto": "https"}
            headers["Authorization"] = "Bearer x"
            answer = httpx.get(f"{running.url}/api/studies", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
        headers = {"X-Forwarded-For": "10.0.0.9", "X-Forwarded-Proto": "https"}
        answer = httpx.post(f"{running.url}/login", data={"token": SECRETS["viewer"]}, headers=headers)
        assert answer.headers["Set-Cookie"].startswith("__Host-hilum=")
        assert "Secure" in answer.headers["Set-Cookie"]
        # Of an address of IPv6 the first half says who it is.
        for number in range(2):
            headers = {"X-Forwarded-For": f"2001:db8::{number}", "Authorization": "Bearer x"}
            assert httpx.get(f"{running.url}/api/studies", headers=headers).status_code == 401
        headers["X-Forwarded-For"] = "2001:db8::ffff"
        assert httpx.get(f"{running.url}/api/studies", headers=headers).status_code == 429
        headers["X-Forwarded-For"] = "no address\xff"
        assert (
            httpx.get(f"{running.url}/api/studies", headers=httpx.Headers(headers, "latin-1")).status_code
            == 401
        )


def httpx_status(running: Web) -> int:
    """Return the status of a request over a connection of its own, 0 when it is closed without an answer."""
    try:
        with WebPeer(running.settings.http_port) as peer:
            peer.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return peer.status()
    except OSError:
        return 0
