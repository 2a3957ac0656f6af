"""Places where a test lets this process die, as a kill or a power cut between two steps would."""

import os


def failpoint(name: str) -> None:
    """End the process at once, without any clean-up, when ``HILUM_FAILPOINT`` has this name."""
    if os.environ.get("HILUM_FAILPOINT") == name:
        os._exit(137)
