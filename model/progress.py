"""A progress bar on standard error, for what takes longer than two seconds."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Bar:
    """Draws itself on a terminal; elsewhere it writes nothing but what `line` is given."""

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self._title, self._stream = title, stream or sys.stderr
        self._started = time.monotonic()
        self._drawn = 0.0
        self._wide = 0

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show `done` of `total`; safe to call for every item."""
        now = time.monotonic()
        if (
            not self._stream.isatty()
            or now - self._started < 2.0
            or (now - self._drawn < 0.1 and done < total)
        ):
            return
        self._drawn = now
        filled = 30 * done // max(total, 1)
        text = f"{self._title} [{'#' * filled}{'.' * (30 - filled)}] {done}/{total} {note}"
        self._stream.write("\r" + text.ljust(self._wide))
        self._stream.flush()
        self._wide = len(text)

    def line(self, text: str) -> None:
        """Write a line that stays, in place of the bar."""
        self._stream.write(("\r" + " " * self._wide + "\r" if self._wide else "") + text + "\n")
        self._stream.flush()
        self._wide = 0

    def close(self) -> None:
        """Leave the bar and go to the next line."""
        if self._wide:
            self._stream.write("\n")
            self._wide = 0
