"""What each role may do: one table, asked by every route that does more than show."""

import hmac
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, cast

from fastapi import Depends, HTTPException, Request, Security, params
from fastapi.security import APIKeyCookie, HTTPBearer

from service.core.tokens import Role, Token

# What OpenAPI says of how to ask; `service.api.gate` decides who may, before a route is found.
_BEARER = HTTPBearer(auto_error=False, description="A token of HILUM_API_TOKENS")
_COOKIE = APIKeyCookie(
    name="hilum", auto_error=False, description="Of a browser that has signed in; not without X-CSRF-Token"
)


class Act(StrEnum):
    """What one may do with the gateway."""

    READ = "see studies"
    SEE_FILMS = "see films and reports"
    SEE_PATIENTS = "see whose studies they are"
    STORE = "store images"
    RETRIEVE = "search and retrieve films and reports"
    RETRY = "try a study again"
    ASSESS = "give feedback on results"
    SEE_READERS = "see who gave feedback, and notes"
    SEND_AS_BUILT = "send reports as they are, whatever their destination says"


_CLINICIAN = {
    *(Act.READ, Act.SEE_FILMS, Act.SEE_PATIENTS, Act.STORE, Act.RETRIEVE, Act.RETRY),
    *(Act.ASSESS, Act.SEE_READERS),
}
# What is in a data set says whose it is.
_NAMES_PATIENTS = {Act.SEE_PATIENTS, Act.RETRIEVE}
MAY: dict[Role, set[Act]] = {
    "viewer": {Act.READ},
    "clinician": _CLINICIAN,
    "administrator": _CLINICIAN | {Act.SEND_AS_BUILT},
}


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes
    ----------
    token
        What was shown; None is somebody on this machine, where there are no tokens: they may do everything
        but see whose studies they are. Nobody is told that who has not signed in.
    csrf
        What an unsafe request must repeat when a cookie says who asks; None when a cookie does not.
    """

    token: Token | None
    csrf: str | None = None

    @property
    def name(self) -> str | None:
        """Name of the token."""
        return self.token.name if self.token else None

    def may(self, act: Act) -> bool:
        """Return whether their role may do this."""
        if self.token is None:
            return act not in _NAMES_PATIENTS
        return act in MAY[self.token.role]

    def must(self, act: Act) -> None:
        """Answer 403 unless they may do this."""
        if not self.may(act):
            who = f"the role {self.token.role}" if self.token else "who has not signed in"
            raise HTTPException(403, f"{who} may not {act}")

    def must_repeat(self, csrf: str) -> None:
        """Answer 403 when a cookie says who asks and the request does not bring what only our pages know."""
        if self.csrf is not None and not hmac.compare_digest(self.csrf.encode(), csrf.encode()):
            raise HTTPException(403, "the page is out of date: load it again (X-CSRF-Token)")


def may(act: Act) -> params.Depends:
    """Return the dependency of a route for those who may do this; it gives the caller."""

    def caller(
        request: Request,
        _bearer: Annotated[object, Security(_BEARER)],
        _cookie: Annotated[object, Security(_COOKIE)],
    ) -> Caller:
        found: Caller = request.state.caller
        found.must(act)
        return found

    return cast(params.Depends, Depends(caller))
