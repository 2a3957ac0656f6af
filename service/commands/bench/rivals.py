"""`--vs`: our listener beside other storage SCPs, which take the same films and make nothing of them.

dcmtk's storescu sends, Nagle's algorithm is off on all sides, and whoever takes films takes them after the
others in turn. Ours has each film on disk and in its ledger before it answers; ``storescp --fork`` syncs
nothing.
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydicom.misc import is_dicom
from rich.progress import Progress

from service.commands.bench import films
from service.commands.bench.films import Film
from service.commands.own_gateway import AE_TITLE, free_port
from service.commands.supervise import hilum_command
from service.core.errors import ConfigurationError

ASSOCIATIONS = (1, 4, 8)
NAMES = ("orthanc", "storescp")
_ROUNDS = 5
_START_SECONDS = 60.0
_SEND_SECONDS = 600.0
_NODELAY = {"TCP_NODELAY": "1"}


@dataclass(frozen=True)
class Taken:
    """What one receiver did with the films of one round."""

    films_a_second: float
    cpu_milliseconds: float


Found = dict[str, dict[int, list[Taken]]]
"""Of each receiver, by associations: one a round."""


@dataclass(frozen=True)
class _Receiver:
    """A storage SCP: how it is started in a folder at a port."""

    ae_title: str
    command: Callable[[Path, int], list[str]]
    environment: Callable[[Path, int], dict[str, str]]


def compare(names: Sequence[str], count: int, megabytes: float, progress: Progress) -> Found:
    """Let our listener and the named receivers take films, `_ROUNDS` times each.

    Raises
    ------
    ConfigurationError
        When one of them is not installed, or does not start.
    """
    storescu = _program("storescu", "dcmtk")
    receivers = {"hilum": _HILUM} | {name: _RIVALS[name] for name in names}
    found: Found = {name: defaultdict(list) for name in receivers}
    task = progress.add_task("beside others", total=_ROUNDS * len(ASSOCIATIONS) * len(receivers))
    with tempfile.TemporaryDirectory(prefix="hilum-bench-") as at, ExitStack() as running:
        folder, order = Path(at), list(receivers)
        started = {
            name: running.enter_context(_running(name, receiver, folder))
            for name, receiver in receivers.items()
        }
        for turn in range(-1, _ROUNDS):  # the first warms up
            order.append(order.pop(0))
            for associations in ASSOCIATIONS:
                for name in order:
                    process, port = started[name]
                    made = list(films.make(folder, count, megabytes))
                    held = _held(folder / name, made)
                    taken = _send(storescu, receivers[name].ae_title, port, process, made, associations)
                    if (more := _held(folder / name, made) - held) < count:
                        raise ConfigurationError(f"{name} answered for {count} films and kept {more} of them")
                    for film in made:
                        film.item.path.unlink()
                    if turn >= 0:
                        found[name][associations].append(taken)
                        progress.advance(task)
    return found


def median(taken: Sequence[Taken]) -> Taken:
    """Return the median of the rounds."""
    return Taken(
        statistics.median(item.films_a_second for item in taken),
        statistics.median(item.cpu_milliseconds for item in taken),
    )


def ratio(ours: Sequence[Taken], theirs: Sequence[Taken]) -> float:
    """Return the median of the rounds' ratios of films a second: each round saw the same machine."""
    return statistics.median(a.films_a_second / b.films_a_second for a, b in zip(ours, theirs, strict=True))


def _send(
    storescu: str, ae_title: str, port: int, process: psutil.Process, made: Sequence[Film], associations: int
) -> Taken:
    os.sync()  # nobody pays for what came before
    used, began = _cpu_seconds(process), time.monotonic()
    senders = [
        subprocess.Popen(  # noqa: S603
            [storescu, "-aec", ae_title, "127.0.0.1", str(port), *(str(film.item.path) for film in share)],
            env=os.environ | _NODELAY,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        for share in (made[number::associations] for number in range(associations))
        if share
    ]
    said = "".join(sender.communicate(timeout=_SEND_SECONDS)[1] for sender in senders)
    took = time.monotonic() - began
    # Where its peer goes away, dcmtk 3.6.7 ends with a chance number, 0 among them.
    if any(sender.returncode for sender in senders) or "Store Failed" in said:
        raise ConfigurationError(f"{ae_title} did not take every film: {said.strip() or 'storescu failed'}")
    time.sleep(0.2)  # the end of the associations is theirs too
    return Taken(len(made) / took, 1000 * (_cpu_seconds(process) - used) / len(made))


def _held(folder: Path, made: Sequence[Film]) -> int:
    """Return how many files of a receiver are such films."""
    least = 0.9 * made[0].item.path.stat().st_size
    files = (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size >= least)
    return sum(is_dicom(path) for path in files)


def _cpu_seconds(process: psutil.Process) -> float:
    """Return what a process and its children have used, those that ended too."""
    times = [process.cpu_times(), *(child.cpu_times() for child in process.children(recursive=True))]
    return sum(item.user + item.system + item.children_user + item.children_system for item in times)


@contextmanager
def _running(name: str, receiver: _Receiver, folder: Path) -> Iterator[tuple[psutil.Process, int]]:
    port = free_port()
    (folder / name).mkdir()
    log = folder / f"{name}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(  # noqa: S603
            receiver.command(folder / name, port),
            env=os.environ | receiver.environment(folder / name, port) | _NODELAY,
            cwd=folder / name,
            stdout=stream,
            stderr=stream,
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text("utf-8", "replace").splitlines() or ["it said nothing"]
                raise ConfigurationError(f"{name} did not start: {said[-1]}")
            time.sleep(0.1)
        yield psutil.Process(process.pid), port
    finally:
        process.terminate()
        process.wait(60)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _program(name: str, package: str) -> str:
    """Return the path of a program; pynetdicom's of the same names are not meant.

    Raises
    ------
    ConfigurationError
        When it is not installed.
    """
    ours = sysconfig.get_path("scripts")
    folders = [item for item in os.environ.get("PATH", "").split(os.pathsep) if item != ours]
    found = shutil.which(name, path=os.pathsep.join([*folders, "/usr/bin", "/usr/sbin"]))
    if found is None:
        raise ConfigurationError(f"--vs needs {name}: install {package}")
    return found


def _listen(folder: Path, port: int) -> list[str]:
    environment = os.environ | _ours(folder, port)
    subprocess.run(hilum_command("migrate"), env=environment, cwd=folder, check=True, capture_output=True)  # noqa: S603
    return hilum_command("listen")


def _ours(folder: Path, port: int) -> dict[str, str]:
    return {
        "HILUM_DATA_DIR": str(folder / "data"),
        "HILUM_AE_TITLE": AE_TITLE,
        "HILUM_DIMSE_PORT": str(port),
        "HILUM_CONFIG": "",
        "HILUM_DATABASE_URL": "",
    }


def _orthanc(folder: Path, port: int) -> list[str]:
    configuration = folder / "orthanc.json"
    configuration.write_text(
        json.dumps(
            {
                "StorageDirectory": str(folder / "storage"),
                "IndexDirectory": str(folder / "storage"),
                "DicomAet": "ORTHANC",
                "DicomPort": port,
                "DicomAlwaysAllowStore": True,
                "HttpServerEnabled": False,
                "Plugins": [],
            }
        ),
        encoding="ascii",
    )
    return [_program("Orthanc", "orthanc"), str(configuration)]


def _storescp(folder: Path, port: int) -> list[str]:
    options = ["--fork", "+B", "-pdu", "131072", "-aet", "STORESCP", "-od", str(folder)]
    return [_program("storescp", "dcmtk"), *options, str(port)]


def _nothing(_: Path, __: int) -> dict[str, str]:
    return {}


_HILUM = _Receiver(AE_TITLE, _listen, _ours)
_RIVALS = {
    "orthanc": _Receiver("ORTHANC", _orthanc, _nothing),
    "storescp": _Receiver("STORESCP", _storescp, _nothing),
}
