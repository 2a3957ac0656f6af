"""Which GPU a process computes on, where there are several."""

import fcntl
import os
from itertools import count
from pathlib import Path

import structlog
import torch

_FOLDER = "gpus"
_log = structlog.get_logger()


def own_gpu(data_dir: Path) -> str | None:
    """Return the GPU that fewest workers on this data folder compute on, "cuda:N"; None where there is none.

    A worker locks a file named after the GPU for as long as it lives, so that workers share out the GPUs
    they see, in containers too, and the one that comes in a dead one's place gets its GPU. Where the file
    system knows no locks it is the first one.
    """
    if not torch.cuda.is_available():  # too old a driver is none
        return None
    # Before this, GPUs are counted that cannot be used (MIG).
    torch.cuda.init()  # type: ignore[no-untyped-call]
    gpus = [str(torch.cuda.get_device_properties(number).uuid) for number in range(torch.cuda.device_count())]
    if len(gpus) == 1:
        return "cuda:0"
    try:
        return f"cuda:{_first_free(data_dir / _FOLDER, gpus)}"
    except OSError as fault:
        _log.warning("infer.gpus_not_shared", error=type(fault).__name__, gpu=0)
        return "cuda:0"


def _first_free(folder: Path, gpus: list[str]) -> int:
    """Lock a place of one of the GPUs, which stays locked, and return its number."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for place in count():
        for number, gpu in enumerate(gpus):
            descriptor = os.open(folder / f"{gpu}.{place}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
            else:
                return number
    raise AssertionError("there are places without end")
