"""Answers of several parts (PS3.18 8.6.1.2), and data sets as JSON or XML, written while they are read."""

import json
import re
import secrets
from collections.abc import Iterable, Iterator

from fastapi import HTTPException, Request
from fastapi.responses import StreamingResponse

from service.api.dicomweb.model import Model
from service.api.dicomweb.native import native_xml
from service.api.dicomweb.negotiation import JSON, XML, Choice, accepted, choose

Part = tuple[Choice, dict[str, str], Iterable[bytes]]
_HOST, _PORT = re.compile(r"[A-Za-z0-9._~:\[\]-]{1,255}"), re.compile(r":[0-9]+$")
_PORTS = {"http": 80, "https": 443}
_OF_PROXIES = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto")


def base_url(request: Request) -> str:
    """Return the base URL of the service, as who asks has written it.

    dicomweb-client leaves the port out of Host (RFC 9110 7.2 wants it unless it is the scheme's own): where
    no proxy has passed the request on, it is the port that was asked.
    """
    headers, scheme = request.headers, request.scope["scheme"]
    host, server = headers.get("host", ""), request.scope.get("server")
    if not _HOST.fullmatch(host):
        host = "localhost"
    passed_on = any(name in headers for name in _OF_PROXIES)
    if server and server[1] and not passed_on and not _PORT.search(host):
        host = host if server[1] == _PORTS.get(scheme) else f"{host}:{server[1]}"
    return f"{scheme}://{host}/dicomweb"


def multipart(media_type: str, parts: Iterable[Part], status: int = 200) -> StreamingResponse:
    """Return an answer whose parts are of one media type."""
    boundary = secrets.token_hex(16)
    content_type = f'multipart/related; type="{media_type}"; boundary={boundary}'
    return StreamingResponse(_body(boundary, parts), status, media_type=content_type)


def model_choice(request: Request) -> Choice:
    """Return how data sets are answered: in JSON, or to who wants it in XML (8.7.3.2)."""
    ranges = accepted(request)
    also_json = Choice("application/json", False)
    choice = choose(ranges, [Choice(JSON, False), also_json, Choice(XML, True)])
    if choice is None:
        raise HTTPException(406, f'the answer is {JSON}, or multipart/related; type="{XML}"')
    return Choice(JSON, False) if choice == also_json else choice


def xml_parts(models: Iterator[Model]) -> Iterator[Part]:
    """Yield data sets as parts in the Native DICOM Model."""
    for model in models:
        yield Choice(XML, True), {}, [native_xml(model)]


def json_list(models: Iterator[Model]) -> Iterator[bytes]:
    """Yield data sets as one JSON array."""
    before = b"["
    for model in models:
        yield before + json.dumps(model, allow_nan=False, separators=(",", ":")).encode()
        before = b","
    yield b"[]" if before == b"[" else b"]"


def _body(boundary: str, parts: Iterable[Part]) -> Iterator[bytes]:
    for choice, headers, content in parts:
        lines = [f"--{boundary}", f"Content-Type: {choice.content_type}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        yield ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        yield from content
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()
