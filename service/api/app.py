"""Role 2, HTTP: the state of everything, read from the ledger, and DICOMweb."""

from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import AfterValidator
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.staticfiles import StaticFiles

from service.api import actions, schemas, status
from service.api.access import Access
from service.api.actions import StudyUID
from service.api.backfills import backfills
from service.api.dicomweb.routes import dicomweb_routes
from service.api.feed import Feed
from service.api.feedback import api_routes
from service.api.gate import LEDGER_AWAY, BodyBounds, Gate, Shield
from service.api.metrics import registry
from service.api.page.feedback import feedback_routes
from service.api.page.quality import quality_routes
from service.api.page.render import row
from service.api.page.routes import page_routes
from service.api.page.study import study_routes
from service.api.problems import on_http_exception, on_ledger_away, on_validation_error
from service.api.rates import Rates, address_of, client_of
from service.api.roles import Act, Caller, may
from service.api.situation import Lookout
from service.api.stow import Bounds, stow_routes
from service.core import models
from service.core.audit import Audit
from service.core.heartbeat import silent_roles
from service.core.ledger import Ledger
from service.core.live import Live
from service.core.results import Finding
from service.core.settings import Settings
from service.core.spool import Spool
from service.core.states import StudyState

_DESCRIPTION = (
    "Gateway between a PACS and a chest X-ray pneumonia model. Research use only, not for diagnosis."
)
_READER = [may(Act.READ)]
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
# Without what the file says: anybody may ask.
_CONFIG_REFUSED = "the file was saved with a fault, so what it said before counts: see `hilum doctor`"


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("beyond the years 1 to 9999 of UTC") from None


Moment = Annotated[datetime, AfterValidator(_in_utc)]


def create_app(
    settings: Settings,
    ledger: Ledger,
    bounds: Bounds | None = None,
    rates: Rates | None = None,
    live: Live | None = None,
) -> FastAPI:
    """Return the application; everything but what `service.api.gate` names as open asks who is there."""
    app = FastAPI(
        title="Hilum",
        version=version("hilum"),
        description=_DESCRIPTION,
        openapi_url=None,
        # It would send a browser to whatever host the request names.
        redirect_slashes=False,
    )
    audit = Audit(settings, "api")
    live = live or Live(settings)
    access = Access(settings, ledger, audit, rates or Rates())
    # The last one added is the first one passed.
    app.add_middleware(BodyBounds)
    app.add_middleware(Gate, access=access)
    app.add_middleware(Shield)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    for fault in LEDGER_AWAY:
        app.add_exception_handler(fault, on_ledger_away)

    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_offline", "static")]), name="swagger")
    app.mount("/assets", StaticFiles(packages=[("service.api.page", "assets")]), name="assets")
    feed = Feed(ledger, partial(row, zone=settings.zone))
    # The server closes it before it waits for what is under way: `service.api.server`.
    app.state.feed = feed
    app.include_router(_health(ledger, live))
    app.include_router(_api(live, ledger, feed))
    app.include_router(api_routes(live, ledger, audit))
    app.include_router(stow_routes(settings, ledger, audit, bounds or Bounds(), live))
    app.include_router(dicomweb_routes(ledger, Spool(settings.data_dir), audit))
    lookout = Lookout(ledger, live)
    app.include_router(page_routes(live, ledger, access, lookout))
    app.include_router(quality_routes(live, ledger, lookout))
    app.include_router(study_routes(live, ledger, lookout, audit))
    app.include_router(feedback_routes(live, ledger, access, audit))

    @app.get("/openapi.json", dependencies=_READER, include_in_schema=False)
    def openapi() -> dict[str, Any]:
        return app.openapi()

    return app


def _health(ledger: Ledger, live: Live) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz")
    def healthz() -> dict[str, str]:
        """Say that this process answers."""
        return {"status": "ok"}

    @router.get("/readyz", responses={503: {"model": schemas.Readiness}})
    def readyz(response: Response) -> schemas.Readiness:
        """Say whether every role is alive, and which is not; a warning alone still is 200."""
        try:
            faults = silent_roles(ledger)
        except SQLAlchemyError as fault:
            faults = {"ledger": f"cannot be reached ({type(fault).__name__})"}
        response.status_code = 503 if faults else 200
        warnings = {"HILUM_CONFIG": _CONFIG_REFUSED} if live.fault else {}
        return schemas.Readiness(ready=not faults, faults=faults, warnings=warnings)

    return router


def _api(live: Live, ledger: Ledger, feed: Feed) -> APIRouter:
    router = APIRouter()
    metrics = registry(live, ledger)

    @router.get("/metrics", dependencies=_READER, response_class=Response)
    def scrape() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST)

    @router.get("/api/studies", dependencies=_READER)
    def studies(
        state: StudyState | None = None,
        finding: Finding | None = None,
        attention: bool | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        feedback: status.FeedbackFilter | None = None,
        backfilled: bool | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        cursor: Annotated[int | None, Query(ge=0, le=2**63 - 1)] = None,
    ) -> schemas.StudyList:
        """List studies, newest first; `attention`: those that need a person, or those that do not.

        `feedback`: `to_review`, negatives that readers are asked to review and nobody has; `none`, results
        that nobody has said anything of; `given`; or what somebody says of them. `backfilled`: those that a
        back-fill fetched, or those that were sent.
        """
        wanted = status.Wanted(state, finding, attention, since, until, feedback, backfilled)
        with ledger.read() as session:
            listed = status.list_studies(session, wanted, limit, cursor)
        return schemas.StudyList.of(listed.studies, listed.older)

    @router.get("/api/studies/{study_instance_uid}", dependencies=_READER)
    def study(study_instance_uid: StudyUID) -> schemas.StudyOut:
        """Return all that is known of one study."""
        return actions.find(ledger, study_instance_uid)

    @router.post("/api/studies/{study_instance_uid}/retry")
    def retry(
        caller: Annotated[Caller, may(Act.RETRY)], study_instance_uid: StudyUID, as_built: bool = False
    ) -> dict[str, Literal["retried", "nothing to try again"]]:
        """Give what failed or was parked of one study another try.

        With `as_built` what is parked is sent under the patient that it names, whatever its destination says;
        an administrator may. Says so when nothing failed or is parked, and answers 409 when the study's files
        were removed: it has to be sent again.
        """
        tried = actions.retry(ledger, study_instance_uid, caller, as_built=as_built)
        return {"status": "retried" if tried else "nothing to try again"}

    @router.get("/api/models", dependencies=_READER)
    def every_model() -> schemas.Models:
        """Return the models, the one that reports first, and what was decided about them."""
        with ledger.read() as session:
            return schemas.Models(
                models=[schemas.RegisteredModelOut.model_validate(model) for model in models.every(session)],
                changes=[schemas.ModelChangeOut.model_validate(item) for item in models.changes(session)],
            )

    @router.get("/api/backfills", dependencies=_READER)
    def every_backfill() -> list[schemas.BackfillOut]:
        """Return the newest back-fills: what they look for, and how far they are."""
        with ledger.read() as session:
            return backfills(session)

    @router.get("/api/events", dependencies=_READER, response_class=StreamingResponse, responses=_STREAM)
    def events(
        request: Request,
        rows: bool = False,
        last_event_id: Annotated[int | None, Header(ge=0, le=2**63 - 1)] = None,
    ) -> StreamingResponse:
        """Stream what happens to studies as server-sent events, each with its study as the list has it.

        A stream ends after five minutes, and comes back with `Last-Event-ID` by itself in a browser. The
        event `reset` says that something was missed: look at all of it again. With `rows` each study comes as
        a row of the dashboard's list too.
        """
        client = client_of(address_of(request))
        feed.check_room(client)
        return StreamingResponse(feed.stream(client, last_event_id, rows), media_type="text/event-stream")

    return router
