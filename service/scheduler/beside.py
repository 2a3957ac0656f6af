"""Work beside the scheduler's ticks, which it must not hold up: one thread at a time, again and again."""

import threading
import time
from collections.abc import Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

_AGAIN_SECONDS = 60.0
_log = structlog.get_logger()


class Beside:
    """Runs `work` every `seconds`; what keeps it from being done now is tried again after a minute."""

    def __init__(self, name: str, work: Callable[[], object], seconds: float) -> None:
        self._name = name
        self._work = work
        self._seconds = seconds
        self._next = 0.0
        self._thread: threading.Thread | None = None

    def tick(self, moment: float) -> None:
        """Begin when it is time and the last one is done."""
        if moment >= self._next and (self._thread is None or not self._thread.is_alive()):
            self._next = moment + self._seconds
            self._thread = threading.Thread(target=self._run, name=self._name)
            self._thread.start()

    def join(self) -> None:
        """Wait for what runs."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        except (SQLAlchemyError, OSError) as fault:
            _log.warning(f"{self._name}.broken_off", error=type(fault).__name__)
            self._next = time.monotonic() + min(self._seconds, _AGAIN_SECONDS)
        except Exception:
            _log.exception(f"{self._name}.failed")
