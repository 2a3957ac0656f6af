"""What a browser shows: sign-in, the studies, one study, the gateway, and the documentation of the API."""

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Form, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from service.api import status
from service.api.access import SESSION_SECONDS, Access
from service.api.backfills import backfills
from service.api.find import MOST, find_studies
from service.api.gate import cookie_name, refuse_other_sites
from service.api.page.lists import Filters
from service.api.page.render import page, policy
from service.api.page.system import system
from service.api.rates import address_of
from service.api.roles import Act, Caller, may
from service.api.situation import Lookout
from service.api.troubles import all_problems, turned_away
from service.core.ledger import Ledger
from service.core.live import Live

_PAGE_ROWS = 50
# Where signing in may lead: nowhere else, whatever the address says. The last is a viewer's that shares our
# origin (deploy/ohif/hilum/nginx.conf).
_BACK = re.compile(r"/(docs|quality|system|studies/[0-9.]{1,64}|viewer\?StudyInstanceUIDs=[0-9.,]{1,650})?")
# Swagger UI shows its icons as data: URLs.
_DOCS_POLICY = policy(script_src="'self'", connect_src="'self'", style_src="'self'", img_src="'self' data:")
_Reader = Annotated[Caller, may(Act.READ)]
_Form = Annotated[str, Form(max_length=512)]
_Cursor = Annotated[int | None, Query(ge=0, le=2**63 - 1)]


def _repeat_csrf(request: Request, csrf: _Form = "") -> None:
    caller: Caller = request.state.caller
    caller.must_repeat(csrf)


FROM_OUR_PAGE = Depends(_repeat_csrf)


def page_routes(live: Live, ledger: Ledger, access: Access, lookout: Lookout) -> APIRouter:
    """Return the routes of the pages, but for those of one study."""
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
    settings = live.settings

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

    @router.post("/logout", dependencies=[FROM_OUR_PAGE])
    def logout(request: Request) -> Response:
        if session_id := request.cookies.get(cookie_name(request)):
            access.sign_out(session_id, address_of(request))
        answer = _to("/login")
        _set_cookie(request, answer, "", 0)
        return answer

    @router.get("/")
    def studies(
        caller: _Reader,
        filters: Annotated[Filters, Depends()],
        cursor: _Cursor = None,
        newer: _Cursor = None,
    ) -> Response:
        with ledger.read() as session:
            wanted = filters.wanted(settings.zone)
            listed = status.list_studies(session, wanted, _PAGE_ROWS, cursor, newer)
        situation = lookout.look()
        return page(
            "studies.html",
            caller=caller,
            listed=listed,
            filters=filters,
            wanted=wanted,
            first=cursor is None and newer is None,
            most=_PAGE_ROWS,
            situation=situation,
            problems=all_problems(situation, settings.zone),
            zone=settings.zone,
        )

    @router.post("/search", dependencies=[FROM_OUR_PAGE])
    def search(caller: _Reader, text: Annotated[str, Form(alias="q", max_length=80)] = "") -> Response:
        # In the body, not in the address: addresses are logged, and an accession number names a patient.
        with ledger.read() as session:
            found = find_studies(session, text, by_patient=caller.may(Act.SEE_PATIENTS))
        if len(found.studies) == 1:
            return _to(f"/studies/{found.studies[0].study_instance_uid}")
        situation = lookout.look()
        return page(
            "found.html",
            caller=caller,
            found=found,
            most=MOST,
            situation=situation,
            problems=all_problems(situation, settings.zone),
            zone=settings.zone,
            by_patient=caller.may(Act.SEE_PATIENTS),
            turned_away=turned_away(situation),
        )

    @router.get("/system")
    def system_page(caller: _Reader) -> Response:
        situation = lookout.look()
        with ledger.read() as session:
            known = system(session, live.settings)
            past = backfills(session)
        return page(
            "system.html",
            caller=caller,
            system=known,
            backfills=past,
            turned_away=turned_away(situation),
            situation=situation,
            problems=all_problems(situation, settings.zone),
            zone=settings.zone,
        )

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
