"""The STOW-RS door under mutated files, bodies and requests: every input ends in a status or a close."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests import factories
from tests.faults.test_fuzz import _LONGEST_SECONDS, _SEED, _SYNTAXES, mutated
from tests.faults.web import ApiProcess, WebPeer, body
from tests.servers import eventually


class Fuzz:
    """Sends numbered inputs and counts how each one ends."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self.files: list[bytes] = []
        for make in (factories.phantom_chest, factories.ct_slice):
            for syntax in _SYNTAXES:
                path = factories.write(make(rows=64, columns=64), folder / syntax, syntax)
                self.files.append(path.read_bytes())
        self.files.append(factories.write(factories.basic_text_sr(), folder).read_bytes())
        self.ends: Counter[str] = Counter()
        self.slow: list[tuple[int, float]] = []

    def send(self, number: int) -> None:
        """Send a mutated file in a faultless body, a mutated body, or a mutated request with its head."""
        chance = random.Random(f"{_SEED}-{number}")
        files = chance.sample(self.files, chance.randint(1, 3))
        began = time.monotonic()
        with WebPeer(self.port) as peer:
            if number % 4 < 2:
                content = body(*(mutated(file, chance) for file in files))
                content = peer.head(len(content)) + content
            elif number % 4 == 2:
                content = mutated(body(*files), chance)
                content = peer.head(len(content)) + content
            else:
                content = body(*files)
                head = peer.head(len(content))
                content = mutated(head + content[:2000], chance) + content[2000:]
            with suppress(OSError):
                peer.send(content)
                if number % 4 == 3:
                    # The length may promise more than comes.
                    peer.socket.shutdown(1)
            try:
                end = str(peer.status() or "closed")
            except TimeoutError:
                end = "hang"
        self.ends[end] += 1
        if (took := time.monotonic() - began) > _LONGEST_SECONDS or end in {"hang", "500"}:
            self.slow.append((number, took))


@pytest.fixture
def fuzz(tmp_path: Path) -> Iterator[tuple[ApiProcess, Fuzz]]:
    with ApiProcess() as gateway:
        yield gateway, Fuzz(gateway.port, tmp_path)


@pytest.mark.parametrize(
    "inputs",
    [
        range(300),
        # 10,000 in four parts, for processes side by side.
        *(
            pytest.param(range(first, first + 2500), marks=[pytest.mark.long, pytest.mark.timeout(900)])
            for first in range(0, 10_000, 2500)
        ),
    ],
    ids=lambda inputs: f"{inputs.start}-{inputs.stop - 1}",
)
def test_every_mutated_upload_ends_and_the_api_goes_on(fuzz: tuple[ApiProcess, Fuzz], inputs: range) -> None:
    gateway, sender = fuzz
    outside = {path.name for path in gateway.folder.iterdir()}
    for number in inputs:
        sender.send(number)
    print(f"{len(inputs)} inputs: {dict(sender.ends)}")
    assert not sender.slow
    assert gateway.itself.is_running()
    assert gateway.post(body(sender.files[0])).status_code == 200
    eventually(lambda: not gateway.incoming)
    assert {path.name for path in gateway.folder.iterdir()} == outside
    assert "Traceback" not in gateway.log()
    assert "receive.failed" not in gateway.log()
