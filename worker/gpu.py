"""Which GPU a process computes on, where there are several."""

import fcntl
import os
from functools import cache
from itertools import count
from pathlib import Path

import torch

FOLDER = "gpus"


@cache
def own_gpu(data_dir: Path) -> str | None:
    """Return the GPU that fewest workers on this data folder compute on, "cuda:N"; None where there is none.

    A worker locks a file named after the GPU for as long as it lives, so that workers share out the GPUs
    they see, in containers too, and the one that comes in a dead one's place gets its GPU.
    """
    gpus = [str(torch.cuda.get_device_properties(number).uuid) for number in range(torch.cuda.device_count())]
    if not gpus:
        return None
    folder = data_dir / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    for place in count():
        for number, gpu in enumerate(gpus):
            descriptor = os.open(folder / f"{gpu}.{place}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
            else:
                return f"cuda:{number}"  # the descriptor stays open, and with it the lock
    raise AssertionError("there are places without end")
