"""Say whether the role in this container works: exit code 0, or 1 with the reason.

    python healthcheck.py listener

The listener is asked by C-ECHO, where it admits this machine, the API over HTTP; the other roles serve
nobody, so the signs of life that this container wrote into the ledger count.
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

    title = _admitted_title(settings)
    if title is None:
        return _closed(next(iter(settings.dimse_ports.values())))
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


def _admitted_title(settings: Settings) -> str | None:
    """Return an AE title by which the listener lets this machine in without TLS, or None."""
    if settings.dimse_port is None:
        return None
    if not settings.peers:
        return settings.ae_title
    admitted = (peer.ae_title for peer in settings.peers if peer.is_at("127.0.0.1") and not peer.certificates)
    return next(admitted, None)


def _closed(port: int) -> str | None:
    """Return what keeps a connection from coming about; whoever asks for no more leaves no rejection."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError as fault:
        return f"the listener accepts no connection: {fault}"
    return None


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
