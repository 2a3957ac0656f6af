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
            waiting = _Waiting(self._descriptor)
            waiting.start()
            if not waiting.comes_within(seconds):
                self._descriptor = -1  # it is that thread's now
                return False
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
    """Waits for a lock; one that nobody waits for any more is released as it comes."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(daemon=True)
        self._descriptor = descriptor
        self._came, self._is_left = threading.Event(), False
        self._either = threading.Lock()

    def run(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        with self._either:
            if self._is_left:
                os.close(self._descriptor)
            self._came.set()

    def comes_within(self, seconds: float) -> bool:
        self._came.wait(seconds)
        with self._either:
            self._is_left = not self._came.is_set()
            return not self._is_left
