"""An association as requestor, every wait of which has a bound."""

import queue
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE

from service.core import tls
from service.core.destination import Destination
from service.core.errors import NotAccepted, TransientDelivery

NOT_ACCEPTED = "the destination does not accept this SOP class in our transfer syntax"
_DIMSE_SECONDS = 60
_CONNECTION_SECONDS = 10


def requestor(ae_title: str) -> AE:
    """Return an AE whose every wait has a bound."""
    entity = AE(ae_title)
    entity.acse_timeout, entity.dimse_timeout, entity.network_timeout = 10, _DIMSE_SECONDS, 60
    entity.connection_timeout = _CONNECTION_SECONDS
    return entity


def associate(
    destination: Destination, entity: AE, handlers: Iterable[Any] = (), roles: Iterable[Any] = ()
) -> Association:
    """Return an association with a destination, for the contexts that `entity` requests.

    Parameters
    ----------
    handlers
        Pairs of event and handler, as pynetdicom takes them.
    roles
        SCP/SCU role selection items (PS3.7 D.3.3.4).

    Raises
    ------
    TransientDelivery
        When none comes about, or a file of its TLS can't be used.
    NotAccepted
        When the destination accepts none of the contexts.
    """
    called, host, port = destination.ae_title, destination.host, destination.port
    context = _tls_context(destination)
    association = entity.associate(
        host,
        port,
        ae_title=called,
        ext_neg=list(roles),
        evt_handlers=[(evt.EVT_CONN_OPEN, _prepare), *handlers],
        tls_args=None if context is None else (context, host),
    )
    if association.is_established:
        return association
    if context is not None and context.fault is not None:
        raise TransientDelivery(f"{called} at {host}:{port}: {tls.reason(context.fault)}")
    if (rejection := _rejection(association)) is not None:
        raise TransientDelivery(f"{called} rejected the association ({rejection.reason_str})")
    if association.rejected_contexts and not association.accepted_contexts:
        raise NotAccepted(NOT_ACCEPTED)
    raise TransientDelivery(f"{called} at {host}:{port} cannot be reached")


def _rejection(association: Association) -> Any:
    """Return the A-ASSOCIATE-RJ as a primitive, None when there was none.

    When it comes and the connection is closed before pynetdicom 3.0.4 looks whether there is a connection,
    that takes the destination for one that cannot be reached, and leaves what it answered in the queue.
    """
    if association.is_rejected:
        return association.acceptor.primitive
    with suppress(queue.Empty):
        left: Any = association.dul.to_user_queue.get_nowait()
        if isinstance(left, A_ASSOCIATE) and left.result:
            return left
    return None


def _tls_context(destination: Destination) -> tls.ClientContext | None:
    """Return a context from the files as they are now."""
    if not destination.is_tls:
        return None
    try:
        return tls.client_context(destination.tls or tls.TLSFiles())
    except ValueError as fault:
        raise TransientDelivery(f"destination {destination.name}: {fault}") from None


def _prepare(event: Event) -> None:
    """Make a new association fast and safe, before it is negotiated."""
    # Small objects wait 40 ms each under Nagle's algorithm: ten times the throughput without it.
    association: Any = event.assoc
    association.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    association._reactor_checkpoint = Checkpoint(association)


class Checkpoint:
    """The event at which an association's reactor is stopped while somebody else waits for an answer.

    With pynetdicom 3.0.4's own one the reactor may be past it already when it is cleared; it then takes the
    answer from the queue, drops it, and who waits for it gives up after a minute. Here `clear` returns when
    the reactor has stopped.
    """

    def __init__(self, association: Association) -> None:
        self._association = association
        self._condition = threading.Condition()
        self._is_set, self._is_waited_at = True, False

    def set(self) -> None:
        """Let the reactor go on."""
        with self._condition:
            self._is_set = True
            self._condition.notify_all()

    def clear(self) -> None:
        """Stop the reactor; one that has ended, or asks for it itself, is not waited for."""
        with self._condition:
            self._is_set = False
            while not self._is_waited_at and self._is_running_elsewhere():
                self._condition.wait(0.05)

    def wait(self) -> None:
        """Be stopped here while the event is not set."""
        with self._condition:
            self._is_waited_at = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._is_set)
            self._is_waited_at = False

    def _is_running_elsewhere(self) -> bool:
        return self._association.is_alive() and threading.current_thread() is not self._association
