"""Answers to searches (PS3.18 10.6.3): which results, in JSON or XML, and what a user agent is warned of."""

from collections.abc import Iterator, Sequence

from fastapi import Request, Response

from service.api.dicomweb.attributes import Level
from service.api.dicomweb.model import Model
from service.api.dicomweb.negotiation import JSON, XML, Choice
from service.api.dicomweb.outgoing import base_url, json_list, model_choice, multipart, xml_parts
from service.api.dicomweb.query import Query, parse
from service.api.dicomweb.search import Found, Search, passed_over
from service.api.rates import address_of
from service.api.roles import Caller
from service.core.audit import Audit
from service.core.catalogue import is_complete
from service.core.ledger import Ledger
from service.core.spool import Spool

FUZZY = "The fuzzymatching parameter is not supported. Only literal matching has been performed."


class Searching:
    """Answers what is searched for, and tells the audit trail of it."""

    def __init__(self, ledger: Ledger, spool: Spool, audit: Audit) -> None:
        self._ledger = ledger
        self._spool = spool
        self._audit = audit

    def search(
        self,
        request: Request,
        caller: Caller,
        level: Level,
        study_id: int | None = None,
        series_instance_uid: str | None = None,
    ) -> Response:
        """Answer for all studies, or for one of the ledger's rows and maybe one series of it."""
        choice = model_choice(request)
        query = parse(request.query_params.multi_items())
        self._audit.queried(_asked(request, query), caller.name or "", address_of(request))
        base = base_url(request)
        answers = Search(self._ledger, self._spool, base)
        if level is Level.STUDIES:
            found = answers.studies(query)
        else:
            found = answers.below(query, level, study_id, series_instance_uid)
        response = _models(choice, found.results) if found.results else Response(status_code=204)
        for text in self._warnings(query, level, found):
            response.headers.append("Warning", f"299 {base}: {text}")
        return response

    def _warnings(self, query: Query, level: Level, found: Found) -> Iterator[str]:
        if query.fuzzy:
            yield FUZZY
        if names := passed_over(query, level):
            yield f"Not matched, as if they were not there: {', '.join(map(_plain, names))}"
        if found.remaining and found.results:
            yield f"There are {found.remaining_in_words} additional results that can be requested"
        if any(key.keyword.startswith(("Study", "Referring")) for key in query.keys) and not is_complete(
            self._ledger
        ):
            yield "Studies from before an upgrade are still being looked at, and may be missing"


def _models(choice: Choice, models: Sequence[Model]) -> Response:
    if choice.media_type == XML:
        return multipart(XML, xml_parts(iter(models)))
    return Response(b"".join(json_list(iter(models))), media_type=JSON)


def _asked(request: Request, query: Query) -> str:
    """Return a search for the audit trail: what was asked for, and no names."""
    keys = [
        f"{'.'.join(f'{tag:08X}' for tag in key.path)}={'' if key.vr == 'PN' else key.value}"
        for key in query.keys
    ]
    return f"{request.url.path}?{'&'.join(keys)}" if keys else request.url.path


def _plain(name: str) -> str:
    return "".join(letter for letter in name if letter.isascii() and letter.isprintable())
