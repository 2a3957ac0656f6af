"""What the two doors, DIMSE and STOW-RS, have in common: a ledger, a data folder, a process of their own."""

import os
import signal
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from sqlalchemy import select

from service.core.ledger import Ledger
from service.core.settings import Settings, load
from service.core.spool import Spool
from service.core.tables import Instance
from tests.ledgers import migrated
from tests.servers import Gateway, eventually, executable


@dataclass
class Door:
    """A door in this process."""

    settings: Settings
    ledger: Ledger

    @property
    def incoming(self) -> list[Path]:
        return list((self.settings.data_dir / "incoming").iterdir())

    @property
    def spooled(self) -> list[Path]:
        return list((self.settings.data_dir / "spool").rglob("*.*"))

    def rows(self) -> list[Instance]:
        with self.ledger.read() as session:
            return list(session.scalars(select(Instance)))


@contextmanager
def ledger_for(folder: Path, **settings: Any) -> Iterator[tuple[Settings, Ledger]]:
    """Make a data folder below `folder` with a ledger; yield its settings and the ledger."""
    made = load(**{"data_dir": folder / "site" / "data", "min_free_bytes": 0, **settings})
    Spool(made.data_dir).make()
    migrated(made.sqlalchemy_url)
    ledger = Ledger(made.sqlalchemy_url)
    try:
        yield made, ledger
    finally:
        ledger.close()


class DoorProcess(Gateway):
    """One role with a door, so that it can be killed and measured; the ledger is made first."""

    def __init__(self, command: str, **settings: object) -> None:
        super().__init__(command=(command,), **{"min_free_bytes": 0, **settings})

    def start(self) -> Self:
        self.choose_ports()
        migrated(load(data_dir=self.data_dir, database_url=self.settings.get("database_url")).sqlalchemy_url)
        return super().start()

    @property
    def itself(self) -> psutil.Process:
        assert self.process is not None
        return psutil.Process(self.process.pid)

    @property
    def incoming(self) -> list[Path]:
        return list((self.data_dir / "incoming").iterdir())

    @property
    def spooled(self) -> list[Path]:
        return list((self.data_dir / "spool").rglob("*.*"))


@contextmanager
def disk(folder: Path, *options: str) -> Iterator[Path]:
    """Mount a file system of memory where the door of `folder` has its data; needs root, as CI has it."""
    data = folder / "site" / "data"
    data.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", *options, "tmpfs", str(data)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield data
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)


@contextmanager
def failing_fsync(*processes: psutil.Process) -> Iterator[None]:
    """Let every fsync of these processes fail with EIO; needs the right to trace, as root has in CI."""
    tracer = subprocess.Popen(
        [
            *(executable("strace", "strace"), "-f", "-qq", "-e", "trace=fsync"),
            *("-e", "inject=fsync:error=EIO", "-o", os.devnull),
            *("-p", ",".join(str(process.pid) for process in processes)),
        ],
        stderr=subprocess.PIPE,
    )
    try:
        threads = [Path(f"/proc/{process.pid}/task") for process in processes]
        traced = f"TracerPid:\t{tracer.pid}\n"
        eventually(
            lambda: (
                tracer.poll() is not None
                or all(
                    traced in (thread / "status").read_text() for task in threads for thread in task.iterdir()
                )
            )
        )
        if tracer.poll() is not None:
            pytest.skip("tracing another process is not allowed here")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=10)


class PlainPeer:
    """Who sends what it likes, when it likes, to a port of this machine."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.port = port
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, content: bytes) -> None:
        self.socket.sendall(content)

    def reset(self) -> None:
        """End the connection with an RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def seconds_open(self, limit: float) -> float:
        """Read whatever comes until the other side closes; return how long that took, `limit` at most."""
        began = time.monotonic()
        with suppress(OSError):
            while (left := began + limit - time.monotonic()) > 0:
                self.socket.settimeout(left)
                if not self.socket.recv(65536):
                    break
        return time.monotonic() - began
