"""Role 1, DIMSE: the storage and verification SCP.

Data sets stream to ``incoming/`` while they arrive; `service.core.receive` takes custody before the response.
"""

import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.events import Event

from service.core import tally
from service.core.admission import Admission, Caller
from service.core.audit import Audit, Transfer
from service.core.confirmation import take_commitment
from service.core.errors import ConfigurationError, HilumError, InvalidUID, Mismatch, Unreadable
from service.core.identifiers import checked_uid
from service.core.incoming import IncomingFile, full, remove_leftovers
from service.core.ledger import Ledger
from service.core.live import Live
from service.core.receive import Arrival, Intake
from service.core.settings import Settings
from service.core.spool import Spool
from service.core.tls import RenewedContext
from service.listener.callers import Callers
from service.listener.limits import MAXIMUM_PDU_BYTES, Bounds, Slots
from service.listener.presentation import Offer, commitment_context, storage_contexts, verification_context
from service.listener.transport import Handler, Server, listen
from service.listener.upper import missing_internals, remember_uids

# Shorter than the supervisor waits: `service.commands.up`.
_DRAIN_SECONDS = 15.0
_UNRECOGNISED_OPERATION = 0x0211  # PS3.7 C.5.14
# Of an A-ASSOCIATE-RJ by the service user (PS3.8 9.3.4).
_DIAGNOSTICS = {
    3: "nobody is known by this calling AE title",
    7: "it calls another AE title than ours",
}
_FULL = {
    "all": "no room now, as many associations run as HILUM_MAX_ASSOCIATIONS allows",
    "address": "no room now, HILUM_MAX_ASSOCIATIONS_PER_ADDRESS allows no more from its address",
    "calling_ae_title": "no room now, HILUM_MAX_ASSOCIATIONS_PER_AE_TITLE allows no more of its AE title",
}
"""By what `Slots.taken` yields."""
_log = structlog.get_logger()


def open_sockets(settings: Settings) -> dict[str, socket.socket]:
    """Return the sockets that listen, by the settings of their ports.

    Raises
    ------
    OSError
        When an address can't be bound.
    """
    return {setting: listen(settings.dimse_host, port) for setting, port in settings.dimse_ports.items()}


class Listener:
    """The DIMSE server of one process.

    Parameters
    ----------
    sockets
        What `open_sockets` returned, where other processes serve them too; else it opens them itself.
    slots
        What is shared with those.
    """

    def __init__(
        self,
        settings: Settings,
        spool: Spool,
        ledger: Ledger,
        bounds: Bounds | None = None,
        live: Live | None = None,
        sockets: Mapping[str, socket.socket] | None = None,
        slots: Slots | None = None,
    ) -> None:
        self._settings = settings
        self._live = live or Live(settings)
        self._live.on_change(self._admit_destinations)
        self._spool = spool
        self._ledger = ledger
        self._intake = Intake(ledger, spool, settings, self._live)
        self._audit = Audit(settings, "listener")
        self._transfers: dict[Association, Transfer] = {}
        self._bounds = bounds or Bounds()
        _config.LOG_HANDLER_LEVEL = "none"
        _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
        self._ae = AE(settings.ae_title)
        storage = storage_contexts()
        self._ae.supported_contexts = [verification_context(), *storage]
        self._verification = Offer.of(verification_context())
        self._storage = [Offer.of(context) for context in storage]
        self._commitment = Offer.of(commitment_context())
        self._ae.require_called_aet = True
        self._admit_destinations(settings)
        self._ae.maximum_associations = settings.max_associations
        self._ae.maximum_pdu_size = MAXIMUM_PDU_BYTES
        self._ae.acse_timeout = self._bounds.closing
        self._ae.network_timeout = self._ae.dimse_timeout = self._bounds.idle
        self._sockets, self._slots = sockets, slots or Slots.of(settings)
        self._servers: list[Server] = []
        self._callers = Callers()
        self.about = self._callers.about

    def start(self) -> None:
        """Bind and serve from threads.

        Raises
        ------
        OSError
            When an address can't be bound.
        ConfigurationError
            When this pynetdicom can't keep whom the settings keep out.
        """
        handlers: list[Handler] = [
            (evt.EVT_ACCEPTED, self._on_acceptance),
            (evt.EVT_REJECTED, self._on_rejection),
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_C_ECHO, self._on_echo),
            (evt.EVT_N_EVENT_REPORT, self._on_commitment),
            (evt.EVT_N_ACTION, lambda event: (_UNRECOGNISED_OPERATION, None)),
        ]
        if missing := missing_internals():
            _log.warning("listener.unbounded", missing=missing, hint="install the pinned pynetdicom")
            self._start_plain(handlers)
            return
        remember_uids()
        if removed := remove_leftovers(self._spool.incoming):
            _log.info("listener.leftovers_removed", files=removed)
        for setting, listening in (self._sockets or open_sockets(self._settings)).items():
            secured = RenewedContext(self._settings.tls_files) if "TLS" in setting else None
            self._servers.append(
                Server(
                    self._ae,
                    listening,
                    handlers,
                    self._slots,
                    self._bounds,
                    self._new_file,
                    self._admit,
                    secured,
                    refused=self._refuse,
                    busy=self._keep_waiting,
                    ended=self._write_transfer,
                )
            )
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.1,), name="accept", daemon=True).start()

    def _admit_destinations(self, settings: Settings) -> None:
        """Let the peers from the start call, and the destinations of now answer."""
        self._admission = Admission(self._settings.peers, settings.destinations)
        if self._settings.peers:
            self._ae.require_calling_aet = [peer.ae_title for peer in self._admission.peers]

    def stop(self) -> None:
        """Accept nobody new, let the running associations end for a while, then abort what is left."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._servers and self._ae.active_associations and time.monotonic() < deadline:
            time.sleep(0.05)
        for server in self._servers:
            server.abort()
        self._ae.shutdown()

    def _start_plain(self, handlers: list[Handler]) -> None:
        """Serve as pynetdicom does by itself: nothing is lost, but a peer can stall it."""
        bound = any(peer.addresses or peer.certificates for peer in self._settings.peers)
        if bound or self._settings.dimse_port is None or self._settings.dimse_tls_port is not None:
            raise ConfigurationError(
                "addresses and certificates of peers need the pinned pynetdicom: install Hilum again with "
                "its dependencies"
            )
        _config.STORE_RECV_CHUNKED_DATASET = True
        tempfile.tempdir = str(self._spool.incoming)
        address = (self._settings.dimse_host, self._settings.dimse_port)
        handlers = [*handlers, (evt.EVT_CONN_CLOSE, lambda event: self._write_transfer(event.assoc))]
        self._ae.start_server(address, block=False, evt_handlers=list(handlers))

    def _admit(self, calling_ae_title: str, caller: Caller) -> list[Offer] | None:
        """Return what is offered: storage to who may send, its answers to a destination; None to nobody."""
        verdict = self._admission.judge(calling_ae_title, caller)
        if verdict.refusal is not None:
            shown: dict[str, Any] = {}
            if caller.identity is not None:
                shown = {"certificate": sorted(caller.identity.names), "sha256": caller.identity.sha256}
            _log.warning(
                "association.rejected",
                peer=caller.address,
                calling_ae_title=calling_ae_title,
                reason=verdict.refusal,
                **shown,
            )
            who = f"{', '.join(shown['certificate'])} (SHA-256 {shown['sha256']})" if shown else ""
            self._audit.refused(caller.address, verdict.refusal, calling_ae_title, who)
            self._callers.came("rejection", calling_ae_title, caller.address, verdict.refusal)
            self._count(calling_ae_title, "rejected")
            return None
        offered = [self._verification]
        if verdict.may_store:
            offered += self._storage
        if verdict.may_answer:
            offered.append(self._commitment)
        return offered

    def _on_echo(self, event: Event) -> int:
        self._callers.called("echo", event.assoc)
        return 0x0000

    def _on_commitment(self, event: Event) -> tuple[int, None]:
        """Take the answer to a storage commitment."""
        try:
            title = event.assoc.requestor.ae_title.strip()
            return take_commitment(self._ledger, self._live.settings, title, event.event_information), None
        except Exception:
            _log.exception("commitment.failed")
            return HilumError.dimse_status, None

    def _new_file(self) -> IncomingFile:
        fault = full(self._spool, self._settings)
        return IncomingFile(self._spool.incoming, self._settings.max_object_bytes, fault)

    def _on_store(self, event: Event) -> int:
        with structlog.contextvars.bound_contextvars(sop_instance_uid=_uid_in_command(event)):
            status = self._store(event)
        sender = tally.peer(self._settings, event.assoc.requestor.ae_title.strip())
        tally.add(tally.OBJECTS, sender, f"{status:04X}")
        return status

    def _store(self, event: Event) -> int:
        try:
            transfer = self._transfer(event.assoc)
            with _data_set_of(event):
                with transfer.unread():
                    arrival = _arrival(event)
                self._intake.receive(arrival, transfer)
        except HilumError as fault:
            _log.warning(
                "receive.refused", code=fault.code, status=f"{fault.dimse_status:04X}", reason=str(fault)
            )
            self._callers.called("refusal", event.assoc, f"{fault.dimse_status:04X}, {fault}")
            return fault.dimse_status
        except Exception:
            _log.exception("receive.failed")
            return HilumError.dimse_status
        return 0x0000

    def _transfer(self, association: Association) -> Transfer:
        """Return what collects the objects of an association; only its own thread asks for it."""
        requestor = association.requestor
        if association not in self._transfers:
            self._transfers[association] = self._audit.receiving(
                requestor.ae_title.strip(), str(requestor.address)
            )
        return self._transfers[association]

    def _write_transfer(self, association: Association) -> None:
        if transfer := self._transfers.pop(association, None):
            transfer.write()

    def _count(self, calling_ae_title: str, result: str) -> None:
        tally.add(tally.ASSOCIATIONS, tally.peer(self._settings, calling_ae_title), result)

    def _refuse(self, address: str, reason: str) -> None:
        """Write down a TLS handshake that failed."""
        self._audit.refused(address, reason)
        self._callers.came("rejection", "", address, reason)
        self._count("", "no_tls")

    def _keep_waiting(self, calling_ae_title: str, address: str, full: str) -> None:
        """Write down an association that was one too many."""
        self._callers.came("rejection", calling_ae_title, address, _FULL[full])
        self._count(calling_ae_title, "busy")

    def _on_acceptance(self, event: Event) -> None:
        calling_ae_title = event.assoc.requestor.ae_title.strip()
        _log.info(
            "association.accepted",
            peer=event.assoc.requestor.address,
            calling_ae_title=calling_ae_title,
        )
        self._callers.called("association", event.assoc)
        self._count(calling_ae_title, "accepted")
        tally.note(tally.LAST_ASSOCIATION, tally.peer(self._settings, calling_ae_title))

    def _on_rejection(self, event: Event) -> None:
        primitive: Any = event.assoc.acceptor.primitive
        requestor, diagnostic = event.assoc.requestor, getattr(primitive, "diagnostic", 0)
        _log.warning("association.rejected", peer=requestor.address, diagnostic=diagnostic)
        reason = _DIAGNOSTICS.get(diagnostic, "its association was rejected")
        self._audit.refused(str(requestor.address), reason, requestor.ae_title.strip())
        self._callers.called("rejection", event.assoc, reason)
        self._count(requestor.ae_title.strip(), "rejected")


def _uid_in_command(event: Event) -> str | None:
    """Return the SOP Instance UID that a C-STORE names, None when it is none that may stand in a log."""
    request: Any = event.request
    with suppress(InvalidUID):
        return str(checked_uid(request.AffectedSOPInstanceUID, "AffectedSOPInstanceUID"))
    return None


@contextmanager
def _data_set_of(event: Event) -> Iterator[None]:
    """Keep the file of a C-STORE's data set locked for the block, and no longer: descriptors are few."""
    request: Any = event.request
    if request._dataset_file is None:
        raise Unreadable("the C-STORE has no data set")
    try:
        yield
    finally:
        request._dataset_file.close()


def _arrival(event: Event) -> Arrival:
    """Return what a C-STORE brought, all of it in its file."""
    request: Any = event.request
    file = request._dataset_file
    file.flush()
    if fault := getattr(file, "fault", None):
        raise fault
    arrival = Arrival(
        Path(request._dataset_path),
        event.assoc.requestor.ae_title.strip(),
        str(request.AffectedSOPClassUID),
        str(request.AffectedSOPInstanceUID),
        # pynetdicom's own file, without `service.listener.upper`, has neither.
        head=getattr(file, "head", None),
        digest=getattr(file, "digest", None),
        move_originator=str(request.MoveOriginatorApplicationEntityTitle or "").strip(),
    )
    if arrival.sop_class_uid != str(event.context.abstract_syntax):
        arrival.path.unlink(missing_ok=True)
        raise Mismatch("command and presentation context name different SOP classes")
    return arrival
