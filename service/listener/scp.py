"""Role 1, DIMSE: the storage and verification SCP.

Data sets stream to ``incoming/`` while they arrive; `service.core.receive` takes custody before the response.
"""

import copy
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from pynetdicom import AE, _config, evt, transport
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext

from service.core.errors import HilumError
from service.core.receive import Arrival, Intake
from service.core.settings import Settings
from service.core.spool import Spool
from service.listener.presentation import supported_contexts

_MAXIMUM_ASSOCIATIONS = 50
# Shorter than the supervisor waits: `service.commands.up`.
_DRAIN_SECONDS = 15.0
_log = structlog.get_logger()


class Listener:
    """The DIMSE server of one process."""

    def __init__(self, settings: Settings, spool: Spool, intake: Intake) -> None:
        self._settings = settings
        self._intake = intake
        _configure_pynetdicom(spool)
        self._ae = AE(settings.ae_title)
        self._ae.supported_contexts = supported_contexts()
        self._ae.require_called_aet = True
        self._ae.require_calling_aet = list(settings.calling_ae_titles)
        self._ae.maximum_associations = _MAXIMUM_ASSOCIATIONS
        # 0 lets the sender choose: large PDUs are the cheapest (PS3.8 D.1).
        self._ae.maximum_pdu_size = 0
        self._ae.acse_timeout = 10
        self._ae.dimse_timeout = 60
        self._ae.network_timeout = 60
        self._server: transport.ThreadedAssociationServer | None = None

    def start(self) -> None:
        """Bind and serve from threads.

        Raises
        ------
        OSError
            When the address can't be bound.
        """
        self._server = self._ae.start_server(
            (self._settings.dimse_host, self._settings.dimse_port),
            block=False,
            evt_handlers=[
                (evt.EVT_CONN_OPEN, _set_no_delay),
                (evt.EVT_REJECTED, _log_rejection),
                (evt.EVT_C_STORE, self._on_store),
                (evt.EVT_C_ECHO, lambda event: 0x0000),
            ],
        )

    def stop(self) -> None:
        """Accept nobody new, let the running associations end for a while, then abort what is left."""
        if self._server is not None:
            self._server.shutdown()
            deadline = time.monotonic() + _DRAIN_SECONDS
            while self._ae.active_associations and time.monotonic() < deadline:
                time.sleep(0.05)
            self._ae.shutdown()

    def _on_store(self, event: Event) -> int:
        request: Any = event.request
        # pynetdicom opened this file; closing it here is what lets a long association keep few descriptors.
        request._dataset_file.close()
        arrival = Arrival(
            Path(request._dataset_path),
            str(request.AffectedSOPClassUID),
            str(request.AffectedSOPInstanceUID),
            event.assoc.requestor.ae_title.strip(),
        )
        try:
            self._intake.receive(arrival)
        except HilumError as fault:
            _log.warning(
                "receive.refused", code=fault.code, status=f"{fault.dimse_status:04X}", reason=str(fault)
            )
            return fault.dimse_status
        except Exception:
            _log.exception("receive.failed")
            return HilumError.dimse_status
        return 0x0000


def _configure_pynetdicom(spool: Spool) -> None:
    _config.STORE_RECV_CHUNKED_DATASET = True
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
    tempfile.tempdir = str(spool.incoming)
    # A deep copy of every context costs 90 ms of CPU an association; the negotiation only sets attributes of
    # the copies themselves, so shallow ones do (measured: 5 ms).
    vars(transport)["deepcopy"] = _shallow_copies


def _shallow_copies(contexts: Sequence[PresentationContext]) -> list[PresentationContext]:
    return [copy.copy(context) for context in contexts]


def _set_no_delay(event: Event) -> None:
    """Answer at once: Nagle's algorithm holds a C-STORE response for 40 ms on a fast network."""
    connection: Any = event.assoc.dul.socket
    connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _log_rejection(event: Event) -> None:
    primitive = event.assoc.acceptor.primitive
    _log.warning(
        "association.rejected",
        peer=event.assoc.requestor.address,
        diagnostic=getattr(primitive, "diagnostic", None),
    )
