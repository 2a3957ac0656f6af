"""Answers to retrieve requests (PS3.18 10.4): objects, metadata, frames, bulk data, pictures."""

from collections.abc import Iterator, Sequence

from fastapi import HTTPException, Request, Response
from pydicom import Dataset
from pydicom.uid import UID
from starlette.responses import StreamingResponse

from service.api.dicomweb.bulk import PATH, bulk_values
from service.api.dicomweb.contents import Item, study_contents, there, why_not
from service.api.dicomweb.model import Model, whole
from service.api.dicomweb.negotiation import (
    DICOM,
    JSON,
    OCTETS,
    XML,
    Choice,
    accepted,
    choose,
    frame_choices,
    object_choices,
)
from service.api.dicomweb.outgoing import Part, base_url, json_list, model_choice, multipart, xml_parts
from service.api.dicomweb.rendered import PARAMETERS, is_film, rendering
from service.api.dicomweb.stored import Stored, open_stored
from service.api.rates import address_of
from service.api.roles import Caller
from service.core.audit import Audit
from service.core.audit_message import Action
from service.core.errors import InvalidUID
from service.core.identifiers import checked_uid
from service.core.ledger import Ledger
from service.core.spool import Spool

_MOST_FRAMES = 1000


class Retrieval:
    """Answers what is retrieved, and tells the audit trail of it."""

    def __init__(self, ledger: Ledger, spool: Spool, audit: Audit) -> None:
        self._ledger = ledger
        self._spool = spool
        self._audit = audit

    def items(self, study: str, series: str | None = None, instance: str | None = None) -> list[Item]:
        """Return what a path names, or answer 400, 404, 409 or 410."""
        study_uid = _uid("StudyInstanceUID", study)
        series_uid = _uid("SeriesInstanceUID", series) if series is not None else None
        instance_uid = _uid("SOPInstanceUID", instance) if instance is not None else None
        with self._ledger.read() as session:
            found = study_contents(session, study_uid)
            if instance_uid is not None and all(item.sop_instance_uid != instance_uid for item in found):
                raise why_not(session, study_uid, instance_uid)
        found = [
            item
            for item in found
            if series_uid in (None, item.series_instance_uid)
            and instance_uid in (None, item.sop_instance_uid)
        ]
        if not found:
            raise HTTPException(404, "no such series in this study")
        return found

    def objects(
        self, request: Request, caller: Caller, items: Sequence[Item], *, alone: bool = False
    ) -> Response:
        ranges, present = accepted(request), self._present(items)
        chosen: list[tuple[Item, Choice]] = []
        for item in present:
            choice = choose(ranges, object_choices(item.transfer_syntax_uid, alone=alone))
            if choice is not None:
                chosen.append((item, choice))
        if not chosen:
            syntaxes = ", ".join(sorted({item.transfer_syntax_uid for item in present}))
            raise HTTPException(
                406,
                f"stored as application/dicom in {syntaxes}, and nothing is encoded anew: transfer-syntax=*",
            )
        transfer = self._audit.retrieving(caller.name or "", address_of(request))
        for item, _ in chosen:
            transfer.add(
                item.study_instance_uid,
                item.patient_id,
                item.issuer_of_patient_id,
                item.sop_class_uid,
                Action.READ,
            )
        # Before the first byte: nothing leaves untold.
        transfer.write()
        status = 200 if len(chosen) == len(items) else 206
        first, choice = chosen[0]
        if not choice.multipart:
            return StreamingResponse(self._file(first), status, media_type=choice.content_type)
        parts = (
            (choice, {"Content-Location": f"{base_url(request)}{item.resource}"}, self._file(item))
            for item, choice in chosen
        )
        return multipart(DICOM, parts, status)

    def metadata(self, request: Request, caller: Caller, items: Sequence[Item]) -> Response:
        choice = model_choice(request)
        present = self._present(items)
        self._seen(caller, items)
        base = base_url(request)

        def read() -> Iterator[Model]:
            for item in present:
                yield whole(open_stored(self._spool.absolute(item.path)), f"{base}{item.resource}/bulkdata")

        models = read()
        try:
            first = next(models)
        except OSError:
            raise _file_gone() from None
        status = 200 if len(present) == len(items) else 206
        if choice.media_type == XML:
            return multipart(XML, xml_parts(_with(first, models)), status)
        return StreamingResponse(json_list(_with(first, models)), status, media_type=JSON)

    def frames(self, request: Request, caller: Caller, item: Item, text: str) -> Response:
        numbers = frame_numbers(text)
        ranges, stored = accepted(request), self._open(item)
        if stored.pixels is None:
            raise HTTPException(404, "the instance has no pixels")
        if max(numbers) > stored.number_of_frames:
            raise HTTPException(404, f"the instance has {stored.number_of_frames} frame(s)")
        choice = choose(ranges, frame_choices(stored.transfer_syntax_uid, alone=len(numbers) == 1))
        if choice is None:
            raise HTTPException(
                406, f"the pixels are stored in {stored.transfer_syntax_uid}, and nothing is encoded anew"
            )
        self._seen(caller, [item])
        content = [stored.frame(numbers[0])]
        if not choice.multipart:
            return StreamingResponse(content[0], media_type=choice.content_type)
        where = f"{base_url(request)}{item.resource}/frames"

        def parts() -> Iterator[Part]:
            for number in numbers:
                frame = content.pop() if content else stored.frame(number)
                yield choice, {"Content-Location": f"{where}/{number}"}, frame

        return multipart(choice.media_type, parts())

    def bulk(self, request: Request, caller: Caller, item: Item, path: str) -> Response:
        if not PATH.fullmatch(path):
            raise HTTPException(400, "no path of bulk data: tags, and numbers of items between them")
        ranges, stored = accepted(request), self._open(item)
        values = bulk_values(stored, path)
        alone = len(values) == 1
        if stored.pixels is not None and stored.pixels.length is None and path.upper() == "7FE00010":
            choices = frame_choices(stored.transfer_syntax_uid, alone=alone)
        else:
            choices = [Choice(OCTETS, True), Choice(OCTETS, False)]
        choice = choose(ranges, choices)
        if choice is None:
            raise HTTPException(406, "the value is not stored in what is accepted")
        self._seen(caller, [item])
        if not choice.multipart:
            return StreamingResponse(values[0], media_type=choice.content_type)
        where = {"Content-Location": f"{base_url(request)}{item.resource}/bulkdata/{path}"}
        return multipart(choice.media_type, ((choice, where, value) for value in values))

    def picture(self, request: Request, caller: Caller, item: Item) -> Response:
        _refuse_parameters(request)
        try:
            shown = rendering(self._spool, item)
        except OSError:
            raise _file_gone() from None
        if choose(accepted(request), [Choice(shown.media_type, False)]) is None:
            raise HTTPException(406, f"the only rendering that is kept is {shown.media_type}")
        self._seen(caller, [item])
        return StreamingResponse(shown.content, media_type=shown.media_type)

    def thumbnail(self, request: Request, caller: Caller, items: Sequence[Item]) -> Response:
        for item in items:
            if is_film(item):
                return self.picture(request, caller, item)
        raise HTTPException(404, "no picture of it is kept")

    def rendered(self, request: Request, caller: Caller, items: Sequence[Item]) -> Response:
        _refuse_parameters(request)
        ranges, chosen = accepted(request), []
        shown = [item for item in items if is_film(item)]
        for item in shown:
            try:
                picture = rendering(self._spool, item)
            except (HTTPException, OSError):
                continue
            choice = Choice(picture.media_type, True)
            if choose(ranges, [choice]) is not None:
                chosen.append((item, choice, picture))
        if not shown:
            raise HTTPException(404, "no picture of it is kept")
        if not chosen:
            raise HTTPException(
                406, "pictures are kept as image/png or image/jpeg, in a multipart/related answer"
            )
        self._seen(caller, items)
        base = base_url(request)
        kinds = {choice.media_type for _, choice, _ in chosen}
        return multipart(
            kinds.pop() if len(kinds) == 1 else "image/*",
            (
                (choice, {"Content-Location": f"{base}{item.resource}/rendered"}, picture.content)
                for item, choice, picture in chosen
            ),
            200 if len(chosen) == len(shown) else 206,
        )

    def _present(self, items: Sequence[Item]) -> list[Item]:
        present = there(self._spool, items)
        if not present:
            raise _file_gone()
        return present

    def _open(self, item: Item) -> Stored:
        try:
            return open_stored(self._spool.absolute(item.path))
        except OSError:
            raise _file_gone() from None

    def _file(self, item: Item) -> Iterator[bytes]:
        path = self._spool.absolute(item.path)
        return Stored(path, Dataset(), None, UID("")).read(0, path.stat().st_size)

    def _seen(self, caller: Caller, items: Sequence[Item]) -> None:
        patients = sorted({(item.patient_id, item.issuer_of_patient_id) for item in items})
        self._audit.study_seen(items[0].study_instance_uid, patients, caller.name or "")


def _uid(keyword: str, value: str) -> UID:
    try:
        return checked_uid(value, keyword)
    except InvalidUID as fault:
        raise HTTPException(fault.http_status, str(fault)) from None


def frame_numbers(text: str) -> list[int]:
    """Return the numbers of a list of frames, or answer 400."""
    numbers = text.split(",")
    if len(numbers) > _MOST_FRAMES or not all(
        number.isascii() and number.isdigit() and 0 < len(number) < 10 and int(number) for number in numbers
    ):
        raise HTTPException(400, f"frames are numbers from 1, separated by commas, at most {_MOST_FRAMES}")
    return [int(number) for number in numbers]


def _with(first: Model, others: Iterator[Model]) -> Iterator[Model]:
    yield first
    yield from others


def _refuse_parameters(request: Request) -> None:
    """Answer 400 rather than with a picture that is not as it was asked for."""
    given = [name for name in PARAMETERS if name in request.query_params]
    if given and not request.url.path.endswith("/thumbnail"):
        raise HTTPException(400, f"pictures are answered as they are kept: no {', '.join(given)}")


def _file_gone() -> HTTPException:
    return HTTPException(404, "the file is gone from the data folder: send the study again")
