"""The routes of search and retrieve (PS3.18 10.4 and 10.6); each asks for `Act.RETRIEVE`."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response

from service.api.dicomweb.attributes import Level
from service.api.dicomweb.contents import Item
from service.api.dicomweb.negotiation import JSON
from service.api.dicomweb.retrieval import Retrieval, frame_numbers
from service.api.dicomweb.searching import Searching
from service.api.roles import Act, Caller, may
from service.core.audit import Audit
from service.core.ledger import Ledger
from service.core.spool import Spool

STUDY = "/studies/{study_instance_uid}"
SERIES = STUDY + "/series/{series_instance_uid}"
INSTANCE = SERIES + "/instances/{sop_instance_uid}"
_SEARCH_PARAMETERS: list[dict[str, Any]] = [
    {"name": name, "in": "query", "required": False, "schema": {"type": kind}}
    for name, kind in (
        *(
            ("limit", "integer"),
            ("offset", "integer"),
            ("includefield", "string"),
            ("fuzzymatching", "boolean"),
        ),
        *(("PatientID", "string"), ("PatientName", "string"), ("AccessionNumber", "string")),
        *(("StudyDate", "string"), ("ModalitiesInStudy", "string"), ("StudyInstanceUID", "string")),
    )
]
RESOURCES = {
    "Search": (
        *("/studies", "/series", "/instances"),
        *(STUDY + "/series", STUDY + "/instances", SERIES + "/instances"),
    ),
    "Retrieve instances": (STUDY, SERIES, INSTANCE),
    "Retrieve metadata": (STUDY + "/metadata", SERIES + "/metadata", INSTANCE + "/metadata"),
    "Retrieve frames": (INSTANCE + "/frames/{frames}",),
    "Retrieve bulk data": (INSTANCE + "/bulkdata/{path}",),
    "Retrieve rendered": (
        *(STUDY + "/rendered", SERIES + "/rendered", INSTANCE + "/rendered"),
        INSTANCE + "/frames/{frames}/rendered",
    ),
    "Retrieve thumbnails": (STUDY + "/thumbnail", SERIES + "/thumbnail", INSTANCE + "/thumbnail"),
}
"""Every resource by what is done with it, for the conformance statement."""
SEARCH_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "What matches; a warning tells when there is more", "content": {JSON: {}}},
    204: {"description": "Nothing matches"},
    400: {"description": "A parameter cannot be meant"},
    403: {"description": "The role may not see patients"},
    404: {"description": "No such study"},
    406: {"description": "Neither JSON nor XML is accepted"},
    409: {"description": "The study is held: two patients are in it"},
    410: {"description": "The study was erased, or its files were removed"},
    413: {"description": "Too many headers would have to be read"},
}
RETRIEVE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "All of it"},
    206: {
        "description": "A part: the rest is not stored in a transfer syntax that is accepted, or not there"
    },
    400: {"description": "A UID, frame number or parameter cannot be meant"},
    403: {"description": "The role may not see patients"},
    404: {"description": "There is no such thing"},
    406: {"description": "It is not stored in what is accepted, and nothing is encoded anew"},
    409: {"description": "The study is held: two patients are in it"},
    410: {"description": "It was here: erased, removed, replaced by a revision, or rejected by its archive"},
}


def dicomweb_routes(ledger: Ledger, spool: Spool, audit: Audit) -> APIRouter:
    """Return the routes of search and retrieve."""
    router = APIRouter(prefix="/dicomweb")
    retrieval = Retrieval(ledger, spool, audit)
    router.include_router(_search_routes(Searching(ledger, spool, audit), retrieval))
    router.include_router(_retrieve_routes(retrieval))
    router.include_router(_picture_routes(retrieval))
    return router


class _Named:
    """Dependencies of routes: what a path names, or the answer that there is no such thing."""

    def __init__(self, retrieval: Retrieval) -> None:
        self._retrieval = retrieval

    def study(self, study_instance_uid: str) -> list[Item]:
        return self._retrieval.items(study_instance_uid)

    def series(self, study_instance_uid: str, series_instance_uid: str) -> list[Item]:
        return self._retrieval.items(study_instance_uid, series_instance_uid)

    def instance(
        self, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str
    ) -> list[Item]:
        return self._retrieval.items(study_instance_uid, series_instance_uid, sop_instance_uid)


_Reader = Annotated[Caller, may(Act.RETRIEVE)]
_SEARCHED: dict[str, Any] = {
    "responses": SEARCH_RESPONSES,
    "response_class": Response,
    "openapi_extra": {"parameters": _SEARCH_PARAMETERS},
}
_RETRIEVED: dict[str, Any] = {"responses": RETRIEVE_RESPONSES, "response_class": Response}


def _search_routes(searching: Searching, retrieval: Retrieval) -> APIRouter:
    router, named = APIRouter(), _Named(retrieval)

    @router.get("/studies", **_SEARCHED)
    def search_for_studies(request: Request, caller: _Reader) -> Response:
        """Search for studies (QIDO-RS, PS3.18 10.6)."""
        return searching.search(request, caller, Level.STUDIES)

    @router.get("/series", **_SEARCHED)
    def search_for_series(request: Request, caller: _Reader) -> Response:
        """Search for series of all studies."""
        return searching.search(request, caller, Level.SERIES)

    @router.get("/instances", **_SEARCHED)
    def search_for_instances(request: Request, caller: _Reader) -> Response:
        """Search for instances of all studies."""
        return searching.search(request, caller, Level.INSTANCES)

    @router.get(STUDY + "/series", **_SEARCHED)
    def search_for_series_of_a_study(
        request: Request, caller: _Reader, items: Annotated[list[Item], Depends(named.study)]
    ) -> Response:
        """Search for series of one study."""
        return searching.search(request, caller, Level.SERIES, items[0].study_id)

    @router.get(STUDY + "/instances", **_SEARCHED)
    def search_for_instances_of_a_study(
        request: Request, caller: _Reader, items: Annotated[list[Item], Depends(named.study)]
    ) -> Response:
        """Search for instances of one study."""
        return searching.search(request, caller, Level.INSTANCES, items[0].study_id)

    @router.get(SERIES + "/instances", **_SEARCHED)
    def search_for_instances_of_a_series(
        request: Request, caller: _Reader, items: Annotated[list[Item], Depends(named.series)]
    ) -> Response:
        """Search for instances of one series."""
        found = items[0]
        return searching.search(request, caller, Level.INSTANCES, found.study_id, found.series_instance_uid)

    return router


def _retrieve_routes(retrieval: Retrieval) -> APIRouter:
    router, named = APIRouter(), _Named(retrieval)
    OfStudy = Annotated[list[Item], Depends(named.study)]  # noqa: N806
    OfSeries = Annotated[list[Item], Depends(named.series)]  # noqa: N806
    OfInstance = Annotated[list[Item], Depends(named.instance)]  # noqa: N806

    @router.get(STUDY, **_RETRIEVED)
    def retrieve_study(request: Request, caller: _Reader, items: OfStudy) -> Response:
        """Retrieve all instances of a study, as they are stored (WADO-RS, PS3.18 10.4)."""
        return retrieval.objects(request, caller, items)

    @router.get(SERIES, **_RETRIEVED)
    def retrieve_series(request: Request, caller: _Reader, items: OfSeries) -> Response:
        """Retrieve all instances of a series, as they are stored."""
        return retrieval.objects(request, caller, items)

    @router.get(INSTANCE, **_RETRIEVED)
    def retrieve_instance(request: Request, caller: _Reader, items: OfInstance) -> Response:
        """Retrieve an instance, as it is stored."""
        return retrieval.objects(request, caller, items, alone=True)

    @router.get(STUDY + "/metadata", **_RETRIEVED)
    def retrieve_study_metadata(request: Request, caller: _Reader, items: OfStudy) -> Response:
        """Retrieve what the instances of a study say but their bulk data."""
        return retrieval.metadata(request, caller, items)

    @router.get(SERIES + "/metadata", **_RETRIEVED)
    def retrieve_series_metadata(request: Request, caller: _Reader, items: OfSeries) -> Response:
        """Retrieve what the instances of a series say but their bulk data."""
        return retrieval.metadata(request, caller, items)

    @router.get(INSTANCE + "/metadata", **_RETRIEVED)
    def retrieve_instance_metadata(request: Request, caller: _Reader, items: OfInstance) -> Response:
        """Retrieve what an instance says but its bulk data."""
        return retrieval.metadata(request, caller, items)

    @router.get(INSTANCE + "/frames/{frames}", **_RETRIEVED)
    def retrieve_frames(request: Request, caller: _Reader, items: OfInstance, frames: str) -> Response:
        """Retrieve frames, numbered from 1 and separated by commas, as they are stored."""
        return retrieval.frames(request, caller, items[0], frames)

    @router.get(INSTANCE + "/bulkdata/{path:path}", **_RETRIEVED)
    def retrieve_bulk_data(request: Request, caller: _Reader, items: OfInstance, path: str) -> Response:
        """Retrieve a long binary value, by the address that the metadata gives."""
        return retrieval.bulk(request, caller, items[0], path)

    return router


def _picture_routes(retrieval: Retrieval) -> APIRouter:
    router, named = APIRouter(), _Named(retrieval)
    OfStudy = Annotated[list[Item], Depends(named.study)]  # noqa: N806
    OfSeries = Annotated[list[Item], Depends(named.series)]  # noqa: N806
    OfInstance = Annotated[list[Item], Depends(named.instance)]  # noqa: N806

    @router.get(STUDY + "/rendered", **_RETRIEVED)
    def retrieve_rendered_study(request: Request, caller: _Reader, items: OfStudy) -> Response:
        """Retrieve the pictures that are kept of a study."""
        return retrieval.rendered(request, caller, items)

    @router.get(SERIES + "/rendered", **_RETRIEVED)
    def retrieve_rendered_series(request: Request, caller: _Reader, items: OfSeries) -> Response:
        """Retrieve the pictures that are kept of a series."""
        return retrieval.rendered(request, caller, items)

    @router.get(INSTANCE + "/rendered", **_RETRIEVED)
    def retrieve_rendered_instance(request: Request, caller: _Reader, items: OfInstance) -> Response:
        """Retrieve the picture that is kept of an instance."""
        return retrieval.picture(request, caller, items[0])

    @router.get(INSTANCE + "/frames/{frames}/rendered", **_RETRIEVED)
    def retrieve_rendered_frames(
        request: Request, caller: _Reader, items: OfInstance, frames: str
    ) -> Response:
        """Retrieve the picture of a frame: only what has a single frame has one."""
        if frame_numbers(frames) != [1]:
            raise HTTPException(404, "pictures are kept of what has a single frame")
        return retrieval.picture(request, caller, items[0])

    @router.get(STUDY + "/thumbnail", **_RETRIEVED)
    def retrieve_study_thumbnail(request: Request, caller: _Reader, items: OfStudy) -> Response:
        """Retrieve a picture that stands for a study, as it is kept: no smaller one is made."""
        return retrieval.thumbnail(request, caller, items)

    @router.get(SERIES + "/thumbnail", **_RETRIEVED)
    def retrieve_series_thumbnail(request: Request, caller: _Reader, items: OfSeries) -> Response:
        """Retrieve a picture that stands for a series, as it is kept."""
        return retrieval.thumbnail(request, caller, items)

    @router.get(INSTANCE + "/thumbnail", **_RETRIEVED)
    def retrieve_instance_thumbnail(request: Request, caller: _Reader, items: OfInstance) -> Response:
        """Retrieve the picture of an instance, as it is kept."""
        return retrieval.picture(request, caller, items[0])

    return router
