"""The file that HILUM_CONFIG names, taken up while everything runs.

Rules and destinations count as they were saved last, a few seconds afterwards and in every process; all other
settings count from the start of a process. A file with a fault changes nothing.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from service.core.errors import ConfigurationError
from service.core.settings import Settings, load

LOOK_SECONDS = 1.0
# What the file names (certificates, credentials) may be put right without touching it.
_AGAIN_SECONDS = 10.0
Signature = tuple[int, int, int]
_log = structlog.get_logger()


class Live:
    """The settings of this process, with rules and destinations as they are now.

    Replaced as a whole: who needs them to stay the same takes `settings` once. No lock is held over a fork.

    Attributes
    ----------
    settings
        What counts.
    fault
        What is wrong with the file as it was saved last; empty when that counts.
    digest
        SHA-256 of the file that counts, in hexadecimal; empty before it was first looked at, and without one.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.fault = ""
        self.digest = ""
        self._changed: list[Callable[[Settings], None]] = []
        self._seen: Signature | None = None
        self._taken: Signature | None = None
        self._again = 0.0

    def on_change(self, do: Callable[[Settings], None]) -> None:
        """Call `do` after each change, in the thread that looks."""
        self._changed.append(do)

    def start(self, every: float = LOOK_SECONDS) -> None:
        """Look again and again from a thread, as long as the process lives."""
        if self.settings.config is None:
            return

        def run() -> None:
            while True:
                time.sleep(every)
                try:
                    self.look()
                except Exception:
                    _log.exception("config.failed")

        threading.Thread(target=run, name="config", daemon=True).start()

    def look(self) -> None:
        """Take the file up if it was saved, and has rested since the last look: nobody writes it any more."""
        path = self.settings.config
        if path is None:
            return
        seen, before = _signature(path), self._seen
        self._seen = seen
        overdue = bool(self.fault) and time.monotonic() >= self._again
        if seen == before and (seen != self._taken or overdue):
            self._take(path, seen)

    def _take(self, path: Path, seen: Signature | None) -> None:
        self._again = time.monotonic() + _AGAIN_SECONDS
        try:
            digest = digest_of(path)
            fresh = load(config=path)
        except ConfigurationError as fault:
            if self._taken != seen or str(fault) != self.fault:
                _log.error("config.refused", path=str(path), faults=str(fault).splitlines())
            self.fault, self._taken = str(fault), seen
            return
        if _signature(path) != seen:
            return  # saved again meanwhile
        self.fault, self._taken = "", seen
        if digest == self.digest:
            return
        first, self.digest = not self.digest, digest
        changed = {"destinations": fresh.destinations, "rules": fresh.rules}
        others = {"peers": fresh.peers, "notices": fresh.notices}
        if kept := [name for name, value in others.items() if getattr(self.settings, name) != value]:
            _log.warning("config.restart_needed", hint=f"{', '.join(kept)} count from the start of a role")
        if first and all(getattr(self.settings, name) == value for name, value in changed.items()):
            return
        self.settings = self.settings.model_copy(update=changed)
        _log.info(
            "config.taken",
            sha256=digest,
            rules=len(fresh.rules),
            destinations=[item.name for item in fresh.destinations],
        )
        for do in self._changed:
            do(self.settings)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of the file.

    Raises
    ------
    ConfigurationError
        When it can't be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as fault:
        raise ConfigurationError(f"HILUM_CONFIG: {path} can't be read ({fault.strerror})") from None


def _signature(path: Path) -> Signature | None:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
