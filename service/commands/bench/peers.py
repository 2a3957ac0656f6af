"""Both ends of the benchmark, each in processes of its own: routers that push, and the PACS that takes."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.events import Event

from service.commands.bench.films import Film
from service.core.destination import Destination
from service.core.errors import DeliveryError
from worker.peer import Sent
from worker.scu import DimsePeer

_REPORTS = (Comprehensive3DSRStorage, ComprehensiveSRStorage, BasicTextSRStorage)
_TAKEN = (
    *_REPORTS,
    SecondaryCaptureImageStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    EncapsulatedPDFStorage,
)
# Spawned: a fork would take along what the command has opened.
_processes = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Pushed:
    """When a film was sent and answered, in seconds since the epoch; `fault` when it was not accepted."""

    film: Film
    began: float
    answered: float
    fault: str = ""


class Routers:
    """Storage SCUs, a process an association."""

    def __init__(self, associations: int) -> None:
        self._pool = ProcessPoolExecutor(associations, mp_context=_processes)
        self._associations = associations
        self.cpu_seconds = 0.0
        list(self._pool.map(_begun, range(associations)))

    def push(self, url: str, films: Sequence[Film]) -> list[Pushed]:
        """Send the films at once over all associations, and return when the last one is answered."""
        shares = [films[number :: self._associations] for number in range(self._associations)]
        done = list(self._pool.map(_push, [url] * len(shares), [share for share in shares if share]))
        self.cpu_seconds += sum(used for _, used in done)
        return [item for pushed, _ in done for item in pushed]

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown()


def _begun(_: int) -> int:
    return os.getpid()


def _push(url: str, films: Sequence[Film]) -> tuple[list[Pushed], float]:
    used = time.process_time()
    destination, pushed = Destination(name="gateway", url=url), []
    try:
        with DimsePeer(destination, "ROUTER", [films[0].item], asks=False) as peer:
            for film in films:
                began = time.time()
                sent = peer.store(film.item)
                pushed.append(Pushed(film, began, time.time(), _fault(sent)))
    except DeliveryError as fault:
        pushed += [Pushed(film, time.time(), time.time(), str(fault)) for film in films[len(pushed) :]]
    return pushed, time.process_time() - used


def _fault(sent: Sent) -> str:
    if sent.status == 0x0000:
        return ""
    return str(sent.fault) if sent.status is None else f"answered {sent.status:04X}"


class Pacs:
    """A storage SCP that keeps nothing but when each object came."""

    def __init__(self, port: int, asked: Connection) -> None:
        self.port = port
        self._asked = asked

    def reports(self) -> dict[str, float]:
        """Return when each structured report came (seconds since the epoch), by SOP Instance UID."""
        found: dict[str, float] = self._ask("reports")
        return found

    def count(self) -> int:
        """Return how many structured reports have come."""
        return int(self._ask("count"))

    def cpu_seconds(self) -> float:
        """Return what it has used of a processor."""
        return float(self._ask("cpu_seconds"))

    def _ask(self, what: str) -> Any:
        self._asked.send(what)
        return self._asked.recv()


@contextmanager
def pacs() -> Iterator[Pacs]:
    """Run a PACS on a free port of this machine until the block ends."""
    ours, theirs = _processes.Pipe()
    process = _processes.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield Pacs(ours.recv(), ours)
    finally:
        process.terminate()
        process.join(10)


def _serve(asked: Connection) -> None:
    came: dict[str, float] = {}

    def store(event: Event) -> int:
        request: Any = event.request
        if request.AffectedSOPClassUID in _REPORTS:
            came[str(request.AffectedSOPInstanceUID)] = time.time()
        return 0x0000

    entity = AE("PACS")
    for sop_class in _TAKEN:
        entity.add_supported_context(sop_class, [ExplicitVRLittleEndian, JPEGBaseline8Bit])
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    assert server is not None, "a server that does not block is returned"
    asked.send(server.server_address[1])
    answers: dict[str, Callable[[], object]] = {
        "reports": came.copy,
        "count": came.__len__,
        "cpu_seconds": time.process_time,
    }
    while True:
        asked.send(answers[asked.recv()]())
