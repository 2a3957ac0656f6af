"""Processes that wait for each other in line, as the kernel keeps it, each for a bounded time.

SQLite lets whoever finds it locked sleep and look again, up to 100 ms: with nine processes that write, who
comes at the wrong moments waits for seconds. Who waits for the lock of a file (flock) is woken when it is
free.
"""

import fcntl
import os
import threading
from pathlib import Path


class Line:
    """The line before one file; for one thread of a process at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def enter(self, seconds: float) -> bool:
        """Wait for the turn, so long at most; return whether it is ours.

        Where the file cannot be opened nobody waits: what is guarded says itself what is wrong.
        """
        try:
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # The kernel's wait has no end: a thread waits there, and is left behind when it takes too long.
            descriptor, self._descriptor = self._descriptor, -1
            waiting = _Waiting(descriptor)
            waiting.start()
            if not waiting.comes_within(seconds):
                return False
            self._descriptor = descriptor
        except OSError:
            pass
        return True

    def leave(self) -> None:
        """Let the next one in."""
        if self._descriptor >= 0:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _Waiting(threading.Thread):
    """Waits for the lock of a descriptor, which is closed when nobody waits for that any more."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(daemon=True)
        self._descriptor = descriptor
        self._came, self._is_left = threading.Event(), False
        self._either = threading.Lock()

    def run(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        with self._either:
            self._came.set()
            if self._is_left:
                os.close(self._descriptor)

    def comes_within(self, seconds: float) -> bool:
        came = False
        try:
            came = self._came.wait(seconds)
        finally:  # an interruption leaves it too
            with self._either:
                self._is_left = not came
                if self._is_left and self._came.is_set():
                    os.close(self._descriptor)
        return came
