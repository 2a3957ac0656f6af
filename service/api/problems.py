"""What is answered when a request is not served: a page to who looks at pages, JSON to who does not.

Neither repeats what was asked for, nor what went wrong inside.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from service.api.mends import LEDGER_STEPS, Step
from service.api.page.render import page

_MACHINES = ("/api/", "/dicomweb/", "/docs/assets/", "/assets/")
_MACHINE_PATHS = {"/healthz", "/readyz", "/metrics", "/openapi.json"}


def is_page(path: str) -> bool:
    """Return whether people look at it."""
    return not path.startswith(_MACHINES) and path not in _MACHINE_PATHS


def problem(
    request: Request,
    status: int,
    detail: Any,
    headers: Mapping[str, str] | None = None,
    steps: Sequence[Step] = (),
    title: str = "",
) -> Response:
    """Return the answer to a request that is not served; `steps` and `title` are for people."""
    path = request.scope["path"]
    if not is_page(path):
        return JSONResponse({"detail": detail}, status, headers)
    if status == 401:
        back = "" if path == "/" else f"?next={quote(path)}"
        return RedirectResponse(f"/login{back}", 303)
    title = title or HTTPStatus(status).phrase
    return page("problem.html", status, headers, title=title, detail=detail, steps=steps, caller=None)


async def on_http_exception(request: Request, fault: Exception) -> Response:
    """Answer for a route that raised an HTTPException."""
    assert isinstance(fault, HTTPException)
    return problem(request, fault.status_code, fault.detail, fault.headers)


async def on_validation_error(request: Request, fault: Exception) -> Response:
    """Say which parameter is wrong and why, without its value."""
    assert isinstance(fault, RequestValidationError)
    found = [{key: error[key] for key in ("loc", "msg", "type")} for error in fault.errors()]
    if is_page(request.scope["path"]):
        return problem(request, 422, "; ".join(f"{error['loc'][-1]}: {error['msg']}" for error in found))
    return JSONResponse({"detail": found}, 422)


async def on_ledger_away(request: Request, fault: Exception) -> Response:
    """Say that the ledger does not answer."""
    detail = f"the ledger cannot be reached ({type(fault).__name__})"
    title = "No study can be shown: the ledger, which is the database of Hilum, does not answer"
    return problem(request, 503, detail, steps=LEDGER_STEPS, title=title)
