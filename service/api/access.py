"""Who is there: by a bearer token, or by the session of a browser that was signed in with one.

A session is a random number in a cookie and its hash in the ledger, where every replica of the API finds it.
It ends after `SESSION_SECONDS`, when its user signs out, and with its token: one that is taken out of
HILUM_API_TOKENS admits nobody, however they got in.
"""

import hashlib
import hmac
import secrets
from datetime import timedelta

import structlog
from fastapi import HTTPException
from sqlalchemy import delete, select

from service.api.rates import Rates, client_of
from service.api.roles import Caller
from service.core.audit import Audit
from service.core.ledger import Ledger, now
from service.core.settings import Settings
from service.core.tables import SignIn
from service.core.tokens import Token

# A shift, and whoever comes next signs in: workstations of a reading room are shared.
SESSION_SECONDS = 12 * 3600
_log = structlog.get_logger()


class Access:
    """Knows tokens and sessions."""

    def __init__(self, settings: Settings, ledger: Ledger, audit: Audit, rates: Rates) -> None:
        self.tokens = settings.api_tokens
        self.rates = rates
        self._ledger = ledger
        self._audit = audit
        self._seen: set[tuple[str, str]] = set()

    def by_secret(self, secret: str, address: str) -> Token:
        """Return whose secret this is.

        After many wrong ones a client is answered 429 whatever it shows, lest the answer tell it whether a
        guess was right; but never when it has shown this very token before: a router is not stalled by who
        else is behind its address.
        """
        token, client = self._token(_sha256(secret)), client_of(address)
        if token is None or (client, token.sha256) not in self._seen:
            self.rates.check_failures(client)
        if token is None:
            self.rates.count_failure(client)
            _log.warning("api.wrong_token", client=address)
            self._audit.login_failed(address, "no such token")
            raise HTTPException(401, "no such token", {"WWW-Authenticate": "Bearer"})
        self._seen.add((client, token.sha256))
        self._audit.login(token.name, address)
        return token

    def sign_in(self, secret: str, address: str) -> str:
        """Return the content of the cookie for who has this secret."""
        token = self.by_secret(secret, address)
        session_id = secrets.token_urlsafe(32)
        moment = now()
        with self._ledger.write() as session:
            session.execute(delete(SignIn).where(SignIn.until < moment))
            session.add(
                SignIn(
                    session_sha256=_sha256(session_id),
                    token_sha256=token.sha256,
                    until=moment + timedelta(seconds=SESSION_SECONDS),
                )
            )
        _log.info("api.signed_in", user=token.name, client=address)
        return session_id

    def by_session(self, session_id: str) -> Caller | None:
        """Return who was signed in with this cookie, or None when that is over."""
        with self._ledger.read() as session:
            found = session.scalars(
                select(SignIn).where(SignIn.session_sha256 == _sha256(session_id), SignIn.until > now())
            ).one_or_none()
        token = self._token(found.token_sha256) if found else None
        return Caller(token, csrf=_sha256(f"csrf {session_id}")) if token else None

    def sign_out(self, session_id: str, address: str) -> None:
        """End a session, for whoever has its cookie."""
        ended = self.by_session(session_id)
        with self._ledger.write() as session:
            session.execute(delete(SignIn).where(SignIn.session_sha256 == _sha256(session_id)))
        if ended is not None:
            self._audit.logout(ended.name or "", address)

    def _token(self, sha256: str) -> Token | None:
        found = None
        for token in self.tokens:
            if hmac.compare_digest(token.sha256, sha256):
                found = token
        return found


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
