"""Images a second, CPU and memory of our listener beside Orthanc and dcmtk's storescp.

    python -m tests.benchmarks.receive [--rounds 5] [--films 24] [--small 96] [--large 1] [--only hilum,…]

The listener as it ships: each object is on disk and in the ledger before its success. Orthanc, and `storescp
--fork +B -pdu 131072`, which syncs nothing. dcmtk's storescu sends, TCP_NODELAY is set on all sides. Every
object is new, and a study of its own. In each round all receivers get the same, one after the other, in an
order that turns; medians of the rounds. CPU and memory (PSS) are of the receiver with all its children;
memory is looked at in one more round, which is not timed: looking through 200 MB of pages takes a tenth of a
processor, and stops who wants to change them.
"""

import argparse
import hashlib
import itertools
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from pynetdicom import AllStoragePresentationContexts

from tests import factories
from tests.faults import peers
from tests.faults.site import ListenerProcess
from tests.servers import Orthanc, Server

ASSOCIATIONS = (1, 4, 8)
_NODELAY = {"TCP_NODELAY": "1"}
_UID = "1.2.826.0.1.3680043.10.1511.{:020d}.{}"
_numbers = itertools.count(10**19)


class Hilum(ListenerProcess):
    """Our listener; without a scheduler nothing else works on what it took."""

    called = "HILUM"

    @property
    def at(self) -> int:
        return self.dimse_port

    def clear(self) -> None:
        for path in self.spooled:
            path.unlink()


class TunedOrthanc(Orthanc):
    """Orthanc with Nagle's algorithm off."""

    called = "ORTHANC"

    def environment(self) -> dict[str, str]:
        return super().environment() | _NODELAY

    @property
    def at(self) -> int:
        return self.dicom_port

    def clear(self) -> None:
        held = {"Resources": httpx.get(f"{self.http_url}/patients", timeout=60).json()}
        httpx.post(f"{self.http_url}/tools/bulk-delete", json=held, timeout=60).raise_for_status()


class TunedStoreScp(Server):
    """dcmtk's storescp, a process an association, which writes what comes as it comes."""

    name = "storescp"
    called = "STORESCP"

    def command(self) -> list[str]:
        received = self.folder / "received"
        received.mkdir(exist_ok=True)
        options = ["--fork", "+B", "-pdu", "131072", "-aet", self.called, "-od", str(received)]
        return ["/usr/bin/storescp", *options, str(self.port)]

    def environment(self) -> dict[str, str]:
        return super().environment() | _NODELAY

    def ready(self) -> bool:
        with suppress(OSError), peers.Peer(self.port) as peer:
            return peer.associate(called=self.called)[0] == peers.ASSOCIATE_AC
        return False

    @property
    def at(self) -> int:
        return self.port

    def clear(self) -> None:
        for path in (self.folder / "received").iterdir():
            path.unlink()


Receiver = Hilum | TunedOrthanc | TunedStoreScp
RECEIVERS: dict[str, Callable[[], Receiver]] = {
    "hilum": Hilum,
    "orthanc": TunedOrthanc,
    "storescp": TunedStoreScp,
}


class Corpus:
    """Films of one size; `renew` makes new objects of them."""

    def __init__(self, folder: Path, name: str, rows: int, columns: int, count: int) -> None:
        self.name = name
        film = factories.phantom_chest(rows=rows, columns=columns)
        placeholders = [_UID.format(10**20 - 1, part).encode() for part in (1, 2, 3)]
        film.StudyInstanceUID, film.SeriesInstanceUID, film.SOPInstanceUID = (
            item.decode() for item in placeholders
        )
        content = factories.write(film, folder / name).read_bytes()
        shutil.rmtree(folder / name)
        # Of the number alone: the UIDs keep their lengths.
        inside = placeholders[0].index(b"9" * 20)
        self._places = [place + inside for item in placeholders for place in _places(content, item)]
        self.megabytes = len(content) / 1e6
        self.files = [folder / f"{name}-{number}.dcm" for number in range(count)]
        for file in self.files:
            file.write_bytes(content)

    def renew(self) -> None:
        for file in self.files:
            number = f"{next(_numbers):020d}".encode()
            with file.open("r+b") as stream:
                for place in self._places:
                    os.pwrite(stream.fileno(), number, place)


def _places(content: bytes, part: bytes) -> Iterator[int]:
    place = content.find(part)
    while place >= 0:
        yield place
        place = content.find(part, place + 1)


class Peak:
    """The largest PSS of a process and its children, in MB, looked at ten times a second."""

    def __init__(self, process: psutil.Process) -> None:
        self.megabytes = 0.0
        self._process = process
        self._over = threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.megabytes = max(self.megabytes, sum(_pss(item) for item in _tree(self._process)))


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _pss(process: psutil.Process) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1e3
    return 0.0


def cpu_seconds(process: psutil.Process) -> float:
    """Return what a process and its children have used, those that ended too."""
    used = process.cpu_times()
    total: float = used.children_user + used.children_system
    for item in _tree(process):
        with suppress(psutil.NoSuchProcess):
            times = item.cpu_times()
            total += times.user + times.system
    return total


def process_of(receiver: Receiver) -> psutil.Process:
    assert receiver.process is not None
    return psutil.Process(receiver.process.pid)


def send(receiver: Receiver, corpus: Corpus, associations: int, profile: Path) -> tuple[float, float]:
    """Return images a second and milliseconds of CPU an image."""
    corpus.renew()
    os.sync()  # nobody pays for what came before
    process = process_of(receiver)
    before = cpu_seconds(process)
    began = time.monotonic()
    senders = [
        subprocess.Popen(
            [
                *("/usr/bin/storescu", "-aec", receiver.called, "-xf", str(profile), "Default"),
                *("127.0.0.1", str(receiver.at), *map(str, corpus.files[number::associations])),
            ],
            env={**os.environ, **_NODELAY},
        )
        for number in range(min(associations, len(corpus.files)))
    ]
    codes = [sender.wait(300) for sender in senders]
    took = time.monotonic() - began
    assert not any(codes), f"{receiver.called}: {codes}\n{receiver.log()[-2000:]}"
    time.sleep(0.2)  # the end of associations is theirs too
    used = cpu_seconds(process) - before
    receiver.clear()
    return len(corpus.files) / took, 1000 * used / len(corpus.files)


def set_up(receiver: Receiver, count: int, contexts: int) -> float:
    """Return milliseconds of CPU of an association that is opened and released."""
    classes = dict.fromkeys(str(item.abstract_syntax) for item in AllStoragePresentationContexts)
    proposed = [str(peers.DX), *(item for item in classes if item != peers.DX)][:contexts]
    process = process_of(receiver)
    time.sleep(1.5)
    before = cpu_seconds(process)
    for _ in range(count):
        with peers.Peer(receiver.at) as peer:
            peer.send(_request(receiver.called, proposed))
            assert peer.answer() == peers.ASSOCIATE_AC
            peer.release()
    time.sleep(0.2)
    return 1000 * (cpu_seconds(process) - before) / count


def yardstick() -> float:
    """Return milliseconds of CPU for SHA-256 over 10 MB: what a busy machine makes of 7.4 on a quiet one."""
    content = bytes(10_240_000)
    before = time.thread_time()
    hashlib.sha256(content).digest()
    return 1000 * (time.thread_time() - before)


def _request(called: str, classes: list[str]) -> bytes:
    whole = peers.associate_rq(called=called)
    more = b"".join(
        peers._context(2 * number + 5, name, ExplicitVRLittleEndian)
        for number, name in enumerate(classes[1:])
    )
    return peers.pdu(0x01, whole[6:] + more)


def _profile(folder: Path) -> Path:
    path = folder / "storescu.cfg"
    path.write_text(
        "[[TransferSyntaxes]]\n[Raw]\nTransferSyntax1 = LittleEndianExplicit\n[[PresentationContexts]]\n"
        f"[Films]\nPresentationContext1 = {DigitalXRayImageStorageForPresentation}\\Raw\n"
        "[[Profiles]]\n[Default]\nPresentationContexts = Films\n",
        encoding="ascii",
    )
    return path


def _median(found: list[tuple[float, ...]], place: int) -> float:
    return statistics.median(item[place] for item in found)


def _ratio(ours: list[tuple[float, ...]], theirs: list[tuple[float, ...]]) -> str:
    """Return the median of the rounds' ratios: each round saw the same machine."""
    if not ours or not theirs:
        return "    -"
    return f"{statistics.median(a[0] / b[0] for a, b in zip(ours, theirs, strict=True)):5.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--films", type=int, default=24, help="10 MB each")
    parser.add_argument("--small", type=int, default=96, help="0.5 MB each")
    parser.add_argument("--large", type=int, default=1, help="200 MB each")
    parser.add_argument("--only", default=",".join(RECEIVERS), help="comma list of receivers")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="receive-"))
    sizes = (("10 MB", 2500, 2048, given.films), ("0.5 MB", 500, 500, given.small))
    made = [Corpus(folder, *size) for size in sizes if size[-1]]
    kinds = [(corpus, number) for corpus in made for number in ASSOCIATIONS]
    if given.large:
        kinds.append((Corpus(folder, "200 MB", 10_000, 10_000, given.large), 1))
    names = given.only.split(",")
    found: dict[tuple[str, int, str], list[tuple[float, ...]]] = defaultdict(list)
    most: dict[tuple[str, int, str], float] = {}
    opened: dict[tuple[int, str], list[tuple[float, ...]]] = defaultdict(list)
    sticks: list[float] = []
    with ExitStack() as running:
        running.callback(shutil.rmtree, folder, ignore_errors=True)
        receivers = {name: running.enter_context(RECEIVERS[name]()) for name in names}
        profile = _profile(folder)
        warm = Corpus(folder, "warm", 500, 500, 8)
        for receiver in receivers.values():
            send(receiver, warm, 4, profile)
        for turn in range(given.rounds):
            order = names[turn % len(names) :] + names[: turn % len(names)]
            for corpus, associations in kinds:
                sticks.append(yardstick())
                for name in order:
                    found[corpus.name, associations, name].append(
                        send(receivers[name], corpus, associations, profile)
                    )
            for contexts in (1, 120):
                for name in order:
                    opened[contexts, name].append((set_up(receivers[name], 30, contexts),))
        for corpus, associations in kinds:
            for name in names:
                peak = Peak(process_of(receivers[name]))
                with peak.watched():
                    send(receivers[name], corpus, associations, profile)
                most[corpus.name, associations, name] = peak.megabytes
    load, stick = os.getloadavg()[0], statistics.median(sticks)
    print(f"{given.rounds} rounds, medians; load average {load:.1f}, SHA-256 of 10 MB {stick:.1f} ms of CPU")
    print(f"{'':8} {'':>5} " + " ".join(f"{name:^26}" for name in names) + "  hilum / orthanc, / storescp")
    print(
        f"{'objects':8} {'assoc':>5} " + " ".join(f"{'img/s':>8} {'CPU ms':>8} {'PSS MB':>8}" for _ in names)
    )
    for corpus, associations in kinds:
        rows = [(corpus.name, associations, name) for name in names]
        cells = " ".join(
            f"{_median(found[row], 0):8.1f} {_median(found[row], 1):8.1f} {most[row]:8.0f}" for row in rows
        )
        ours = found[corpus.name, associations, "hilum"]
        ratios = [_ratio(ours, found[corpus.name, associations, name]) for name in ("orthanc", "storescp")]
        print(f"{corpus.name:8} {associations:5} {cells}  {'  '.join(ratios)}")
    for contexts in (1, 120):
        cells = ", ".join(f"{name} {_median(opened[contexts, name], 0):.1f}" for name in names)
        print(f"association of {contexts} contexts opened and released, CPU ms: {cells}")


if __name__ == "__main__":
    main()
