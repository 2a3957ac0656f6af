"""A listener with its ledger and data folder, in this process or as a process of its own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from service.core.spool import Spool
from service.listener.limits import Bounds
from service.listener.scp import Listener
from tests.faults.door import Door, DoorProcess, ledger_for
from tests.faults.peers import Peer
from tests.servers import eventually, free_port

SHORT = Bounds(handshake=1, negotiation=1, pdu=1, idle=2, association=60, closing=0.5)


@dataclass
class Site(Door):
    """A listener in this process."""

    listener: Listener

    @property
    def port(self) -> int:
        assert self.settings.dimse_port is not None
        return self.settings.dimse_port

    @property
    def tls_port(self) -> int:
        assert self.settings.dimse_tls_port is not None
        return self.settings.dimse_tls_port

    def peer(self) -> Peer:
        """Return a peer with an association."""
        peer = Peer(self.port)
        assert peer.associate()[0] == 0x02
        return peer

    def settle(self, threads: set[threading.Thread], deadline: float = 10) -> None:
        """Wait until nothing of a connection is left but what was there before: no thread, no file."""
        eventually(
            lambda: not (set(threading.enumerate()) - threads) and not self.incoming,
            deadline,
            f"only the threads and files of before (new: {set(threading.enumerate()) - threads})",
        )


@contextmanager
def site(folder: Path, bounds: Bounds = SHORT, **settings: Any) -> Iterator[Site]:
    """Run a listener with short bounds on a data folder below `folder`."""
    with ledger_for(folder, **{"dimse_port": free_port(), **settings}) as (made, ledger):
        listener = Listener(made, Spool(made.data_dir), ledger, bounds)
        listener.start()
        try:
            yield Site(made, ledger, listener)
        finally:
            listener.stop()


class ListenerProcess(DoorProcess):
    """`hilum listen`."""

    name = "listener"

    def __init__(self, **settings: object) -> None:
        super().__init__("listen", **settings)

    @property
    def serving(self) -> list[psutil.Process]:
        """The processes that serve associations: its children, or itself where it is the only one."""
        return self.itself.children() or [self.itself]

    def ready(self) -> bool:
        try:
            with Peer(self.dimse_port) as peer:
                return peer.associate()[0] == 0x02
        except OSError:
            return False
