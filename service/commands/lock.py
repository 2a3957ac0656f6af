"""One `hilum up` a data folder: a lock that lives as long as any of its processes."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import structlog

from service.core.errors import ConfigurationError

# Longer than the children of a killed `hilum up` may drain.
_DRAIN_SECONDS = 60.0
_log = structlog.get_logger()


@contextmanager
def data_folder_locked(data_dir: Path) -> Iterator[int]:
    """Hold the data folder; the block gets the descriptor that its children must inherit.

    A child has the lock as well, so what a killed `hilum up` left running is waited for: two Redis servers on
    one folder would remove each other's socket.

    Raises
    ------
    ConfigurationError
        When another `hilum up` runs there, or the processes of an earlier one do not end.
    """
    descriptor = os.open(data_dir / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + _DRAIN_SECONDS
        waited = False
        while not _locked(descriptor):
            if _alive(descriptor):
                raise ConfigurationError(f"another `hilum up` runs in {data_dir}")
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"processes of a `hilum up` that was killed still run in {data_dir}: end them first"
                )
            if not waited:
                _log.info(
                    "up.waiting", hint="the processes of a `hilum up` that was killed have to end first"
                )
            waited = True
            time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _alive(descriptor: int) -> bool:
    """Return whether the `hilum up` that took the lock still runs; what names no process may be another."""
    said = os.pread(descriptor, 20, 0)
    return not said.isdigit() or psutil.pid_exists(int(said))
