"""What a browser shows: sign-in, the studies, one study, and the documentation of the API."""

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Form, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from service.api import actions, status
from service.api.access import SESSION_SECONDS, Access
from service.api.actions import StudyUID
from service.api.gate import cookie_name, refuse_other_sites
from service.api.page.render import page, policy
from service.api.rates import address_of
from service.api.roles import Act, Caller, may
from service.core.ledger import Ledger
from service.core.settings import Settings
from service.core.states import DeliveryState

_PAGE_ROWS = 100
# Where signing in may lead: nowhere else, whatever the address says.
_BACK = re.compile(r"/(docs|studies/[0-9.]{1,64})?")
# Swagger UI shows its icons as data: URLs.
_DOCS_POLICY = policy(script_src="'self'", connect_src="'self'", style_src="'self'", img_src="'self' data:")
_Reader = Annotated[Caller, may(Act.READ)]
_Form = Annotated[str, Form(max_length=512)]


def _repeat_csrf(request: Request, csrf: _Form = "") -> None:
    caller: Caller = request.state.caller
    caller.must_repeat(csrf)


_FROM_OUR_PAGE = Depends(_repeat_csrf)


def page_routes(settings: Settings, ledger: Ledger, access: Access) -> APIRouter:
    """Return the routes of the pages."""
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

    @router.get("/login")
    def login_page(next_path: Annotated[str, Query(alias="next")] = "/") -> Response:
        if not access.tokens:
            return _to("/")
        return page("login.html", caller=None, back=_back(next_path), wrong=False)

    @router.post("/login")
    def login(
        request: Request, token: _Form = "", next_path: Annotated[str, Form(alias="next")] = "/"
    ) -> Response:
        if not access.tokens:
            return _to("/")
        refuse_other_sites(request)
        try:
            session_id = access.sign_in(token.strip(), address_of(request))
        except HTTPException as fault:
            if fault.status_code != 401:
                raise
            return page("login.html", 401, caller=None, back=_back(next_path), wrong=True)
        answer = _to(_back(next_path))
        _set_cookie(request, answer, session_id, SESSION_SECONDS)
        return answer

    @router.post("/logout", dependencies=[_FROM_OUR_PAGE])
    def logout(request: Request) -> Response:
        if session_id := request.cookies.get(cookie_name(request)):
            access.sign_out(session_id, address_of(request))
        answer = _to("/login")
        _set_cookie(request, answer, "", 0)
        return answer

    @router.get("/")
    def studies(caller: _Reader, cursor: Annotated[int | None, Query(ge=0, le=2**63 - 1)] = None) -> Response:
        with ledger.read() as session:
            found = status.list_studies(session, None, None, _PAGE_ROWS, cursor)
        return page("studies.html", caller=caller, found=found, first=cursor is None, zone=settings.zone)

    @router.get("/studies/{study_instance_uid}")
    def study(caller: _Reader, study_instance_uid: StudyUID) -> Response:
        found = actions.find(ledger, study_instance_uid)
        parked = any(item.state == DeliveryState.PARKED for item in found.deliveries)
        return page(
            "study.html",
            caller=caller,
            study=found,
            zone=settings.zone,
            may_retry=caller.may(Act.RETRY),
            may_send_as_built=parked and caller.may(Act.SEND_AS_BUILT),
        )

    @router.post("/studies/{study_instance_uid}/retry", dependencies=[_FROM_OUR_PAGE])
    def retry(
        caller: Annotated[Caller, may(Act.RETRY)],
        study_instance_uid: StudyUID,
        as_built: Annotated[bool, Form()] = False,
    ) -> Response:
        actions.retry(ledger, study_instance_uid, caller, as_built=as_built)
        return _to(f"/studies/{study_instance_uid}")

    @router.get("/docs")
    def docs(caller: _Reader) -> Response:
        return page("docs.html", headers={"Content-Security-Policy": _DOCS_POLICY}, caller=caller)

    return router


def _back(path: str) -> str:
    return path if _BACK.fullmatch(path) else "/"


def _to(path: str) -> RedirectResponse:
    return RedirectResponse(path, 303)


def _set_cookie(request: Request, answer: Response, content: str, seconds: int) -> None:
    answer.set_cookie(
        cookie_name(request),
        content,
        max_age=seconds,
        path="/",
        secure=request.scope["scheme"] == "https",
        httponly=True,
        samesite="strict",
    )
