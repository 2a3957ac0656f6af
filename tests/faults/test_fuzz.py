"""The DIMSE door under mutated PDUs and data sets: every input ends in a status, a rejection or a close."""

import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from tests import factories
from tests.faults import peers
from tests.faults.peers import Peer
from tests.faults.site import ListenerProcess
from tests.servers import eventually

_SEED = 20261123
_LONGEST_SECONDS = 5.0
_SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, JPEG2000Lossless)
_TELLING = (
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x00",
    b"\xff\xff",
    b"\xfe\xff\x00\xe0",
    b"\xfe\xff\xdd\xe0",
    b"SQ",
    b"UN",
)


class Corpus:
    """Real objects, and the mutations of them that a number stands for."""

    def __init__(self, folder: Path) -> None:
        self.objects: list[tuple[UID, UID, UID, bytes]] = []
        for make in (factories.phantom_chest, factories.ct_slice, factories.basic_text_sr):
            for syntax in _SYNTAXES:
                if syntax == JPEG2000Lossless and make is factories.basic_text_sr:
                    continue
                options = {} if make is factories.basic_text_sr else {"rows": 64, "columns": 64}
                made = make(**options)
                path = factories.write(made, folder / syntax, syntax)
                content = peers.data_set(path)
                self.objects.append((syntax, made.SOPClassUID, made.SOPInstanceUID, content))

    def conversation(self, chance: random.Random) -> tuple[bytes, bytes]:
        """Return an A-ASSOCIATE-RQ, and all that a sender of one object says after it."""
        syntax, sop_class_uid, sop_instance_uid, content = chance.choice(self.objects)
        return (
            peers.associate_rq(sop_class_uid=sop_class_uid, transfer_syntax_uid=syntax),
            peers.p_data(peers.store_rq(sop_class_uid, sop_instance_uid), command=True)
            + peers.data_pdus(content, 2048)
            + peers.RELEASE_RQ,
        )


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return `content` with one to five faults; most of them near its beginning, where the structure is."""
    made = bytearray(content)
    for _ in range(chance.randint(1, 5)):
        at = int(len(made) * chance.random() ** 3)
        match chance.randrange(6):
            case 0:
                made[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                telling = chance.choice(_TELLING)
                made[at : at + len(telling)] = telling
            case 2:
                del made[at : at + chance.choice([1, 2, 4, 8, 100])]
            case 3:
                made[at:at] = chance.randbytes(chance.choice([1, 2, 4, 8, 100]))
            case 4:
                other = int(len(made) * chance.random())
                made[at:at] = made[other : other + chance.choice([8, 64, 512])]
            case _:
                del made[max(at, 1) :]
    return bytes(made)


class Fuzz:
    """Sends numbered inputs and counts how each one ends."""

    def __init__(self, gateway: ListenerProcess, corpus: Corpus) -> None:
        self.port = gateway.dimse_port
        self.corpus = corpus
        self.ends: Counter[str] = Counter()
        self.slow: list[tuple[int, float]] = []

    def send(self, number: int) -> None:
        chance = random.Random(f"{_SEED}-{number}")
        began = time.monotonic()
        kind = number % 4
        try:
            end = self._data_set(chance) if kind < 2 else self._stream(chance, associated=kind == 2)
        except TimeoutError:
            end = "hang"
        self.ends[end] += 1
        if (took := time.monotonic() - began) > _LONGEST_SECONDS or end == "hang":
            self.slow.append((number, took))

    def _data_set(self, chance: random.Random) -> str:
        """Send a faultless C-STORE of a mutated data set."""
        syntax, sop_class_uid, sop_instance_uid, content = chance.choice(self.corpus.objects)
        with Peer(self.port) as peer:
            peer.associate(sop_class_uid=sop_class_uid, transfer_syntax_uid=syntax)
            status = peer.store(sop_instance_uid, mutated(content, chance), sop_class_uid)
            if status >= 0:
                peer.release()
            return f"{status:04X}" if status >= 0 else "closed"

    def _stream(self, chance: random.Random, *, associated: bool) -> str:
        """Send mutated PDUs, after an association or from the first byte on, and then no more."""
        first, rest = self.corpus.conversation(chance)
        with Peer(self.port) as peer:
            if associated:
                peer.send(first)
                peer.pdu()
                content = mutated(rest, chance)
            else:
                content = mutated(first, chance) + rest
            with suppress(OSError):
                peer.send(content)
                peer.socket.shutdown(socket.SHUT_WR)
            if peer.seconds_open(4 * _LONGEST_SECONDS) >= 4 * _LONGEST_SECONDS:
                raise TimeoutError
            return "stream closed"


@pytest.fixture
def fuzz(tmp_path: Path) -> Iterator[tuple[ListenerProcess, Fuzz]]:
    with ListenerProcess() as gateway:
        yield gateway, Fuzz(gateway, Corpus(tmp_path))


@pytest.mark.parametrize(
    "inputs",
    [
        range(500),
        # 10,000 in four parts, for processes side by side.
        *(
            pytest.param(range(first, first + 2500), marks=[pytest.mark.long, pytest.mark.timeout(900)])
            for first in range(0, 10_000, 2500)
        ),
    ],
    ids=lambda inputs: f"{inputs.start}-{inputs.stop - 1}",
)
def test_every_mutated_input_ends_and_the_listener_goes_on(
    fuzz: tuple[ListenerProcess, Fuzz], inputs: range
) -> None:
    gateway, sender = fuzz
    outside = {path.name for path in gateway.folder.iterdir()}
    for number in inputs:
        sender.send(number)
    print(f"{len(inputs)} inputs: {dict(sender.ends)}")
    assert not sender.slow
    assert gateway.itself.is_running()
    with Peer(gateway.dimse_port) as peer:
        peer.associate()
        assert peer.echo() == 0x0000
    eventually(lambda: not gateway.incoming)
    assert {path.name for path in gateway.folder.iterdir()} == outside
    assert "Traceback" not in gateway.log()
    assert "receive.failed" not in gateway.log()
