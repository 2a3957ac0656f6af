"""What every request passes before a route is looked for, and every answer on its way out.

Outermost first: `Shield` (headers, and no answer tells what broke inside), `Gate` (who asks), `BodyBounds`.
Nothing of a body is read before its sender is known.
"""

import asyncio
import re
import traceback
from pathlib import Path

import structlog
from fastapi import Request
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.access import Access
from service.api.multipart import media_type
from service.api.page.render import policy
from service.api.problems import is_page, on_http_exception, on_ledger_away, problem
from service.api.rates import address_of, client_of
from service.api.roles import Caller
from service.core.feedback_link import PATH

LEDGER_AWAY = (OperationalError, PoolTimeoutError)
MAX_BODY_BYTES = 64 * 1024
BODY_SECONDS = 10.0
"""Of everything but an upload, which has bounds of its own (`service.api.stow`)."""
OPEN = {"/healthz", "/readyz", "/login"}
"""What anybody may ask for; so may they the files of these folders."""
OPEN_FOLDERS = ("/assets/", "/docs/assets/")
SIGNED = PATH
"""Below it lie pages that a signed link opens: `service.api.page.feedback`."""
UPLOADS = "/dicomweb/"

_LENGTH = re.compile(r"[0-9]{1,20}")
_SAFE = {"GET", "HEAD", "OPTIONS"}
_LOOPBACK_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_HEADERS = {
    "Content-Security-Policy": policy(),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_log = structlog.get_logger()


class Shield:
    """Gives every answer its headers, and turns what nobody caught into a 500 without particulars."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                kept = scope["path"].startswith(OPEN_FOLDERS)
                # Asked anew each time, and answered 304: a new version has new files under the same names.
                headers.setdefault("Cache-Control", "no-cache" if kept else "no-store")
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if scope["scheme"] == "https":
                    headers.setdefault("Strict-Transport-Security", "max-age=31536000")
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as fault:
            _log_without_values(scope, fault)
            if not begun:
                answer = problem(Request(scope), 500, "something broke inside: the log says where")
                await answer(scope, receive, send_with_headers)


class Gate:
    """Lets nobody in whom `Access` does not know; `request.state.caller` is who asks."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        answer: ASGIApp = self._app
        try:
            request.state.caller = await self._admit(request)
        except HTTPException as fault:
            answer = await on_http_exception(request, fault)
        except LEDGER_AWAY as fault:
            answer = await on_ledger_away(request, fault)
        await answer(scope, receive, send)

    async def _admit(self, request: Request) -> Caller | None:
        path, tokens = request.scope["path"], self._access.tokens
        # Uploads are bounded by how many run at a time: a router is not stalled by how much it sends.
        uploads = path.startswith(UPLOADS) and request.method == "POST"
        if (tokens or path.startswith(SIGNED)) and not uploads:
            self._access.rates.count_request(client_of(address_of(request)))
        if path in OPEN or path.startswith((*OPEN_FOLDERS, SIGNED)):
            return None
        if not tokens:
            _require_this_machine(request)
            return Caller(None)
        caller = await self._by_bearer(request) or await self._by_cookie(request)
        if caller is None:
            raise HTTPException(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
        return caller

    async def _by_bearer(self, request: Request) -> Caller | None:
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        return Caller(await run_in_threadpool(self._access.by_secret, secret.strip(), address_of(request)))

    async def _by_cookie(self, request: Request) -> Caller | None:
        session_id = request.cookies.get(cookie_name(request))
        if session_id is None:
            return None
        caller = await run_in_threadpool(self._access.by_session, session_id)
        if caller is not None and request.method not in _SAFE:
            refuse_other_sites(request)
            # A form of a page brings it in its body: `service.api.page.routes`.
            if not is_page(request.scope["path"]):
                caller.must_repeat(request.headers.get("x-csrf-token", ""))
        return caller


class BodyBounds:
    """Refuses bodies that are compressed, of a kind that is not taken, or too long."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            bounded = _check_body(scope["path"], Headers(scope=scope))
        except HTTPException as fault:
            answer = await on_http_exception(Request(scope), fault)
            await answer(scope, receive, send)
            return
        came, more = 0, True
        until = asyncio.get_running_loop().time() + BODY_SECONDS

        async def receive_bounded() -> Message:
            nonlocal came, more
            try:
                # What comes after the body is that the client leaves, whenever that may be.
                async with asyncio.timeout_at(until if more else None):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the body came too slowly", {"Connection": "close"}) from None
            more = message.get("more_body", False)
            came += len(message.get("body", b""))
            if came > MAX_BODY_BYTES:
                raise _too_long()
            return message

        await self._app(scope, receive_bounded if bounded else receive, send)


def cookie_name(request: Request) -> str:
    """Return the name of the session's cookie: over TLS one that no other host and no plain page can set."""
    return "__Host-hilum" if request.scope["scheme"] == "https" else "hilum"


def refuse_other_sites(request: Request) -> None:
    """Answer 403 when a browser says that another site's page asks; what says nothing is no browser.

    By Sec-Fetch-Site, which browsers send over TLS and on loopback, else by Origin (OWASP, Cross-Site Request
    Forgery Prevention: Fetch Metadata).
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    ours = {f"{scheme}://{request.headers.get('host', '')}".lower() for scheme in ("http", "https")}
    elsewhere = site not in ("none", "same-origin") if site else origin and origin.lower() not in ours
    if elsewhere:
        raise HTTPException(403, "another site's page asks nothing here")


def _require_this_machine(request: Request) -> None:
    """Without tokens: this machine alone, by its own name, lest another site's name lead here."""
    refuse_other_sites(request)
    if not _LOOPBACK_HOST.fullmatch(request.headers.get("host", "")):
        raise HTTPException(403, "without HILUM_API_TOKENS only http://127.0.0.1 is answered")


def _check_body(path: str, headers: Headers) -> bool:
    """Return whether the body, if any, has to be bounded here."""
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise HTTPException(415, "the body must not be compressed (Content-Encoding)")
    if path.startswith(UPLOADS):
        return False
    length = headers.get("content-length", "0")
    if not _LENGTH.fullmatch(length):
        raise HTTPException(400, "Content-Length is no length")
    if int(length) > MAX_BODY_BYTES:
        raise _too_long()
    if int(length) or "transfer-encoding" in headers:
        taken = "application/x-www-form-urlencoded" if is_page(path) else "application/json"
        if media_type(headers.get("content-type", ""))[0] != taken:
            raise HTTPException(415, f"the media type must be {taken}")
    return True


def _too_long() -> HTTPException:
    return HTTPException(413, f"the body is longer than {MAX_BODY_BYTES} bytes")


def _log_without_values(scope: Scope, fault: Exception) -> None:
    """Log where it broke. The message of an exception may repeat what a data set or a request says."""
    where = [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(fault.__traceback__)
    ]
    route = getattr(scope.get("route"), "path", None)
    _log.error(
        "api.failed", method=scope["method"], route=route, error=type(fault).__name__, where=where[-12:]
    )
