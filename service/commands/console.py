"""Where tables are printed, and who reads them."""

import getpass
import sys

from rich.console import Console

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
