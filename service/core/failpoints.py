"""Places where a test lets this process die, as a kill or a power cut between two steps would."""

import os
from pathlib import Path


def failpoint(name: str) -> None:
    """End the process at once, without any clean-up, when ``HILUM_FAILPOINT`` chooses this name.

    It is the name itself, or the path of a file that holds the name and is removed by the one process that
    dies of it, so that its successor lives.
    """
    chosen = os.environ.get("HILUM_FAILPOINT")
    if chosen and (chosen == name or (os.sep in chosen and _taken(Path(chosen), name))):
        os._exit(137)


def _taken(armed: Path, name: str) -> bool:
    try:
        if armed.read_text(encoding="utf-8") != name:
            return False
        armed.unlink()
    except FileNotFoundError:
        return False
    return True
