"""How a command ends: when a signal asks for it; what it raises becomes a line on stderr and an exit code."""

import signal
import sys
import time
from collections.abc import Callable

from service.core.errors import CONFIGURATION_EXIT_CODE, HilumError

# What these raise is about files, servers and weights, and says so in its first line. Weights are the site's
# choice, like a setting (2); a file or a server may be there the next time (1).
_EXIT_CODES = {"sqlalchemy": 1, "redis": 1, "model": CONFIGURATION_EXIT_CODE}


def ended(command: Callable[[], object]) -> int:
    """Run a command to its end; return its exit code.

    What is neither Hilum's own nor about files and servers leaves as it is.
    """
    try:
        command()
    except HilumError as fault:
        for line in str(fault).splitlines():
            sys.stderr.write(f"hilum: {line}\n")
        return CONFIGURATION_EXIT_CODE
    except Exception as fault:
        origin = type(fault).__module__.split(".")[0]
        if not (isinstance(fault, OSError) or origin in _EXIT_CODES):
            raise
        sys.stderr.write(f"hilum: {str(fault).splitlines()[0]}\n")
        return _EXIT_CODES.get(origin, 1)
    return 0


class Termination:
    """SIGTERM or SIGINT, for the main thread to look for.

    A plain attribute tells of it: the lock of an Event may be held by the very thread that the signal
    interrupts, and that would wait for itself for ever.
    """

    def __init__(self) -> None:
        self._came = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._come)

    def comes_within(self, seconds: float) -> bool:
        """Return whether it came, looking again so many seconds later.

        A signal that comes to another thread, or just before this one sleeps, does not wake it.
        """
        if not self._came:
            time.sleep(seconds)
        return self._came

    def _come(self, *_: object) -> None:
        self._came = True
