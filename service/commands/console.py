"""Where tables and reports go, and who reads them."""

import getpass
import sys
from pathlib import Path

from rich.console import Console

from service.core.errors import ConfigurationError

_PIPED_WIDTH = 160


def console() -> Console:
    """Return a console on standard output: as wide as the terminal, and wide enough where there is none."""
    return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)


def user() -> str:
    """Return who runs this command."""
    try:
        return getpass.getuser()[:64]
    except (KeyError, OSError):  # a container's user has no name
        return "unknown"


def write(path: Path, content: str) -> None:
    """Write a report; an older one under this name is replaced.

    Raises
    ------
    ConfigurationError
        When it cannot be written there.
    """
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as fault:
        raise ConfigurationError(f"{path} cannot be written: {fault.strerror}") from None
    sys.stderr.write(f"written to {path}\n")
