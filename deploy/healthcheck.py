"""Say whether the role in this container works: exit code 0, or 1 with the reason.

    python healthcheck.py listener

The listener is asked by C-ECHO, the API over HTTP; the other roles serve nobody, so the signs of life that
this container wrote into the ledger count.
"""
# ruff: noqa: PLC0415 (each image has what its own role imports)

import socket
import sys
from datetime import timedelta
from http.client import HTTPConnection, HTTPException

from service.core.errors import HilumError
from service.core.settings import Settings, load


def fault_of(role: str, settings: Settings) -> str | None:
    """Return what is wrong with the role, or None."""
    if role == "listener":
        return _listener(settings)
    if role == "api":
        return _api(settings)
    return _silent(role, settings)


def _listener(settings: Settings) -> str | None:
    from pynetdicom import AE, build_context
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

    # One of those that the listener admits.
    title = settings.calling_ae_titles[0] if settings.calling_ae_titles else settings.ae_title
    requestor = AE(title)
    requestor.connection_timeout = requestor.acse_timeout = requestor.dimse_timeout = 5
    association = requestor.associate(
        "127.0.0.1", settings.dimse_port, [build_context(Verification)], ae_title=settings.ae_title
    )
    if not association.is_established:
        return "the listener accepts no association"
    status = association.send_c_echo().get("Status")
    association.release()
    return None if status == 0x0000 else f"C-ECHO was answered with {status}"


def _api(settings: Settings) -> str | None:
    connection = HTTPConnection("127.0.0.1", settings.http_port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, HTTPException) as fault:
        return f"the API does not answer: {fault}"
    return None if status == 200 else f"/healthz was answered with {status}"


def _silent(role: str, settings: Settings) -> str | None:
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    from service.core.heartbeat import ALIVE_SECONDS
    from service.core.ledger import Ledger, now
    from service.core.tables import Heartbeat

    query = select(Heartbeat.detail).where(
        Heartbeat.role == role,
        Heartbeat.process.startswith(f"{role}:{socket.gethostname()[:100]}:", autoescape=True),
        Heartbeat.at >= now() - timedelta(seconds=ALIVE_SECONDS),
    )
    try:
        with Ledger(settings.sqlalchemy_url).read() as session:
            details = session.scalars(query).all()
    except SQLAlchemyError as fault:
        return f"the ledger does not answer: {type(fault).__name__}"
    if not details:
        return f"no {role} of this container has been heard of for {ALIVE_SECONDS:.0f} s"
    return None if "" in details else details[0]


if __name__ == "__main__":
    try:
        sys.exit(fault_of(sys.argv[1], load()))
    except HilumError as wrong:
        sys.exit(str(wrong))
