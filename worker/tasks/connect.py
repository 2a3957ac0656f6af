"""The way to a destination that its URL names."""

from collections.abc import Iterable

from service.core.destination import Destination
from worker.context import Context
from worker.dicomweb import DICOMwebPeer
from worker.peer import Peer, Sendable
from worker.scu import DimsePeer


def connect(context: Context, destination: Destination, objects: Iterable[Sendable]) -> Peer:
    """Return a destination that is ready to take `objects`, and to be asked.

    Raises
    ------
    TransientDelivery
        When it cannot be reached.
    NotAccepted
        When it takes none of these objects.
    """
    if destination.is_dicomweb:
        return DICOMwebPeer(destination)
    return DimsePeer(destination, context.settings.ae_title, objects)
