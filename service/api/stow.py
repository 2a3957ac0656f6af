"""STOW-RS, the second door (PS3.18 10.5): the same promises as C-STORE, in bounded memory and time."""

import asyncio
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

import structlog
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, HTTPException, Request, Response
from starlette.requests import ClientDisconnect

from service.api.multipart import MultipartReader, media_type
from service.api.rates import address_of
from service.api.roles import Act, Caller, may
from service.api.upload import Upload
from service.core import tally
from service.core.audit import Audit
from service.core.errors import HilumError, InvalidUID
from service.core.identifiers import checked_uid
from service.core.ledger import Ledger
from service.core.live import Live
from service.core.receive import Intake
from service.core.settings import Settings
from service.core.spool import Spool

_BATCH_BYTES = 64 * 1024
_JSON = "application/dicom+json"
_BOUNDARY = re.compile(r"[A-Za-z0-9'()+_,\-./:=? ]{0,69}[A-Za-z0-9'()+_,\-./:=?]")
_METADATA = {"application/dicom+json", "application/dicom+xml"}
_MEDIA_TYPE = 'multipart/related; type="application/dicom"; boundary=…'
_BUSY = {"Retry-After": "30"}
_OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {'multipart/related; type="application/dicom"': {"schema": {"type": "string"}}},
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "All objects are stored", "content": {_JSON: {}}},
    202: {"description": "Some are stored: FailedSOPSequence names the others", "content": {_JSON: {}}},
    400: {"description": "No multipart body with objects"},
    409: {"description": "None is stored: FailureReason says why", "content": {_JSON: {}}},
    413: {"description": "Too large, or too many parts"},
    415: {"description": "Another media type, or a compressed body"},
    503: {"description": "No room now, or too many uploads: send it again"},
}
_log = structlog.get_logger()


@dataclass(frozen=True)
class Bounds:
    """What one request may take.

    Attributes
    ----------
    stall
        Seconds in which 64 KiB more of the body, or its end, must come.
    request
        Seconds from the first byte of the body to the last.
    parts
        Objects in one request.
    """

    stall: float = 30
    request: float = 4 * 3600
    parts: int = 10_000


def stow_routes(settings: Settings, ledger: Ledger, audit: Audit, bounds: Bounds, live: Live) -> APIRouter:
    """Return the routes of the Studies Service's store transaction."""
    spool = Spool(settings.data_dir)
    intake = Intake(ledger, spool, settings, live)
    slots = asyncio.Semaphore(settings.max_uploads)
    threads = CapacityLimiter(settings.max_uploads)
    router = APIRouter(prefix="/dicomweb")
    Sender = Annotated[Caller, may(Act.STORE)]  # noqa: N806

    async def store(request: Request, caller: Caller, study_instance_uid: str | None) -> Response:
        boundary = _boundary(request)
        if slots.locked():
            raise HTTPException(503, "too many uploads at once (HILUM_MAX_UPLOADS)", _BUSY)
        structlog.contextvars.bind_contextvars(association=uuid.uuid4().hex[:12])
        async with slots:
            sender = caller.name or "STOW-RS"
            transfer = audit.receiving(sender, address_of(request))
            upload = Upload(settings, spool, intake, sender, study_instance_uid, bounds.parts, transfer)
            reader = MultipartReader(boundary, upload)
            broken: HilumError | None = None
            at_work = threading.Lock()

            def feed(batch: bytes) -> None:
                with at_work:
                    reader.feed(batch)

            try:
                async for batch in _batches(request, bounds):
                    await to_thread.run_sync(feed, batch, limiter=threads)
                reader.finish()
            except HilumError as fault:
                _log.warning("stow.broken", code=fault.code, reason=str(fault))
                broken = fault
            except ClientDisconnect:
                _log.warning("stow.disconnected", stored=len(upload.stored))
                raise HTTPException(400, "the body did not come to its end") from None
            except TimeoutError:
                _log.warning("stow.stalled", stored=len(upload.stored))
                raise HTTPException(
                    408, "the body came too slowly, or not at all", {"Connection": "close"}
                ) from None
            finally:
                # A server that is stopped cancels this task, not the thread that is at work for it.
                if at_work.acquire(blocking=False):
                    upload.abandon()
                    await to_thread.run_sync(transfer.write, limiter=threads)
                    await to_thread.run_sync(tally.flush, ledger, limiter=threads)
            return _answer(upload, broken)

    @router.post("/studies", responses=_RESPONSES, openapi_extra=_OPENAPI, response_class=Response)
    async def store_instances(request: Request, sender: Sender) -> Response:
        """Store DICOM objects (STOW-RS, PS3.18 10.5)."""
        return await store(request, sender, None)

    @router.post(
        "/studies/{study_instance_uid}", responses=_RESPONSES, openapi_extra=_OPENAPI, response_class=Response
    )
    async def store_instances_of_a_study(
        request: Request, sender: Sender, study_instance_uid: str
    ) -> Response:
        """Store DICOM objects of one study (STOW-RS, PS3.18 10.5)."""
        try:
            return await store(request, sender, checked_uid(study_instance_uid, "StudyInstanceUID"))
        except InvalidUID as fault:
            raise HTTPException(fault.http_status, str(fault)) from None

    return router


def _boundary(request: Request) -> bytes:
    """Return the boundary of a body that we take, decided by the header alone."""
    name, parameters = media_type(request.headers.get("content-type", ""))
    root = parameters.get("type", "application/dicom").lower()
    if name != "multipart/related" or root != "application/dicom":
        hint = ": metadata and bulk data apart are not taken" if root in _METADATA else ""
        raise HTTPException(415, f"the media type must be {_MEDIA_TYPE}{hint}")
    if not _BOUNDARY.fullmatch(parameters.get("boundary", "")):
        raise HTTPException(400, "the media type names no boundary of 1 to 70 characters (RFC 2046 5.1.1)")
    accepted = {
        item.split(";")[0].strip().lower() for item in request.headers.get("accept", "*/*").split(",")
    }
    if not accepted & {"", "*/*", "application/*", "application/json", _JSON}:
        raise HTTPException(406, f"the answer is {_JSON}")
    return parameters["boundary"].encode("ascii")


async def _batches(request: Request, bounds: Bounds) -> AsyncIterator[bytes]:
    """Yield the body in batches of about 64 KiB.

    Raises
    ------
    TimeoutError
        When it stalls, drips, or takes too long in all.
    """
    chunks = request.stream()
    latest = time.monotonic() + bounds.request
    more = True
    while more:
        batch = bytearray()
        async with asyncio.timeout(min(bounds.stall, latest - time.monotonic())):
            while more and len(batch) < _BATCH_BYTES:
                chunk = await anext(chunks, None)
                more = chunk is not None
                batch += chunk or b""
        yield bytes(batch)


def _answer(upload: Upload, broken: HilumError | None) -> Response:
    status = upload.http_status(broken)
    headers = _BUSY if status == 503 else {}
    if not upload.stored and not upload.failed:
        detail = str(broken) if broken else "the body has no part: nothing was stored"
        raise HTTPException(status, detail, headers)
    return Response(upload.answer(broken), status, headers, _JSON)
