"""The STOW-RS door, in this process or as one of its own, and what no HTTP library would send or answer."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from service.api.app import create_app
from service.api.feed import Feed
from service.api.rates import Rates
from service.api.server import BoundedProtocol, Server, configuration
from service.api.stow import Bounds
from tests.faults.door import Door, DoorProcess, PlainPeer, ledger_for
from tests.servers import HTTP, eventually, free_port

BOUNDARY = "hilum-test"
MEDIA_TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
SHORT = Bounds(stall=1, request=3)
BETWEEN_REQUESTS = 1.0
REFERENCED, FAILED, OTHER = "00081199", "00081198", "0008119A"


def part(content: bytes, *headers: str) -> bytes:
    """Return one part with its delimiter; by default it says application/dicom."""
    lines = headers or ("Content-Type: application/dicom",)
    return "\r\n".join([f"--{BOUNDARY}", *lines, "", ""]).encode() + content + b"\r\n"


def body(*contents: bytes) -> bytes:
    """Return a whole body of application/dicom parts."""
    return b"".join(part(content) for content in contents) + f"--{BOUNDARY}--\r\n".encode()


def reasons(answer: httpx.Response) -> list[int]:
    """Return the failure reasons of an answer, those of objects that it names first."""
    response = answer.json()
    items = [item for tag in (FAILED, OTHER) for item in response.get(tag, {}).get("Value", [])]
    return [item["00081197"]["Value"][0] for item in items]


def stored(answer: httpx.Response) -> list[str]:
    """Return the SOP Instance UIDs that an answer says are stored."""
    items = answer.json().get(REFERENCED, {}).get("Value", [])
    return [item["00081155"]["Value"][0] for item in items]


@dataclass
class Web(Door):
    """An API in this process."""

    feed: Feed

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.http_port}"

    def post(self, content: Any, study: str = "", **headers: str) -> httpx.Response:
        return post(self.url, content, study, **headers)

    def peer(self) -> "WebPeer":
        return WebPeer(self.settings.http_port)


def post(url: str, content: Any, study: str = "", **headers: str) -> httpx.Response:
    """Send a body to the store transaction; underscores in names of headers stand for hyphens."""
    given = {"Content-Type": MEDIA_TYPE, **{name.replace("_", "-"): value for name, value in headers.items()}}
    path = f"/dicomweb/studies{f'/{study}' if study else ''}"
    return HTTP.post(url + path, content=content, headers=given, timeout=30)


@contextmanager
def web(
    folder: Path,
    bounds: Bounds = SHORT,
    rates: Rates | None = None,
    protocol: dict[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Web]:
    """Run an API with short bounds on a data folder below `folder`, and with other bounds of `protocol`."""
    short = type("Short", (BoundedProtocol,), {"between_requests": BETWEEN_REQUESTS, **(protocol or {})})
    with ledger_for(folder, **{"http_port": free_port(), **settings}) as (made, ledger):
        app = create_app(made, ledger, bounds, rates)
        server = Server(configuration(app, made, short, drain_seconds=1), app.state.feed)
        thread = threading.Thread(target=server.run, name="uvicorn")
        thread.start()
        try:
            eventually(lambda: server.started)
            yield Web(made, ledger, app.state.feed)
        finally:
            server.should_exit = True
            thread.join(20)


class ApiProcess(DoorProcess):
    """`hilum api`."""

    name = "api"

    def __init__(self, **settings: object) -> None:
        super().__init__("api", **settings)

    def ready(self) -> bool:
        try:
            return HTTP.get(f"{self.http_url}/healthz", timeout=2).is_success
        except httpx.HTTPError:
            return False

    def post(self, content: Any) -> httpx.Response:
        return post(self.http_url, content)


class WebPeer(PlainPeer):
    """A user agent that sends what it likes, when it likes."""

    def head(self, length: int, *headers: str) -> bytes:
        """Return the head of a store request whose body is `length` bytes long."""
        lines = [
            "POST /dicomweb/studies HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            f"Content-Type: {MEDIA_TYPE}",
            f"Content-Length: {length}",
            *headers,
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n"

    def status(self) -> int:
        """Return the status of the next answer, 0 when the server has closed without one.

        Raises
        ------
        TimeoutError
            When nothing comes in time.
        """
        content = b""
        with suppress(ConnectionError):
            while b"\r\n\r\n" not in content and (more := self.socket.recv(65536)):
                content += more
        return int(content.split(b" ", 2)[1]) if content.startswith(b"HTTP/1.1 ") else 0


class OddServer:
    """An HTTP server that answers each request with what the test gives it, byte by byte if need be.

    An answer is what goes over the wire; None says nothing until the user agent leaves. `requests` holds the
    heads and bodies it was sent. With `tls` it speaks that, as localhost.
    """

    def __init__(
        self,
        *answers: bytes | Sequence[bytes] | None,
        pause: float = 0.05,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.answers = list(answers)
        self.pause = pause
        self.tls = tls
        self.requests: list[tuple[str, bytes]] = []
        self.connections = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, name="odd server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()

    @property
    def url(self) -> str:
        where = "http://127.0.0.1" if self.tls is None else "https://localhost"
        return f"{where}:{self._listening.getsockname()[1]}/dicom-web"

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.connections += 1
                threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        if self.tls is not None:
            try:
                connection = self.tls.wrap_socket(connection, server_side=True)
            except OSError:
                connection.close()
                return
        with connection, suppress(OSError), connection.makefile("rb") as stream:
            while head := b"".join(iter(lambda: stream.readline().strip(b"\r\n") + b"\n", b"\n")).decode():
                length = next(
                    (
                        int(line[15:])
                        for line in head.lower().split("\n")
                        if line.startswith("content-length:")
                    ),
                    0,
                )
                self.requests.append((head, stream.read(length)))
                answer = self.answers.pop(0)
                if answer is None:
                    stream.read()
                    return
                for piece in [answer] if isinstance(answer, bytes) else answer:
                    connection.sendall(piece)
                    if not isinstance(answer, bytes):
                        time.sleep(self.pause)


def http(
    status: int, content: object = b"", media_type: str = "application/dicom+json", *headers: str
) -> bytes:
    """Return an answer; content that is no bytes is written as JSON."""
    made = content if isinstance(content, bytes) else json.dumps(content).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(made)}", f"Content-Type: {media_type}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + made
