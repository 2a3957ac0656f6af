"""`hilum listen`: the DIMSE listener, one process or several."""

import socket
import sys
from collections.abc import Mapping
from functools import partial

import structlog

from service.commands.roles import prepare, started, until_terminated
from service.commands.supervise import Fork, Supervisor
from service.core import checks, tally
from service.core.audit import Audit
from service.core.heartbeat import start_beating
from service.core.ledger import Ledger
from service.core.live import Live
from service.core.settings import Settings
from service.core.spool import Spool
from service.listener.limits import Slots
from service.listener.scp import Listener, open_sockets
from service.listener.upper import missing_internals

_log = structlog.get_logger()


def listen(settings: Settings) -> None:
    """Run the DIMSE listener until SIGTERM, in processes that share its sockets and the limits it keeps."""
    # Its threads leave Python for every write and digest, and would wait 5 ms each time to come back.
    sys.setswitchinterval(0.0005)
    spool = prepare(settings, "listener")
    audit = Audit(settings, "listener")
    for setting, port in settings.dimse_ports.items():
        checks.require_port(settings.dimse_host, port, setting)
    if not settings.peers:
        _log.warning("listener.open", hint="any AE title may send: set HILUM_CALLING_AE_TITLES")
    processes = 1 if missing_internals() else settings.listener_processes
    audit.started()
    if processes == 1:
        _serve_associations(settings, spool)
    else:
        sockets, slots = open_sockets(settings), Slots.of(settings)
        supervisor = Supervisor(together=True, leave=partial(_close, sockets))
        started()
        for number in range(1, processes + 1):
            work = partial(_serve_associations, settings, spool, sockets, slots, number)
            supervisor.add(Fork(f"listener {number}", work=work, stop_seconds=30.0))
        supervisor.run()
    audit.stopped()


def _serve_associations(
    settings: Settings,
    spool: Spool,
    sockets: Mapping[str, socket.socket] | None = None,
    slots: Slots | None = None,
    number: int = 1,
) -> None:
    """Be one process of the listener until SIGTERM."""
    ledger, live = Ledger(settings.sqlalchemy_url), Live(settings)
    if slots is not None:
        slots.use_as(number)
    listener = Listener(settings, spool, ledger, live=live, sockets=sockets, slots=slots)
    listener.start()
    live.start()
    started()
    _log.info(
        "listener.started",
        host=settings.dimse_host,
        port=settings.dimse_port,
        tls_port=settings.dimse_tls_port,
        process=number,
    )
    beating = start_beating(ledger, "listener", lambda: {**listener.about(), **live.about()})
    until_terminated()
    beating.set()
    listener.stop()
    tally.flush(ledger)
    ledger.close()


def _close(sockets: Mapping[str, socket.socket]) -> None:
    """Let nobody wait for a process that accepts no more."""
    for listening in sockets.values():
        listening.close()
