"""Role 2, HTTP: the state of everything, read from the ledger, and the door of STOW-RS."""

import hashlib
import hmac
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from starlette.staticfiles import StaticFiles

from service.api import schemas, status
from service.api.metrics import registry
from service.api.stow import Bounds, stow_routes
from service.core.audit import Audit
from service.core.heartbeat import silent_roles
from service.core.ledger import Ledger
from service.core.retry import retry_study
from service.core.settings import Settings, Token
from service.core.states import StudyState
from service.core.tables import Study

_DESCRIPTION = (
    "Gateway between a PACS and a chest X-ray pneumonia model. Research use only, not for diagnosis."
)
_LOOPBACK_HOSTS = {"127.0.0.1", "localhost", "[::1]"}


def create_app(settings: Settings, ledger: Ledger, bounds: Bounds | None = None) -> FastAPI:
    """Return the application; everything but `/healthz` and `/readyz` asks who is there."""
    app = FastAPI(title="Hilum", version=version("hilum"), description=_DESCRIPTION, openapi_url=None)
    audit = Audit(settings, "api")

    identify = _identify(settings, audit)

    def may_act(token: Annotated[Token | None, Depends(identify)]) -> Token | None:
        if token is not None and token.role == "viewer":
            raise HTTPException(403, "a viewer's token reads only")
        return token

    known = [Depends(identify)]
    metrics = registry(ledger)

    @app.exception_handler(OperationalError)
    def ledger_unreachable(_request: Request, fault: OperationalError) -> JSONResponse:
        return JSONResponse({"detail": f"the ledger cannot be reached ({type(fault).__name__})"}, 503)

    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_offline", "static")]), name="assets")

    @app.get("/openapi.json", dependencies=known, include_in_schema=False)
    def openapi() -> dict[str, Any]:
        return app.openapi()

    @app.get("/docs", dependencies=known, include_in_schema=False)
    def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Hilum API",
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="data:,",
        )

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Say that this process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"model": schemas.Readiness}})
    def readyz(response: Response) -> schemas.Readiness:
        """Say whether every role is alive, and which is not."""
        try:
            faults = silent_roles(ledger)
        except SQLAlchemyError as fault:
            faults = {"ledger": f"cannot be reached ({type(fault).__name__})"}
        response.status_code = 503 if faults else 200
        return schemas.Readiness(ready=not faults, faults=faults)

    @app.get("/metrics", dependencies=known, response_class=Response)
    def scrape() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST)

    @app.get("/api/studies", dependencies=known)
    def studies(
        state: StudyState | None = None,
        since: datetime | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        cursor: Annotated[int | None, Query(ge=0, le=2**63 - 1)] = None,
    ) -> schemas.StudyList:
        """List studies, newest first."""
        with ledger.read() as session:
            return status.list_studies(session, state, since, limit, cursor)

    @app.get("/api/studies/{study_instance_uid}", dependencies=known)
    def study(study_instance_uid: str) -> schemas.StudyOut:
        """Return all that is known of one study."""
        with ledger.read() as session:
            found = status.study(session, study_instance_uid)
        if found is None:
            raise HTTPException(404, "no such study")
        return found

    @app.post("/api/studies/{study_instance_uid}/retry", dependencies=[Depends(may_act)])
    def retry(study_instance_uid: str, as_built: bool = False) -> dict[str, Literal["retried"]]:
        """Give what failed or was parked of one study another try.

        With `as_built` what is parked is sent under the patient that it names, whatever its destination says.
        """
        with ledger.write() as session:
            found = session.scalars(
                select(Study).where(Study.study_instance_uid == study_instance_uid)
            ).one_or_none()
            if found is None:
                raise HTTPException(404, "no such study")
            retry_study(session, found, as_built=as_built)
        return {"status": "retried"}

    app.include_router(stow_routes(settings, ledger, audit, may_act, bounds or Bounds()))
    return app


def _identify(settings: Settings, audit: Audit) -> Callable[..., Token | None]:
    """Return the dependency that says who asks."""
    bearer = HTTPBearer(auto_error=False)

    def identify(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
    ) -> Token | None:
        """Return whose token was shown. Without tokens the API serves this machine alone, by its own name."""
        if not settings.api_tokens:
            if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
                raise HTTPException(403, "another site's page asks nothing of this machine")
            if request.headers.get("host", "").rsplit(":", 1)[0] not in _LOOPBACK_HOSTS:
                raise HTTPException(403, "without HILUM_API_TOKENS only http://127.0.0.1 is answered")
            return None
        shown = hashlib.sha256((credentials.credentials if credentials else "").encode()).hexdigest()
        for token in settings.api_tokens:
            if hmac.compare_digest(token.sha256, shown):
                audit.login(token.name, _address(request))
                return token
        if credentials is not None:
            audit.login_failed(_address(request), "no such token")
        raise HTTPException(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})

    return identify


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
