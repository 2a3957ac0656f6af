"""Real receivers of notices: a web server and a mail server, each on a free port of this machine."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword

from tests.certificates import Issued
from tests.servers import free_port


@dataclass
class Posted:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class WebHook:
    """What came, and what is answered: a status for each request in turn, at last 204 for ever."""

    url: str
    posted: list[Posted] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)


@contextmanager
def webhook(issued: Issued | None = None) -> Iterator[WebHook]:
    """Serve a webhook; with a certificate over TLS, called as localhost."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.posted.append(Posted(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            status = made.answers.pop(0) if made.answers else 204
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    scheme = "http"
    if issued is not None:
        server.socket = issued.server().wrap_socket(server.socket, server_side=True)
        scheme = "https"
    made = WebHook(f"{scheme}://localhost:{server.server_port}/hook?room=1")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class MailBox:
    """What came: mails with the TLS version they came over and the user who sent them."""

    port: int
    mails: list[EmailMessage] = field(default_factory=list)
    tls: list[str | None] = field(default_factory=list)
    users: list[str | None] = field(default_factory=list)
    refuses: int = 0


@contextmanager
def mailbox(
    issued: Issued | None, *, implicit: bool = False, user: str = "", password: str = ""
) -> Iterator[MailBox]:
    """Serve SMTP as localhost; with a certificate STARTTLS is required, or TLS from the first byte."""
    box = MailBox(free_port())

    class Handler:
        async def handle_DATA(self, server: SMTP, session: Any, envelope: Envelope) -> str:
            if box.refuses:
                box.refuses -= 1
                return "451 try again later"
            content = envelope.content
            assert isinstance(content, bytes)
            box.mails.append(message_from_bytes(content, policy=policy.default))
            secured = server.transport.get_extra_info("ssl_object") or (session.ssl or {}).get("ssl_object")
            box.tls.append(secured.version() if secured else None)
            box.users.append(session.auth_data)
            return "250 OK"

    def authenticate(_server: Any, _session: Any, _envelope: Any, _kind: str, data: Any) -> AuthResult:
        right = isinstance(data, LoginPassword) and (data.login, data.password) == (
            user.encode(),
            password.encode(),
        )
        return AuthResult(success=right, handled=right, auth_data=user if right else None)

    context: ssl.SSLContext | None = issued.server() if issued else None
    options: dict[str, Any] = {}
    if context is not None and not implicit:
        options = {"tls_context": context, "require_starttls": True}
    if user:
        options |= {"authenticator": authenticate, "auth_required": True, "auth_require_tls": not implicit}
    controller = Controller(
        Handler(),
        hostname="127.0.0.1",
        port=box.port,
        ssl_context=context if implicit else None,
        ready_timeout=10,
        **options,
    )
    controller.start()
    try:
        yield box
    finally:
        controller.stop()
