"""Data sets that go straight to their files: the same bytes, rows and answers as on pynetdicom's own path."""

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import association, presentation
from pynetdicom.dul import DULServiceProvider
from pynetdicom.presentation import PresentationContext
from pynetdicom.utils import set_uid

from service.core.incoming import IncomingFile
from service.core.spool import data_set_digest
from service.core.syntaxes import OFFERED, UNCOMPRESSED
from service.listener import scp, upper
from service.listener.limits import Bounds
from tests import factories
from tests.faults import peers
from tests.faults.peers import ABORT, CONTEXT_ID, DX, P_DATA, Peer
from tests.faults.site import Site, site
from tests.servers import eventually

PATHS = ("straight", "plain")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """A film longer than the beginning that is held in memory, and than one PDU."""
    made = factories.phantom_chest(rows=512, columns=400)
    content = peers.data_set(factories.write(made, tmp_path_factory.mktemp("film")))
    assert len(content) > 3 * 131072
    return str(made.SOPInstanceUID), content


@contextmanager
def listening(folder: Path, path: str, **options: Any) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as patched:
        if path == "plain":
            patched.setattr(scp, "missing_internals", lambda: ["Association.dimse"])
            patched.setattr(scp._config, "STORE_RECV_CHUNKED_DATASET", False)
            patched.setattr(scp.tempfile, "tempdir", None)
        with site(folder / path, Bounds(), **options) as running:
            yield running


def value(fragment: bytes, *, command: bool = False, last: bool = False) -> bytes:
    """Return one presentation data value (PS3.8 9.3.5.1)."""
    return struct.pack(">LBB", len(fragment) + 2, CONTEXT_ID, command + 2 * last) + fragment


def cut(content: bytes, size: int) -> list[bytes]:
    return [content[at : at + size] for at in range(0, len(content), size)]


def values(content: bytes, size: int) -> list[bytes]:
    parts = cut(content, size)
    return [value(part, last=number == len(parts)) for number, part in enumerate(parts, start=1)]


def pdus(content: list[bytes]) -> bytes:
    return b"".join(peers.pdu(P_DATA, part) for part in content)


def in_one_pdu_with_its_command(command: bytes, content: bytes) -> bytes:
    first, *rest = values(content, 60_000)
    return pdus([value(command, command=True, last=True) + first, *rest])


def with_its_command_in_pieces(command: bytes, content: bytes) -> bytes:
    parts = [value(part, command=True) for part in cut(command, 10)]
    return pdus(
        [*parts, value(b"", command=True, last=True) + b"".join(values(content, 100_000)[:1])]
    ) + pdus(values(content, 100_000)[1:])


FRAGMENTATIONS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "as large as may be": lambda command, content: pdus(
        [value(command, command=True, last=True), *values(content, 262_144 - 6)]
    ),
    "command and data in one PDU": in_one_pdu_with_its_command,
    "command in pieces, the last one empty": with_its_command_in_pieces,
    "many tiny values in a PDU": lambda command, content: pdus(
        [value(command, command=True, last=True)]
        + [b"".join(part) for part in _batches(values(content, 61), 900)]
    ),
    "a tiny value in a PDU": lambda command, content: pdus(
        [value(command, command=True, last=True), *values(content[:3000], 1), *values(content[3000:], 99_999)]
    ).replace(value(content[2999:3000], last=True), value(content[2999:3000])),
    "empty values, and an empty last one": lambda command, content: pdus(
        [value(command, command=True, last=True), value(b"")]
        + [part + value(b"") for part in (value(item) for item in cut(content, 70_001))]
        + [value(b"", last=True)]
    ),
}


def _batches(parts: list[bytes], size: int) -> list[list[bytes]]:
    return [parts[at : at + size] for at in range(0, len(parts), size)]


def row_of(running: Site) -> dict[str, object]:
    (row,) = running.rows()
    own = {"id", "study_id", "subject_id", "received_at", "ready_at", "spool_path"}
    return {name: value for name, value in vars(row).items() if name not in own and name[0] != "_"}


@pytest.mark.parametrize("name", FRAGMENTATIONS)
def test_a_data_set_is_the_same_however_it_is_cut(tmp_path: Path, film: tuple[str, bytes], name: str) -> None:
    uid, content = film
    sent = FRAGMENTATIONS[name](peers.store_rq(DX, uid), content)
    rows = []
    for path in PATHS:
        with listening(tmp_path, path) as running, running.peer() as peer:
            peer.send(sent)
            assert peer.status() == 0x0000
            assert peer.echo() == 0x0000
            (kept,) = running.spooled
            assert peers.data_set(kept) == content
            rows.append(row_of(running) | {"size": None})
            assert rows[-1]["digest"] == data_set_digest(kept)
            peer.release()
    # Only the plain path's file meta information lacks the sender.
    assert rows[0] == rows[1]


def test_bytes_that_drip_in_are_put_together(tmp_path: Path, film: tuple[str, bytes]) -> None:
    uid, content = film
    sent = FRAGMENTATIONS["many tiny values in a PDU"](peers.store_rq(DX, uid), content[:60_000])
    with listening(tmp_path, "straight") as running, running.peer() as peer:
        for part in cut(sent, 997):
            peer.send(part)
            time.sleep(0.001)
        assert peer.status() == 0x0000
        (kept,) = running.spooled
        assert peers.data_set(kept) == content[:60_000]


@pytest.mark.parametrize("syntax", OFFERED, ids=lambda syntax: syntax.name)
def test_a_data_set_is_the_same_in_every_syntax_that_is_offered(tmp_path: Path, syntax: UID) -> None:
    film = factories.phantom_chest(rows=300, columns=300)
    # The header of an encapsulated one is explicit VR, little endian (PS3.5 A.4); pixels are not looked at.
    written = syntax if syntax in UNCOMPRESSED else ExplicitVRLittleEndian
    content = peers.data_set(factories.write(film, tmp_path / "sent", written))
    rows = []
    for path in PATHS:
        with listening(tmp_path, path) as running, Peer(running.port) as peer:
            assert peer.associate(transfer_syntax_uid=syntax)[0] == peers.ASSOCIATE_AC
            assert peer.store(str(film.SOPInstanceUID), content) == 0x0000
            (kept,) = running.spooled
            assert peers.data_set(kept) == content
            rows.append(row_of(running) | {"size": None})
            assert rows[-1]["digest"] == data_set_digest(kept)
            assert rows[-1]["transfer_syntax_uid"] == syntax
    assert rows[0] == rows[1]


def test_echoes_and_stores_take_turns_on_one_association(tmp_path: Path, film: tuple[str, bytes]) -> None:
    with listening(tmp_path, "straight") as running, running.peer() as peer:
        for number in range(3):
            made = factories.phantom_chest(number)
            content = peers.data_set(factories.write(made, tmp_path / "sent"))
            assert peer.echo() == 0x0000
            assert peer.store(str(made.SOPInstanceUID), content) == 0x0000
            assert peer.store("1.2.3", content) == 0xA900
        assert peer.store(*film) == 0x0000
        peer.release()
        assert len(running.rows()) == 4
        assert not running.incoming


def test_requests_that_do_not_wait_are_answered_in_turn(tmp_path: Path) -> None:
    with listening(tmp_path, "straight") as running, running.peer() as peer:
        one = peers.p_data(peers.store_rq(DX, "1.2.3"), command=True) + peers.p_data(b"\x00" * 64)
        echo = peers.p_data(peers.echo_rq(), peers.ECHO_CONTEXT_ID, command=True)
        peer.send((one + echo) * 100)
        assert [peer.status() for _ in range(200)] == [0xC000, 0x0000] * 100
        peer.release()


def test_values_that_came_together_are_written_together(
    tmp_path: Path, film: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    uid, content = film
    sizes: list[int] = []
    write = IncomingFile.write

    def noted(file: IncomingFile, part: bytes | memoryview) -> int:
        sizes.append(len(part))
        return write(file, part)

    monkeypatch.setattr(IncomingFile, "write", noted)
    with listening(tmp_path, "straight") as running, running.peer() as peer:
        peer.send(FRAGMENTATIONS["many tiny values in a PDU"](peers.store_rq(DX, uid), content))
        assert peer.status() == 0x0000
        (kept,) = running.spooled
        assert peers.data_set(kept) == content
    assert len(sizes) < len(content) / 61 / 10


def test_an_object_is_looked_for_without_a_pause_behind_another(
    tmp_path: Path, film: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    paused = SimpleNamespace(**{**vars(time), "sleep": pauses.append})
    with listening(tmp_path, "straight") as running, running.peer() as peer:
        assert peer.store(*film) == 0x0000
        monkeypatch.setattr(association, "time", paused)
        began = time.monotonic()
        for _ in range(5):
            assert peer.store(*film) == 0x0000
        # The reactor's own turn comes while nothing does.
        assert len(pauses) <= 2 * (time.monotonic() - began) / 0.1
        peer.release()


PLACES = {
    "behind its command": 0,
    "in the header of a PDU": 3,
    "in the header of a value": 9,
    "in a value": 5000,
    "between two PDUs": 6 + 6 + 65536,
}


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_sender_that_cuts_off_leaves_nothing(
    tmp_path: Path, film: tuple[str, bytes], place: int, reset: bool
) -> None:
    with listening(tmp_path, "straight") as running:
        with running.peer() as peer:
            peer.send(peers.p_data(peers.store_rq(DX, film[0]), command=True))
            eventually(lambda: running.incoming)
            peer.send(peers.data_pdus(film[1])[:place])
            if reset:
                peer.reset()
        eventually(lambda: not running.incoming)
        assert not running.rows()
        assert not running.spooled


OTHERS = {
    "a release": peers.RELEASE_RQ,
    "an abort": bytes.fromhex("070000000004 00000000"),
    "a PDU of no type": bytes.fromhex("990000000004 00000000"),
    "a PDU that is too long": struct.pack(">BxL", P_DATA, 1 << 30),
    "a PDU without a value": peers.pdu(P_DATA, b"\x00\x00"),
    "a value that is longer than its PDU": peers.pdu(
        P_DATA, struct.pack(">LBB", 500, CONTEXT_ID, 0) + bytes(9)
    ),
    "a command": peers.p_data(peers.echo_rq(), peers.ECHO_CONTEXT_ID, command=True),
}


# On the plain path a thread of pynetdicom's dies of some of it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", OTHERS)
def test_what_does_not_belong_into_a_data_set_is_judged_as_on_the_plain_path(
    tmp_path: Path, film: tuple[str, bytes], name: str
) -> None:
    answers = []
    for path in PATHS:
        with listening(tmp_path, path) as running, running.peer() as peer:
            peer.send(peers.p_data(peers.store_rq(DX, film[0]), command=True))
            peer.send(pdus([value(part) for part in cut(film[1], 50_000)[:3]]) + OTHERS[name])
            try:
                answers.append(peer.answer(3))
            except TimeoutError:
                answers.append(-1)
            peer.socket.close()
            assert not running.rows()
    # The plain path waits for the gigabyte, and takes a command for more of the one that came before.
    otherwise = {"a PDU that is too long": -1, "a command": P_DATA}
    assert answers == ([ABORT, otherwise[name]] if name in otherwise else answers[:1] * 2)


def test_what_pynetdicom_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not upper.missing_internals()
    monkeypatch.delattr(DULServiceProvider, "_read_pdu_data")
    assert upper.missing_internals() == ["DULServiceProvider._read_pdu_data"]


def test_a_transfer_syntax_is_checked_once_and_what_is_none_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add = PresentationContext.add_transfer_syntax
    monkeypatch.setattr(PresentationContext, "add_transfer_syntax", getattr(add, "__wrapped__", add))
    upper.remember_uids()
    upper.remember_uids()
    contexts = [PresentationContext() for _ in range(2)]
    for context in contexts:
        for syntax in ("1.2.840.10008.1.2.1", b"1.2.840.10008.1.2", UID("1.2.840.10008.1.2.1"), None):
            context.add_transfer_syntax(syntax)
        assert context.transfer_syntax == ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]
    assert contexts[0].transfer_syntax[0] is contexts[1].transfer_syntax[0]
    assert contexts[0].transfer_syntax is not contexts[1].transfer_syntax
    for context in contexts:
        context.add_transfer_syntax("1.2.840.10008.1.1")
        with pytest.raises(ValueError, match="transfer_syntax"):
            context.add_transfer_syntax("1." * 40)
        assert context.transfer_syntax[-1] == "1.2.840.10008.1.1"


def test_a_uid_of_a_negotiation_is_checked_once_and_a_wrong_one_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(presentation, "set_uid", set_uid)
    upper.remember_uids()
    upper.remember_uids()
    first, again = PresentationContext(), PresentationContext()
    first.abstract_syntax = again.abstract_syntax = "1.2.840.10008.1.1"
    assert first.abstract_syntax is again.abstract_syntax
    for _ in range(2):
        with pytest.raises(ValueError, match="abstract_syntax"):
            first.abstract_syntax = "1." * 40
