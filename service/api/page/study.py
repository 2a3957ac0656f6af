"""The pages of one study: where its report is, its films, and its reports as they are sent."""

from typing import Annotated

from fastapi import APIRouter, Form, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from sqlalchemy import select

from service.api import actions, feedback
from service.api.actions import StudyUID
from service.api.explain import explain, notes
from service.api.find import patients_of
from service.api.page import pictures
from service.api.page.render import page
from service.api.page.routes import FROM_OUR_PAGE
from service.api.progress import progress_of
from service.api.roles import Act, Caller, may
from service.api.schemas import StudyOut
from service.api.situation import Lookout
from service.api.troubles import all_problems
from service.core.audit import Audit
from service.core.ledger import Ledger, now
from service.core.live import Live
from service.core.spool import Spool
from service.core.states import DeliveryState, Kind, StudyState
from service.core.tables import Study

_Reader = Annotated[Caller, may(Act.READ)]
_SeesFilms = Annotated[Caller, may(Act.SEE_FILMS)]


def study_routes(live: Live, ledger: Ledger, lookout: Lookout, audit: Audit) -> APIRouter:
    """Return the routes below `/studies/{StudyInstanceUID}`."""
    router = APIRouter(prefix="/studies/{study_instance_uid}", include_in_schema=False)
    settings = live.settings
    spool = Spool(settings.data_dir)

    @router.get("", response_class=HTMLResponse)
    def study(caller: _Reader, study_instance_uid: StudyUID) -> Response:
        found = actions.find(ledger, study_instance_uid)
        sees_films, sees_patients = caller.may(Act.SEE_FILMS), caller.may(Act.SEE_PATIENTS)
        situation = lookout.look()
        with ledger.read() as session:
            progress = progress_of(session, study_instance_uid)
            films = pictures.pictures_of(session, study_instance_uid)
            documents = pictures.documents_of(session, study_instance_uid)
            study_id = session.scalars(
                select(Study.id).where(Study.study_instance_uid == study_instance_uid)
            ).one()
            entries = feedback.outs(session, study_id, caller)
            patients = patients_of(session, study_instance_uid) if sees_patients else []
        names = [item.name for item in live.settings.destinations]
        answer = explain(found, progress, situation, names, now(), settings.zone)
        if patients:
            ids = [(item.patient_id, item.issuer_of_patient_id) for item in patients]
            audit.study_seen(study_instance_uid, ids, caller.name or "")
        parked = any(item.state == DeliveryState.PARKED for item in found.deliveries)
        return page(
            "study.html",
            caller=caller,
            study=found,
            answer=answer,
            notes=notes(found, answer),
            patients=patients,
            films=films if sees_films else [],
            documents=documents if sees_films else [],
            entries=entries,
            sees_films=sees_films,
            expired_at=progress.expired_at,
            situation=situation,
            problems=all_problems(situation, settings.zone),
            zone=settings.zone,
            may_retry=caller.may(Act.RETRY),
            may_help=progress.expired_at is None and _may_help(found),
            may_send_as_built=parked and caller.may(Act.SEND_AS_BUILT),
        )

    @router.post("/retry", dependencies=[FROM_OUR_PAGE])
    def retry(
        caller: Annotated[Caller, may(Act.RETRY)],
        study_instance_uid: StudyUID,
        as_built: Annotated[bool, Form()] = False,
    ) -> Response:
        actions.retry(ledger, study_instance_uid, caller, as_built=as_built)
        return RedirectResponse(f"/studies/{study_instance_uid}", 303)

    @router.get("/films/{instance_id}.png")
    def film(_: _SeesFilms, study_instance_uid: StudyUID, instance_id: int) -> Response:
        with ledger.read() as session:
            path = pictures.film_file(session, spool, study_instance_uid, instance_id)
        return FileResponse(path, media_type="image/png")

    @router.get("/films/{instance_id}/activation.png")
    def activation(_: _SeesFilms, study_instance_uid: StudyUID, instance_id: int) -> Response:
        with ledger.read() as session:
            path = pictures.overlay_file(session, spool, study_instance_uid, instance_id)
        return FileResponse(path, media_type="image/png")

    @router.get("/reports/{report_id}", response_class=HTMLResponse)
    def report(caller: _SeesFilms, study_instance_uid: StudyUID, report_id: int) -> Response:
        with ledger.read() as session:
            kind, made = pictures.object_of(session, spool, study_instance_uid, report_id)
        if kind == Kind.HEATMAP:
            return Response(pictures.jpeg_of(made), media_type="image/jpeg")
        if kind == Kind.PDF:
            caller.must(Act.SEE_PATIENTS)  # it names the patient on every page
            return Response(pictures.pdf_of(made), media_type="application/pdf")
        conclusions, items = pictures.lines_of(made)
        return page(
            "report.html",
            caller=caller,
            study_instance_uid=study_instance_uid,
            made=made,
            conclusions=conclusions,
            items=items,
            sees_patients=caller.may(Act.SEE_PATIENTS),
        )

    return router


def _may_help(study: StudyOut) -> bool:
    """Return whether another try could change anything: what waits for its turn is not sooner done by it."""
    unsettled = (DeliveryState.PENDING, DeliveryState.PARKED)
    return (
        study.attention is not None
        or study.state in (StudyState.FAILED, StudyState.HELD)
        or any(item.state in unsettled for item in study.deliveries)
    )
