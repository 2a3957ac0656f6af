"""Connections of pynetdicom 3.0.4 with every phase bounded.

pynetdicom reads a PDU for as long as the peer likes, does the TLS handshake in its accept loop, gives a slot
to whoever connects, and takes any length that a PDU promises. So the accepting, the first PDU and the reading
of PDUs are ours; negotiation, state machine and DIMSE stay pynetdicom's.

Used beyond its documented interface, and looked for by `missing_internals`: that an `Association` can be made
as acceptor, given a socket and another `dimse`, and run by `run_reactor`; what a DIMSE provider receives
and holds; the queues of the DUL; where a `DIMSEMessage` keeps the file that a C-STORE's data set goes to.
"""

import copy
import socket
import socketserver
import ssl
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import create_file_meta
from pynetdicom.dul import DULServiceProvider
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationSocket

from service.core import tls
from service.core.admission import Caller
from service.core.errors import InvalidUID, Refused
from service.core.identifiers import checked_uid
from service.core.incoming import IncomingFile
from service.listener.limits import MAXIMUM_PDU_BYTES, Bounds, Slots

_HEADER = struct.Struct(">BxL")
# Some count the maximum length without the headers inside the PDU.
_LONGEST_PDU = MAXIMUM_PDU_BYTES + 1024
_A_ASSOCIATE_RQ = 0x01
# A-ASSOCIATE-RJ: rejected-transient, presentation related, local-limit-exceeded (PS3.8 9.3.4).
_REJECTION = bytes.fromhex("0300 00000004 00 02 03 02")
# The same: rejected-permanent, service-user, calling-AE-title-not-recognized.
_NOT_RECOGNISED = bytes.fromhex("0300 00000004 00 01 01 03")
# A-ABORT by the service provider (PS3.8 9.3.8).
_ABORT = bytes.fromhex("0700 00000004 0000 02")
_NOT_SPECIFIED, _UNEXPECTED_PDU, _INVALID_PARAMETER = b"\x00", b"\x02", b"\x06"
# A command set has a few hundred bytes, and no message but C-STORE brings us a data set worth more.
_LONGEST_MESSAGE = 64 * 1024
# We negotiate no asynchronous operations: one request at a time, and some patience.
_MOST_MESSAGES = 16
_NO_UID = "0.0"
_log = structlog.get_logger()

Handler = tuple[evt.EventType, Callable[[Event], Any]]
NewFile = Callable[[], IncomingFile]
Contexts = Iterable[PresentationContext]
Admit = Callable[[str, Caller], Contexts | None]


class PduTooLong(OSError):
    """A PDU promises more bytes than we negotiated."""


def missing_internals() -> list[str]:
    """Return what this module needs of pynetdicom and does not find."""
    probe = Association(AE(), "acceptor")
    needed: list[tuple[Any, str]] = [
        *((probe, name) for name in ("dimse", "set_socket", "acceptor", "requestor")),
        *((probe.dul, name) for name in ("event_queue", "to_user_queue", "run_reactor")),
        *((probe.dimse, name) for name in ("receive_primitive", "message", "msg_queue")),
        *((AssociationSocket, name) for name in ("ready", "recv", "send")),
        *((DIMSEMessage(), f"_data_set_{name}") for name in ("file", "path")),
        *((DIMSEMessage(), name) for name in ("encoded_command_set", "data_set", "context_id")),
        *((C_STORE(), f"_dataset_{name}") for name in ("file", "path")),
    ]
    return [
        f"{getattr(owner, '__name__', type(owner).__name__)}.{name}"
        for owner, name in needed
        if not hasattr(owner, name)
    ]


class Server(socketserver.ThreadingTCPServer):
    """Accepts connections and gives each a thread, which sees it through its phases to the end.

    Parameters
    ----------
    ae
        Whose titles and timeouts hold.
    handlers
        Events to bind to every association.
    admit
        Returns the presentation contexts for a calling AE title and where it calls from; None to reject it.
    ssl_context
        Returns the context of the TLS handshake with which every connection starts; without it none does.
    refused
        Is told address and reason when a TLS handshake fails.
    busy
        Is told the calling AE title when there is no slot for it.
    ended
        Is told of every association when nothing of it runs any more.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        ae: AE,
        address: tuple[str, int],
        handlers: Sequence[Handler],
        slots: Slots,
        bounds: Bounds,
        new_file: NewFile,
        admit: Admit,
        ssl_context: Callable[[], ssl.SSLContext] | None = None,
        *,
        refused: Callable[[str, str], None],
        busy: Callable[[str], None],
        ended: Callable[[Association], None],
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._ae = ae
        self._handlers = [*handlers, (evt.EVT_CONN_CLOSE, _wake)]
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
        super().__init__(address, socketserver.BaseRequestHandler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection and do nothing else, for the next one waits behind it."""
        try:
            return self.socket.accept()
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
            contexts = self._admit(calling_ae_title, Caller(peer, _identity(connection)))
            if contexts is None:
                self._reject(connection, _NOT_RECOGNISED)
                return
            with self._slots.taken(peer, calling_ae_title) as full:
                if full is None:
                    self._associate(connection, client_address, contexts, first)
                else:
                    _log.warning("association.rejected", peer=peer, full=full)
                    self._busy(calling_ae_title)
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
            _close(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what ended a connection's thread, without values."""
        _log.exception("connection.failed", peer=str(client_address[0]))

    def abort(self) -> None:
        """End every connection that is left."""
        with self._lock:
            for connection in [*self._half_open, *self._associated]:
                _shut(connection)

    def _enter(self, connection: socket.socket) -> None:
        with self._lock:
            self._half_open[connection] = None
            if len(self._half_open) > self._bounds.half_open:
                _shut(next(iter(self._half_open)))
                del self._half_open[next(iter(self._half_open))]

    def _first_pdu(self, connection: socket.socket) -> bytes | None:
        """Return the A-ASSOCIATE-RQ; None when the peer leaves or sends something else."""
        if isinstance(connection, ssl.SSLSocket):
            connection.settimeout(self._bounds.handshake)
            connection.do_handshake()
        end = time.monotonic() + self._bounds.negotiation
        header = _receive(connection, _HEADER.size, end)
        if len(header) < _HEADER.size:
            return None
        pdu_type, length = _HEADER.unpack(header)
        if pdu_type != _A_ASSOCIATE_RQ or length > _LONGEST_PDU:
            connection.settimeout(self._bounds.closing)
            connection.sendall(_ABORT + (_UNEXPECTED_PDU if length <= _LONGEST_PDU else _INVALID_PARAMETER))
            return None
        body = _receive(connection, length, end)
        return bytes(header + body) if len(body) == length else None

    def _reject(self, connection: socket.socket, rejection: bytes) -> None:
        connection.settimeout(self._bounds.closing)
        connection.sendall(rejection)
        # Closing while the peer still sends could lose the rejection; it has read it when it closes.
        _receive(connection, 1, time.monotonic() + self._bounds.closing)

    def _associate(
        self, connection: socket.socket, client_address: Any, contexts: Contexts, first: bytes
    ) -> None:
        """Let pynetdicom run an association; returns when both of its threads have ended."""
        peer = str(client_address[0])
        with self._lock:
            self._half_open.pop(connection, None)
            self._associated.add(connection)
        association = Association(self._ae, "acceptor")
        # pynetdicom finds the threads of its acceptors by this name.
        association.name = f"AcceptorThread-{client_address[1]}"
        messages = Messages(association, self._new_file)
        association.dimse = messages
        acceptor = association.acceptor
        acceptor.maximum_length = self._ae.maximum_pdu_size
        acceptor.ae_title = self._ae.ae_title
        acceptor.address_info = AddressInformation.from_tuple(self.server_address)  # type: ignore[arg-type]
        acceptor.implementation_class_uid = self._ae.implementation_class_uid
        acceptor.implementation_version_name = self._ae.implementation_version_name
        # A deep copy of every context costs 90 ms of CPU an association; the negotiation only sets attributes
        # of the copies themselves, so shallow ones do (measured: 5 ms).
        acceptor.supported_contexts = [copy.copy(context) for context in contexts]
        association.requestor.address_info = AddressInformation.from_tuple(client_address)
        for event, handler in self._handlers:
            association.bind(event, handler)
        association.set_socket(Connection(association, connection, first, self._bounds))
        name = uuid.uuid4().hex[:12]
        for thread in (association, association.dul):
            vars(thread)["run"] = partial(_run, thread, peer, name)
        association.start()
        try:
            association.join(self._bounds.association)
            if association.is_alive():
                _log.warning("association.too_long", peer=peer)
                association.abort(block=False)
                association.join(self._bounds.closing)
        finally:
            _shut(connection)
            association.join()
            association.dul.join()
            messages.discard()
            self._ended(association)


class Connection(AssociationSocket):
    """The socket of an association: it reads `first` before all else, and a PDU in time or not at all."""

    def __init__(
        self, association: Association, connection: socket.socket, first: bytes, bounds: Bounds
    ) -> None:
        super().__init__(association, client_socket=connection)
        self._ahead = bytearray(first)
        self._bounds = bounds
        self._end = 0.0
        connection.settimeout(bounds.pdu)

    @property
    def ready(self) -> bool:
        """Whether there is something to read."""
        return bool(self._ahead) or bool(super().ready)

    def recv(self, nr_bytes: int) -> bytearray:
        """Return so many bytes, fewer when the peer has closed.

        Raises
        ------
        PduTooLong
            When they are more than a PDU may have.
        TimeoutError
            When the PDU takes too long.
        """
        if self._ahead:
            taken = self._ahead[:nr_bytes]
            del self._ahead[:nr_bytes]
            return taken
        connection = self.socket
        if connection is None:
            raise ConnectionAbortedError
        # pynetdicom asks for the header of a PDU, then for the rest of it.
        if nr_bytes == _HEADER.size:
            self._end = time.monotonic() + self._bounds.pdu
        try:
            if nr_bytes > _LONGEST_PDU:
                raise PduTooLong
            return _receive(connection, nr_bytes, self._end)
        except (PduTooLong, TimeoutError) as fault:
            _log.warning(
                "association.aborted", peer=self.assoc.requestor.address, reason=type(fault).__name__
            )
            with suppress(OSError):
                connection.settimeout(self._bounds.closing)
                connection.sendall(
                    _ABORT + (_INVALID_PARAMETER if isinstance(fault, PduTooLong) else _NOT_SPECIFIED)
                )
            raise
        finally:
            with suppress(OSError):
                connection.settimeout(self._bounds.pdu)


class Messages(DIMSEServiceProvider):
    """The DIMSE messages of an association; the data set of a C-STORE goes to a file while it comes."""

    def __init__(self, association: Association, new_file: NewFile) -> None:
        super().__init__(association)
        self._new_file = new_file
        self._files: list[IncomingFile] = []

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take the fragments of a P-DATA one by one; what cannot be a message aborts the association."""
        try:
            for fragment in primitive.presentation_data_value_list:
                single = P_DATA()
                single.presentation_data_value_list.append(fragment)
                super().receive_primitive(single)
                self._bound()
        except Exception as fault:  # pynetdicom and pydicom raise nearly anything on broken bytes
            _log.warning(
                "association.aborted", peer=self.assoc.requestor.address, reason=type(fault).__name__
            )
            self.dul.event_queue.put("Evt19")

    def discard(self) -> None:
        """Remove the files that no C-STORE handler took over."""
        for file in self._files:
            file.discard()

    def _bound(self) -> None:
        if self.msg_queue.qsize() > _MOST_MESSAGES:
            raise Refused("more requests at a time than were negotiated")
        message = self.message
        if message is None:
            return
        if isinstance(message, C_STORE_RQ) and message._data_set_file is None:
            self._open(message)
        held = message.encoded_command_set.tell() + (message.data_set.tell() if message.data_set else 0)
        if held > _LONGEST_MESSAGE:
            raise Refused("a message longer than any that is offered")

    def _open(self, message: Any) -> None:
        """Give the C-STORE that begins its file, with the file meta information in it."""
        context = next(item for item in self.assoc.accepted_contexts if item.context_id == message.context_id)
        command = message.command_set
        self._files = [file for file in self._files if not file.closed]
        file = self._new_file()
        self._files.append(file)
        for keyword in ("AffectedSOPClassUID", "AffectedSOPInstanceUID"):
            try:
                checked_uid(command.get(keyword), keyword)
            except InvalidUID as fault:
                # pynetdicom would abort where the sender is owed 0117.
                file.refuse(fault)
                setattr(command, keyword, _NO_UID)
        file_meta = create_file_meta(
            sop_class_uid=command.AffectedSOPClassUID,
            sop_instance_uid=command.AffectedSOPInstanceUID,
            transfer_syntax=context.transfer_syntax[0],
        )
        file_meta.SendingApplicationEntityTitle = self.assoc.requestor.ae_title.strip()
        file.begin(file_meta)
        message._data_set_file, message._data_set_path = file, file.path


def _identity(connection: socket.socket) -> tls.Identity | None:
    return tls.identity(connection) if isinstance(connection, ssl.SSLSocket) else None


def _run(thread: Association | DULServiceProvider, peer: str, name: str) -> None:
    """Run a thread of pynetdicom, whose log lines name the association.

    Its state machine raises at what comes at the wrong moment.
    """
    structlog.contextvars.bind_contextvars(association=name)
    try:
        thread.run_reactor()
    except Exception as fault:
        _log.warning("association.aborted", peer=peer, reason=type(fault).__name__)


def _wake(event: Event) -> None:
    """End an association whose A-ASSOCIATE-RQ was none: nothing else would before its timeout."""
    if event.assoc.requestor.primitive is None:
        waiting: Any = event.assoc.dul.to_user_queue  # typed for primitives alone
        waiting.put(None)


def _receive(connection: socket.socket, size: int, end: float) -> bytearray:
    """Return `size` bytes, fewer when the peer has closed.

    Raises
    ------
    TimeoutError
        When they are not there at the moment `end` of the monotonic clock.
    """
    content = bytearray(size)
    view = memoryview(content)
    got = 0
    while got < size:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        count = connection.recv_into(view[got:])
        if not count:
            return content[:got]
        got += count
    return content


def _shut(connection: socket.socket) -> None:
    """Make every read and write of the connection end, in whatever thread it is."""
    with suppress(OSError):
        # SSLSocket's own would drop TLS first: who reads in another thread would take ciphertext for data.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _close(connection: socket.socket) -> None:
    _shut(connection)
    with suppress(OSError):
        connection.close()
