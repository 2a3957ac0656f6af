"""What each role uses of the machine: processor seconds and memory."""

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_ROLES = {"listen": "listener", "api": "api", "scheduler": "scheduler", "up": "supervisor"}
_LOOK_SECONDS = 0.5


def cpu_seconds(gateway: psutil.Process) -> dict[str, float]:
    """Return what each role has used so far, ended children included."""
    used: dict[str, float] = defaultdict(float)
    for process, role in _roles(gateway):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            # Ended children of the supervisor are whole roles; nobody restarts any here.
            ended = 0.0 if role == "supervisor" else times.children_user + times.children_system
            used[role] += times.user + times.system + ended
    return used


@contextmanager
def peak_memory(gateway: psutil.Process) -> Iterator[dict[str, float]]:
    """Give the largest proportional set size of each role during the block, in megabytes (10^6 bytes)."""
    peak: dict[str, float] = {}
    over = threading.Event()

    def look() -> None:
        while True:
            now: dict[str, float] = defaultdict(float)
            for process, role in _roles(gateway):
                now[role] += _proportional_megabytes(process.pid)
            for role, size in now.items():
                peak[role] = max(size, peak.get(role, 0.0))
            if over.wait(_LOOK_SECONDS):
                return

    thread = threading.Thread(target=look, name="memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def _roles(gateway: psutil.Process) -> list[tuple[psutil.Process, str]]:
    found = [(gateway, "supervisor")]

    def walk(parent: psutil.Process, role: str) -> None:
        with suppress(psutil.NoSuchProcess):
            for child in parent.children():
                own = _role(child.cmdline()) or role
                found.append((child, own))
                walk(child, own)

    walk(gateway, "supervisor")
    return found


def _role(command_line: Sequence[str]) -> str | None:
    if command_line and "redis-server" in command_line[0]:
        return "redis"
    if "--queue" in command_line:
        return command_line[command_line.index("--queue") + 1]
    return next((_ROLES[word] for word in command_line[1:] if word in _ROLES), None)


def _proportional_megabytes(process_id: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{process_id}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0
