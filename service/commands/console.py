"""Where tables are printed: as wide as the terminal, and wide enough where there is none."""

import sys

from rich.console import Console

_PIPED_WIDTH = 160


def console() -> Console:
    """Return a console on standard output."""
    return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)
