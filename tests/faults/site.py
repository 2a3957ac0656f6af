"""A listener with its ledger and data folder, in this process or as a process of its own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
from sqlalchemy import select

from service.core.ledger import Ledger, migrate
from service.core.settings import Settings, load
from service.core.spool import Spool
from service.core.tables import Instance
from service.listener.limits import Bounds
from service.listener.scp import Listener
from tests.faults.peers import Peer
from tests.servers import Gateway, eventually, free_port

SHORT = Bounds(handshake=1, negotiation=1, pdu=1, idle=2, association=60, closing=0.5)


@dataclass
class Site:
    """A listener in this process."""

    settings: Settings
    ledger: Ledger
    listener: Listener

    @property
    def port(self) -> int:
        assert self.settings.dimse_port is not None
        return self.settings.dimse_port

    @property
    def tls_port(self) -> int:
        assert self.settings.dimse_tls_port is not None
        return self.settings.dimse_tls_port

    @property
    def incoming(self) -> list[Path]:
        return list((self.settings.data_dir / "incoming").iterdir())

    def rows(self) -> list[Instance]:
        with self.ledger.read() as session:
            return list(session.scalars(select(Instance)))

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
    given = {"data_dir": folder / "site" / "data", "min_free_bytes": 0, **settings}
    made = load(**{"dimse_port": free_port(), **given})
    spool = Spool(made.data_dir)
    spool.make()
    migrate(made.sqlalchemy_url)
    ledger = Ledger(made.sqlalchemy_url)
    listener = Listener(made, spool, ledger, bounds)
    listener.start()
    try:
        yield Site(made, ledger, listener)
    finally:
        listener.stop()
        ledger.close()


class ListenerProcess(Gateway):
    """`hilum listen`, so that it can be killed and measured; the ledger is made first."""

    name = "listener"

    def __init__(self, **settings: object) -> None:
        super().__init__(command=("listen",), **{"min_free_bytes": 0, **settings})

    def start(self) -> Self:
        self.choose_ports()
        made = self.run("migrate")
        assert made.returncode == 0, made.stderr
        return super().start()

    def ready(self) -> bool:
        try:
            with Peer(self.dimse_port) as peer:
                return peer.associate()[0] == 0x02
        except OSError:
            return False

    @property
    def itself(self) -> psutil.Process:
        assert self.process is not None
        return psutil.Process(self.process.pid)

    @property
    def incoming(self) -> list[Path]:
        return list((self.data_dir / "incoming").iterdir())
