"""Places where a test lets this process die, as a kill or a power cut between two steps would."""

import os
from pathlib import Path

# Asked for again and again while an object comes: the environment itself would cost 3 % of receiving.
_CHOSEN = os.environ.get("HILUM_FAILPOINT", "")


def failpoint(name: str) -> None:
    """End the process at once, without any clean-up, when ``HILUM_FAILPOINT`` chose this name at its start.

    It is the name itself, or the path of a file that holds the name and is removed by the one process that
    dies of it, so that its successor lives.
    """
    if _CHOSEN and (name == _CHOSEN or (os.sep in _CHOSEN and _taken(Path(_CHOSEN), name))):
        os._exit(137)


def _taken(armed: Path, name: str) -> bool:
    try:
        if armed.read_text(encoding="utf-8") != name:
            return False
        armed.unlink()
    except FileNotFoundError:
        return False
    return True
