"""Links in reports, behind which a reader says what they think of the result.

A link is no account: whoever holds the report may use it, for one revision of one study, until it is too old.
It names study and revision, signed with a key of this installation (HMAC-SHA-256); nothing of it is stored.
"""

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer
from sqlalchemy.orm import Session

from service.core.errors import InvalidUID
from service.core.identifiers import checked_uid
from service.core.secret import key_for

PATH = "/feedback/"
_DAY_SECONDS = 86400
# Far longer than any link of ours.
_LONGEST = 512


class Unusable(StrEnum):
    """Why a link opens nothing."""

    FORGED = "forged"
    EXPIRED = "expired"


@dataclass(frozen=True)
class Linked:
    """What a link is about."""

    study_instance_uid: str
    revision: int


class Links:
    """Makes links and reads them.

    Parameters
    ----------
    key
        From `links_of`.
    """

    def __init__(self, key: bytes) -> None:
        self._serializer = URLSafeTimedSerializer(
            key, salt="feedback", signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256}
        )

    def token(self, study_instance_uid: str, revision: int) -> str:
        """Return what a link ends with, valid from now on."""
        signed = self._serializer.dumps([study_instance_uid, revision])
        return signed if isinstance(signed, str) else signed.decode()

    def url(self, public_url: str, study_instance_uid: str, revision: int) -> str:
        """Return a link."""
        return f"{public_url}{PATH}{self.token(study_instance_uid, revision)}"

    def read(self, token: str, days: float) -> Linked | Unusable:
        """Return what a link is about, if it was signed here not more than so many days ago."""
        if len(token) > _LONGEST:
            return Unusable.FORGED
        try:
            study_instance_uid, revision = self._serializer.loads(token, max_age=int(days * _DAY_SECONDS))
            return Linked(checked_uid(study_instance_uid, "StudyInstanceUID"), int(revision))
        except SignatureExpired:
            return Unusable.EXPIRED
        except (BadSignature, InvalidUID, TypeError, ValueError):
            return Unusable.FORGED


def links_of(session: Session) -> Links:
    """Return the links of this installation."""
    return Links(key_for(session, "feedback link"))
