"""Feedback on pages: the form of a study's page, and the page behind a link in a report.

The link opens a page and no more: scanners of mail and viewers follow links by themselves. Only what that
page posts is stored. Nobody is signed in there, so no cookie gives it any right; whoever has the link may
use it.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import BeforeValidator
from pydicom.uid import UID

from service.api import feedback as actions
from service.api.access import Access
from service.api.actions import StudyUID
from service.api.feedback import Given
from service.api.gate import refuse_other_sites
from service.api.page.render import fragment, page
from service.api.page.routes import FROM_OUR_PAGE
from service.api.rates import address_of, client_of
from service.api.roles import Act, Caller, may
from service.core.audit import Audit
from service.core.feedback import LONGEST_NAME, LONGEST_NOTE
from service.core.feedback_link import PATH, Linked, Unusable, links_of
from service.core.ledger import Ledger
from service.core.live import Live
from service.core.results import Finding
from service.core.states import Assessment, FeedbackSource

_Reader = Annotated[Caller, may(Act.ASSESS)]
_Text = Annotated[str, Form(max_length=2 * LONGEST_NOTE)]
_Name = Annotated[str, Form(max_length=2 * LONGEST_NAME)]
_Own = Annotated[Finding | None, BeforeValidator(lambda value: value or None), Form()]
_WHY = {
    Unusable.FORGED: (404, "This is no link of this gateway. Was it copied whole?"),
    Unusable.EXPIRED: (410, "This link is too old. Say it on the study's page instead."),
}


def feedback_routes(live: Live, ledger: Ledger, access: Access, audit: Audit) -> APIRouter:
    """Return the routes of forms for feedback."""
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
    settings = live.settings

    @router.post("/studies/{study_instance_uid}/feedback", dependencies=[FROM_OUR_PAGE])
    def from_study_page(
        request: Request,
        caller: _Reader,
        study_instance_uid: StudyUID,
        assessment: Annotated[Assessment, Form()],
        own_finding: _Own = None,
        note: _Text = "",
        reader: _Name = "",
        revision: Annotated[int | None, Form(ge=1, le=2**31 - 1)] = None,
    ) -> Response:
        given = _given(assessment, own_finding, note, reader, revision)
        actions.give(live, ledger, audit, study_instance_uid, given, FeedbackSource.DASHBOARD, caller)
        # The page's script asks for the part of the page that changed.
        if request.headers.get("x-part") != "history":
            return RedirectResponse(f"/studies/{study_instance_uid}#feedback", 303)
        entries = actions.listed(ledger, study_instance_uid, caller)
        return fragment("entries.html", caller=caller, entries=entries, zone=settings.zone)

    def linked(request: Request, token: str) -> Linked:
        """Return what a link is about, or answer 404, 410, or 429 to who tries many."""
        client = client_of(address_of(request))
        access.rates.check_links(client)
        with ledger.read() as session:
            found = links_of(session).read(token, settings.feedback_link_days)
        if isinstance(found, Unusable):
            if found is Unusable.FORGED:
                access.rates.count_bad_link(client)
            raise HTTPException(*_WHY[found])
        return found

    def shown(token: str, link: Linked, status: int = 200, **said: Any) -> Response:
        with ledger.read() as session:
            about = actions.about(session, link)
        values: dict[str, Any] = {"stored": None, "wrong": "", "given": None, **said}
        return page(
            "feedback.html", status, caller=None, token=token, about=about, zone=settings.zone, **values
        )

    @router.get(PATH + "{token}")
    def open_link(request: Request, token: str) -> Response:
        return shown(token, linked(request, token))

    @router.post(PATH + "{token}")
    def from_link(
        request: Request,
        token: str,
        assessment: Annotated[Assessment | None, BeforeValidator(lambda value: value or None), Form()] = None,
        own_finding: _Own = None,
        note: _Text = "",
        reader: _Name = "",
    ) -> Response:
        link = linked(request, token)
        refuse_other_sites(request)
        access.rates.count_link(client_of(address_of(request)))
        given = _given(assessment or Assessment.UNSURE, own_finding, note, reader, link.revision)
        if not reader.strip() or assessment is None:
            wrong = "Write your name, then choose one of the four."
            return shown(token, link, 422, wrong=wrong, given=given)
        try:
            entry = actions.give(
                live,
                ledger,
                audit,
                UID(link.study_instance_uid),
                given,
                FeedbackSource.LINK,
                Caller(None),
                address=address_of(request),
            )
        except HTTPException as fault:
            if fault.status_code not in (409, 422):
                raise
            return shown(token, link, fault.status_code, wrong=fault.detail, given=given)
        return shown(token, link, stored=entry)

    return router


def _given(
    assessment: Assessment, finding: Finding | None, note: str, reader: str, revision: int | None
) -> Given:
    """Return what a form says; browsers count a line's end as one letter and send two."""
    return Given(
        assessment=assessment,
        finding=finding,
        note=note.replace("\r\n", "\n")[:LONGEST_NOTE],
        reader=reader[:LONGEST_NAME],
        revision=revision,
    )
