"""What is keyed with this installation's secret: a random number of the ledger that nothing else names.

Each purpose has a key of its own, so that what is signed for one says nothing in another.
"""

import hmac

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.core.tables import Installation


def key_for(session: Session, purpose: str) -> bytes:
    """Return the key of 32 bytes for one purpose."""
    secret = session.scalars(select(Installation.secret)).one()
    return hmac.digest(bytes.fromhex(secret), purpose.encode(), "sha256")


def keyed_hash(session: Session, purpose: str, text: str) -> bytes:
    """Return a hash of `text` that nobody can compute without the secret."""
    return hmac.digest(key_for(session, purpose), text.encode("utf-8", "surrogatepass"), "sha256")
