"""Connections from the first byte to the last, with every phase bounded.

pynetdicom does the TLS handshake in its accept loop, gives a slot to whoever connects, and waits for the
first PDU as long as for any other. So the accepting and the first PDU are ours; then `service.listener.upper`
runs pynetdicom's association.
"""

import socket
import socketserver
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import structlog
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation

from service.core import tls
from service.core.admission import Caller
from service.listener.connection import (
    ABORT,
    HEADER,
    INVALID_PARAMETER,
    LONGEST_PDU,
    UNEXPECTED_PDU,
    Connection,
    close,
    receive,
    shut,
)
from service.listener.limits import Bounds, Slots
from service.listener.presentation import Offer
from service.listener.upper import Messages, NewFile, Upper

_A_ASSOCIATE_RQ = 0x01
# A-ASSOCIATE-RJ: rejected-transient, presentation related, local-limit-exceeded (PS3.8 9.3.4).
_REJECTION = bytes.fromhex("0300 00000004 00 02 03 02")
# The same: rejected-permanent, service-user, calling-AE-title-not-recognized.
_NOT_RECOGNISED = bytes.fromhex("0300 00000004 00 01 01 03")
# So long a process that holds more associations than another one leaves a new connection to that.
_YIELD_SECONDS = 0.002
_log = structlog.get_logger()

Handler = tuple[evt.EventType, Callable[[Event], Any]]
Admit = Callable[[str, Caller], Iterable[Offer] | None]


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; nobody waits in `accept` for a connection that another process took.

    Raises
    ------
    OSError
        When the address can't be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    listening = socket.create_server((host, port), family=family, backlog=128, dualstack_ipv6=both)
    listening.setblocking(False)
    return listening


class Server(socketserver.ThreadingTCPServer):
    """Accepts connections and gives each a thread, which sees it through its phases to the end.

    Parameters
    ----------
    ae
        Whose titles and timeouts hold.
    listening
        The socket that `listen` returned; other processes may accept from it too.
    handlers
        Events to bind to every association.
    admit
        Returns what is offered to a calling AE title and where it calls from; None to reject it.
    ssl_context
        Returns the context of the TLS handshake with which every connection starts; without it none does.
    refused
        Is told address and reason when a TLS handshake fails.
    busy
        Is told calling AE title, address, and which limit of `Slots` leaves no slot for it.
    ended
        Is told of every association when nothing of it runs any more.
    """

    daemon_threads = True

    def __init__(
        self,
        ae: AE,
        listening: socket.socket,
        handlers: Sequence[Handler],
        slots: Slots,
        bounds: Bounds,
        new_file: NewFile,
        admit: Admit,
        ssl_context: Callable[[], ssl.SSLContext] | None = None,
        *,
        refused: Callable[[str, str], None],
        busy: Callable[[str, str, str], None],
        ended: Callable[[Association], None],
    ) -> None:
        self._ae = ae
        self._handlers = list(handlers)
        self._slots = slots
        self._bounds = bounds
        self._new_file = new_file
        self._admit = admit
        self._ssl_context = ssl_context
        self._refused = refused
        self._busy = busy
        self._ended = ended
        self._lock = threading.Lock()
        self._half_open: dict[socket.socket, None] = {}
        self._associated: set[socket.socket] = set()
        super().__init__(
            listening.getsockname()[:2], socketserver.BaseRequestHandler, bind_and_activate=False
        )
        self.socket.close()
        self.socket = listening

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection and do nothing else, for the next one waits behind it."""
        if self._slots.is_ahead():
            time.sleep(_YIELD_SECONDS)
        try:
            return self.socket.accept()
        except BlockingIOError:  # another process has it
            raise
        except OSError:
            # Out of descriptors: the connection stays in the queue, and without a pause this would spin.
            time.sleep(0.05)
            raise

    def finish_request(self, request: Any, client_address: Any) -> None:
        """See one connection through; runs in its own thread."""
        connection: socket.socket = request
        peer = str(client_address[0])
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._ssl_context is not None:
                connection = self._ssl_context().wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                )
            self._enter(connection)
            first = self._first_pdu(connection)
            if not first:
                return
            calling_ae_title = first[26:42].decode("ascii", "replace").strip()
            offers = self._admit(calling_ae_title, Caller(peer, _identity(connection)))
            if offers is None:
                self._reject(connection, _NOT_RECOGNISED)
                return
            with self._slots.taken(peer, calling_ae_title) as full:
                if full is None:
                    self._associate(connection, client_address, offers, first)
                else:
                    _log.warning("association.rejected", peer=peer, full=full)
                    self._busy(calling_ae_title, peer, full)
                    self._reject(connection, _REJECTION)
        except ssl.SSLError as fault:
            _log.warning("connection.refused", peer=peer, reason=tls.reason(fault))
            if not isinstance(fault, ssl.SSLEOFError):  # a health check, or somebody who left
                self._refused(peer, tls.reason(fault))
        except OSError as fault:
            _log.info("connection.ended", peer=peer, error=type(fault).__name__)
        finally:
            with self._lock:
                self._half_open.pop(connection, None)
                self._associated.discard(connection)
            close(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what ended a connection's thread, without values."""
        _log.exception("connection.failed", peer=str(client_address[0]))

    def abort(self) -> None:
        """End every connection that is left."""
        with self._lock:
            for connection in [*self._half_open, *self._associated]:
                shut(connection)

    def _enter(self, connection: socket.socket) -> None:
        with self._lock:
            self._half_open[connection] = None
            if len(self._half_open) > self._bounds.half_open:
                shut(next(iter(self._half_open)))
                del self._half_open[next(iter(self._half_open))]

    def _first_pdu(self, connection: socket.socket) -> bytes | None:
        """Return the A-ASSOCIATE-RQ; None when the peer leaves or sends something else."""
        if isinstance(connection, ssl.SSLSocket):
            connection.settimeout(self._bounds.handshake)
            connection.do_handshake()
        end = time.monotonic() + self._bounds.negotiation
        header = receive(connection, HEADER.size, end)
        if len(header) < HEADER.size:
            return None
        pdu_type, length = HEADER.unpack(header)
        if pdu_type != _A_ASSOCIATE_RQ or length > LONGEST_PDU:
            connection.settimeout(self._bounds.closing)
            connection.sendall(ABORT + (UNEXPECTED_PDU if length <= LONGEST_PDU else INVALID_PARAMETER))
            return None
        body = receive(connection, length, end)
        return bytes(header + body) if len(body) == length else None

    def _reject(self, connection: socket.socket, rejection: bytes) -> None:
        connection.settimeout(self._bounds.closing)
        connection.sendall(rejection)
        # Closing while the peer still sends could lose the rejection; it has read it when it closes.
        receive(connection, 1, time.monotonic() + self._bounds.closing)

    def _associate(
        self, connection: socket.socket, client_address: Any, offers: Iterable[Offer], first: bytes
    ) -> None:
        """Let pynetdicom run an association; returns when its thread has ended."""
        peer = str(client_address[0])
        with self._lock:
            self._half_open.pop(connection, None)
            self._associated.add(connection)
        association = Association(self._ae, "acceptor")
        # pynetdicom finds the threads of its acceptors by this name.
        association.name = f"AcceptorThread-{client_address[1]}"
        upper, messages = Upper(association), Messages(association, self._new_file)
        association.dul, association.dimse = upper, messages
        association.acse_timeout = self._ae.acse_timeout  # the timers of `upper` have them from here
        association.network_timeout = self._ae.network_timeout
        acceptor = association.acceptor
        acceptor.maximum_length = self._ae.maximum_pdu_size
        acceptor.ae_title = self._ae.ae_title
        acceptor.address_info = AddressInformation.from_tuple(self.server_address)  # type: ignore[arg-type]
        acceptor.implementation_class_uid = self._ae.implementation_class_uid
        acceptor.implementation_version_name = self._ae.implementation_version_name
        # A deep copy of every context costs 90 ms of CPU an association; the negotiation only sets attributes
        # of the copies themselves, so shallow ones do, and only of what the request names.
        acceptor.supported_contexts = [_copied(offer.context) for offer in offers if offer.name in first]
        association.requestor.address_info = AddressInformation.from_tuple(client_address)
        for event, handler in self._handlers:
            association.bind(event, handler)
        wire = Connection(association, connection, first, self._bounds)
        association.set_socket(wire)
        vars(association)["run"] = partial(_run, association, upper, peer, self._bounds.closing)
        association.start()
        try:
            association.join(self._bounds.association)
            if association.is_alive():
                _log.warning("association.too_long", peer=peer)
                association.abort(block=False)
                association.join(self._bounds.closing)
        finally:
            shut(connection)
            association.join()
            wire.discard()
            messages.discard()
            self._ended(association)


def _copied(context: PresentationContext) -> PresentationContext:
    copied = PresentationContext.__new__(PresentationContext)
    vars(copied).update(vars(context))
    return copied


def _identity(connection: socket.socket) -> tls.Identity | None:
    return tls.identity(connection) if isinstance(connection, ssl.SSLSocket) else None


def _run(association: Association, upper: Upper, peer: str, closing: float) -> None:
    """Run an association, whose log lines name it, until its connection is closed.

    The state machine of pynetdicom raises at what comes at the wrong moment.
    """
    structlog.contextvars.bind_contextvars(association=uuid.uuid4().hex[:12])
    try:
        association.run_reactor()
        upper.finish(closing)
    except Exception as fault:
        _log.warning("association.aborted", peer=peer, reason=type(fault).__name__)
