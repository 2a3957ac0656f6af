"""What is ours in an association of pynetdicom 3.0.4: one thread, and data sets straight to their files.

pynetdicom gives an association two threads, which look a thousand times a second whether there is something
to do, and hands every PDU from one to the other through objects and queues. Here the thread of the
association also does the work of the upper layer (`Upper`): state machine, timers and negotiation stay
pynetdicom's, which is called in the same order. While the data set of a C-STORE comes, `Connection.fragments`
passes it to its file; everything else is read and judged by pynetdicom.

Used beyond its documented interface, and looked for by `missing_internals`: that an `Association` can be
made as acceptor, given a socket, another `dul` and another `dimse`, and run by `run_reactor`; what the DUL
does in one turn of its loop, its queues and timers; how a message is served; what a DIMSE provider receives
and holds; where a `DIMSEMessage` keeps the file that a C-STORE's data set goes to; and where it checks the
UIDs of a negotiation.
"""

import queue
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, wraps
from typing import Any

import structlog
from pydicom.uid import UID
from pynetdicom import (
    AE,
    PYNETDICOM_IMPLEMENTATION_UID,
    PYNETDICOM_IMPLEMENTATION_VERSION,
    dimse_primitives,
    pdu_items,
    presentation,
)
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationSocket

from service.core.errors import InvalidUID, Refused
from service.core.file_meta import FileMeta, written_file_meta
from service.core.identifiers import checked_uid
from service.core.incoming import IncomingFile
from service.listener.commands import store_request, store_response
from service.listener.connection import Came

# How soon is seen what other threads want: an end, or a response to an N-EVENT-REPORT.
_LOOK_SECONDS = 0.1
# A command set has a few hundred bytes, and no message but C-STORE brings us a data set worth more.
_LONGEST_MESSAGE = 64 * 1024
# We negotiate no asynchronous operations: one request at a time, and some patience.
_MOST_MESSAGES = 16
_NO_UID = "0.0"
_LONGEST_UID = 64 + 1  # with its padding
_DATA_TRANSFER, _AWAITING_CLOSE = "Sta6", "Sta13"
_LAST_FRAGMENT, _LAST_OF_COMMAND = b"\x02", b"\x03"
_log = structlog.get_logger()

NewFile = Callable[[], IncomingFile]


def missing_internals() -> list[str]:
    """Return what this module and `service.listener.connection` need of pynetdicom and do not find."""
    probe = Association(AE(), "acceptor")
    of_dul = (
        *("event_queue", "to_user_queue", "to_provider_queue", "state_machine", "artim_timer", "socket"),
        *("_idle_timer", "_kill_thread", "_process_recv_primitive", "_is_transport_event", "_read_pdu_data"),
        *("send_pdu", "receive_pdu", "stop_dul"),
    )
    needed: list[tuple[Any, str]] = [
        *((probe, name) for name in ("dimse", "set_socket", "acceptor", "requestor", "run_reactor")),
        *((probe, name) for name in ("_started_dul", "_dul_ready", "_kill", "_serve_request")),
        *((probe.dul, name) for name in of_dul),
        *((probe.dimse, name) for name in ("receive_primitive", "message", "msg_queue", "get_msg")),
        *((AssociationSocket, name) for name in ("ready", "recv", "send")),
        *((DIMSEMessage(), f"_data_set_{name}") for name in ("file", "path")),
        *((DIMSEMessage(), name) for name in ("encoded_command_set", "data_set", "context_id")),
        *((C_STORE(), name) for name in ("_dataset_file", "_dataset_path", "_context_id")),
        (select, "poll"),
        *((module, "set_uid") for module in (dimse_primitives, pdu_items, presentation)),
        (PresentationContext, "add_transfer_syntax"),
    ]
    return [
        f"{getattr(owner, '__name__', type(owner).__name__)}.{name}"
        for owner, name in needed
        if not hasattr(owner, name)
    ]


def remember_uids() -> None:
    """Let pynetdicom check a UID once in this process, rather than in each of its objects.

    What it finds no fault with it also says nothing of. Of an association with 120 contexts that is more than
    half of the work; a C-STORE and its response name the same two UIDs.
    """
    for module in (dimse_primitives, pdu_items, presentation):
        names: dict[str, Any] = vars(module)
        if not hasattr(names["set_uid"], "remembered"):
            names["set_uid"] = _remembering(names["set_uid"])
    add = PresentationContext.add_transfer_syntax
    if not hasattr(add, "remembered"):
        vars(presentation)["PresentationContext"].add_transfer_syntax = _adding_known(add)


def _remembering(set_uid: Callable[..., Any]) -> Callable[..., Any]:
    remembered = lru_cache(maxsize=4096)(set_uid)

    @wraps(set_uid)
    def set_known_uid(value: Any, *arguments: Any, **options: Any) -> Any:
        is_short = isinstance(value, (str, bytes)) and len(value) <= _LONGEST_UID
        return (remembered if is_short else set_uid)(value, *arguments, **options)

    vars(set_known_uid)["remembered"] = remembered
    return set_known_uid


def _adding_known(add: Callable[[PresentationContext, Any], None]) -> Callable[..., None]:
    remembered: dict[str, UID] = {}

    @wraps(add)
    def add_transfer_syntax(context: PresentationContext, syntax: Any) -> None:
        known = remembered.get(syntax) if isinstance(syntax, str) else None
        if known is None:
            add(context, syntax)
            held = context.transfer_syntax
            if held and held[-1] == syntax and held[-1].is_transfer_syntax and len(remembered) < 4096:
                remembered[str(syntax)] = held[-1]
        elif known not in context.transfer_syntax:
            context.transfer_syntax.append(known)

    vars(add_transfer_syntax)["remembered"] = remembered
    return add_transfer_syntax


class Upper(DULServiceProvider):
    """The upper layer of an association, worked by the association's own thread; it is never started."""

    def start(self) -> None:
        """Do what a thread of its own would do at first."""
        self._idle_timer.start()
        self.assoc._dul_ready.set()

    def is_alive(self) -> bool:
        """Whether the connection is still there to be worked on."""
        return not self._kill_thread

    def step(self, seconds: float) -> None:
        """Do the next thing that there is to do; wait so long for something."""
        if self.artim_timer.expired:
            self.event_queue.put("Evt18")
        if self.event_queue.empty() and not self._process_recv_primitive():
            closing = self.state_machine.current_state == _AWAITING_CLOSE
            connection: Any = self.socket
            if (closing or connection.wait(seconds)) and self._is_transport_event():
                self._idle_timer.restart()
        with suppress(queue.Empty):
            self.state_machine.do_action(self.event_queue.get(block=False))

    def attend(self, seconds: float = _LOOK_SECONDS) -> None:
        """Work until there is a message or primitive for the association, or for so long."""
        end = time.monotonic() + seconds
        messages = self.assoc.dimse.msg_queue
        while self.is_alive() and not self.assoc._kill and messages.empty() and self.to_user_queue.empty():
            if (left := end - time.monotonic()) <= 0:
                return
            self.step(min(left, _LOOK_SECONDS))

    def finish(self, seconds: float) -> None:
        """Work until the connection is closed, for so long: the last PDU is still to go out."""
        end = time.monotonic() + seconds
        while self.is_alive() and time.monotonic() < end:
            self.step(_LOOK_SECONDS)

    def send_pdu(self, primitive: Any) -> None:
        """Send at once, unless another thread asks for it: then the association's own does it soon."""
        super().send_pdu(primitive)
        if self._is_ours():
            while self.is_alive() and not self.to_provider_queue.empty():
                self.step(0)
            self._idle_timer.restart()  # while we had the turn, the peer was not idle

    def receive_pdu(self, wait: bool = False, timeout: float | None = None) -> Any:
        """Return a primitive for the association, None when there is none in time."""
        if wait:
            self.attend(_LOOK_SECONDS if timeout is None else timeout)
        return super().receive_pdu(wait=False)

    def stop_dul(self) -> bool:
        """Return whether the connection is closed; called again and again until it is."""
        if not super().stop_dul() and self._is_ours():
            self.step(0)
        return not self.is_alive()

    def _is_ours(self) -> bool:
        return threading.current_thread() is self.assoc

    def _read_pdu_data(self) -> None:
        """Read a PDU; of a data set that goes to a file, all that has come."""
        messages: Any = self.assoc.dimse
        connection: Any = self.socket
        context_id, file = messages.context_id, messages.file
        if file is None or self.state_machine.current_state != _DATA_TRANSFER:
            super()._read_pdu_data()
            return
        try:
            came = connection.fragments(context_id, file.write, _LOOK_SECONDS)
        except OSError:
            self.event_queue.put("Evt17")
            return
        if came is Came.LAST:
            messages.complete()
        elif came is Came.OTHER:
            super()._read_pdu_data()


class Messages(DIMSEServiceProvider):
    """The DIMSE messages of an association; the data set of a C-STORE goes to a file while it comes."""

    def __init__(self, association: Association, new_file: NewFile) -> None:
        super().__init__(association)
        self._new_file = new_file
        self._files: list[IncomingFile] = []
        # A C-STORE whose data set is to come, where it was told without `message`.
        self._store: C_STORE | None = None

    @property
    def file(self) -> IncomingFile | None:
        """Where the data set that comes next goes to; None where none is to come, or not into a file."""
        if self._store is not None:
            return self._store._dataset_file  # type: ignore[return-value]
        message = self.message
        return message._data_set_file if isinstance(message, C_STORE_RQ) else None  # type: ignore[return-value]

    @property
    def context_id(self) -> int | None:
        """The presentation context of the message that is coming."""
        if self._store is not None:
            return self._store._context_id
        return None if self.message is None else self.message.context_id

    def get_msg(self, block: bool = False) -> Any:
        """Return the next message that is no C-STORE, looking for it for a moment; those are served at once.

        Between two messages the reactor of an association sleeps for a millisecond, while its peer waits.
        """
        upper: Any = self.dul
        upper.attend()
        context_id, message = super().get_msg(block=False)
        while isinstance(message, C_STORE) and not self.assoc._kill:
            self.assoc._serve_request(message, context_id)  # type: ignore[arg-type]
            upper.attend()
            context_id, message = super().get_msg(block=False)
        return context_id, message

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take the fragments of a P-DATA one by one; what cannot be a message aborts the association."""
        try:
            for context_id, fragment in primitive.presentation_data_value_list:
                if not self._is_of_store(context_id, fragment):
                    single = P_DATA()
                    single.presentation_data_value_list.append((context_id, fragment))
                    super().receive_primitive(single)
                    self._bound()
        except Exception as fault:  # pynetdicom and pydicom raise nearly anything on broken bytes
            _log.warning(
                "association.aborted", peer=self.assoc.requestor.address, reason=type(fault).__name__
            )
            self.dul.event_queue.put("Evt19")

    def complete(self) -> None:
        """Take the data set in `file` as whole."""
        last = P_DATA()
        last.presentation_data_value_list.append((self.context_id, _LAST_FRAGMENT))  # type: ignore
        self.receive_primitive(last)

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Send a message; the usual response of a C-STORE fits into a PDU of any peer."""
        command_set = store_response(primitive) if isinstance(primitive, C_STORE) else None
        if command_set is None:
            super().send_msg(primitive, context_id)
            return
        response = P_DATA()
        response.presentation_data_value_list.append((context_id, _LAST_OF_COMMAND + command_set))
        self.dul.send_pdu(response)

    def discard(self) -> None:
        """Remove the files that no C-STORE handler took over."""
        for file in self._files:
            file.discard()

    def _is_of_store(self, context_id: int, fragment: bytes) -> bool:
        """Return whether a fragment is of a C-STORE in its usual form, and taken."""
        if self._store is None:
            if self.message is not None or fragment[:1] != _LAST_OF_COMMAND:
                return False
            self._store = store_request(fragment[1:], context_id)
            if self._store is not None:
                file = self._opened(self._store, context_id)
                self._store._dataset_file, self._store._dataset_path = file, file.path  # type: ignore[assignment]
            return self._store is not None
        if fragment[0] & 1 or context_id != self._store._context_id:
            raise Refused("a message within another one")
        self._store._dataset_file.write(fragment[1:])  # type: ignore[union-attr]
        if fragment[0] & 2:
            self.msg_queue.put((context_id, self._store))
            self._store = None
            self._bound()
        return True

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
        """Give the C-STORE that begins its file."""
        file = self._opened(message.command_set, message.context_id)
        message._data_set_file, message._data_set_path = file, file.path

    def _opened(self, command: Any, context_id: int) -> IncomingFile:
        """Return a file with the file meta information of what is to come."""
        context = next(item for item in self.assoc.accepted_contexts if item.context_id == context_id)
        self._files = [file for file in self._files if not file.closed]
        file = self._new_file()
        self._files.append(file)
        for keyword in ("AffectedSOPClassUID", "AffectedSOPInstanceUID"):
            try:
                checked_uid(getattr(command, keyword, None), keyword)
            except InvalidUID as fault:
                # pynetdicom would abort where the sender is owed 0117.
                file.refuse(fault)
                setattr(command, keyword, _NO_UID)
        meta = FileMeta(
            command.AffectedSOPClassUID, command.AffectedSOPInstanceUID, context.transfer_syntax[0]
        )
        sender = self.assoc.requestor.ae_title.strip()
        file.begin(
            written_file_meta(meta, PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION, sender),
            meta.transfer_syntax_uid,
        )
        return file
