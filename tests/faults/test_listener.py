"""The listener under faults that peers, disks and kernels really cause."""

import os
import re
import resource
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForProcessing,
)
from sqlalchemy import select

from service.core.tables import Subject
from service.listener import scp
from tests import factories
from tests.certificates import Authority
from tests.faults import peers
from tests.faults.door import disk, failing_fsync
from tests.faults.peers import ABORT, ASSOCIATE_AC, DX, Peer
from tests.faults.site import SHORT, ListenerProcess, Site, site
from tests.servers import eventually, executable, free_port, storescu

_CONGESTED = bytes.fromhex("03000000000400020302")
# What a busy machine may take beyond a bound.
_PATIENCE = 5.0


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        yield made


@pytest.fixture
def film(tmp_path: Path) -> tuple[str, bytes]:
    """SOP Instance UID and data set of a radiograph."""
    made = factories.phantom_chest(rows=256, columns=200)
    return str(made.SOPInstanceUID), peers.data_set(factories.write(made, tmp_path / "sent"))


def outcomes(work: Callable[[], int], times: int) -> list[int]:
    """Do the same in many threads at once."""
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(work())) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


# --- 25 to 28: stalls and silence ---------------------------------------------------------------------------


@pytest.mark.fault(27)
@pytest.mark.parametrize("sent", [b"", peers.associate_rq()[:3], peers.associate_rq()[:-5]])
def test_a_peer_that_does_not_finish_its_request_is_closed_in_time(running: Site, sent: bytes) -> None:
    before = set(threading.enumerate())
    with Peer(running.port) as peer:
        peer.send(sent)
        assert peer.seconds_open(20) < SHORT.negotiation + _PATIENCE
    running.settle(before)


@pytest.mark.fault(27)
@pytest.mark.parametrize(
    "sent", [b"\x04\x00\x00", peers.p_data(b"\x00" * 4096)[:200]], ids=["header", "body"]
)
def test_a_stall_inside_a_pdu_is_aborted_in_time(running: Site, sent: bytes) -> None:
    before = set(threading.enumerate())
    with running.peer() as peer:
        peer.send(sent)
        began = time.monotonic()
        assert peer.answer(20) == ABORT
        assert peer.answer(20) == 0
        assert time.monotonic() - began < SHORT.pdu + _PATIENCE
    running.settle(before)


def test_a_pdu_that_drips_is_aborted_in_time(running: Site) -> None:
    with running.peer() as peer:
        began = time.monotonic()
        with pytest.raises(ConnectionError):  # noqa: PT012
            peer.send(peers.p_data(b"\x00" * 4096)[:100])
            while time.monotonic() - began < 20:
                peer.send(b"\x00")
                time.sleep(0.1)
        assert time.monotonic() - began < SHORT.pdu + _PATIENCE


@pytest.mark.fault(26)
def test_silence_between_pdus_is_aborted_and_half_an_object_leaves_nothing(running: Site) -> None:
    before = set(threading.enumerate())
    with running.peer() as peer:
        peer.send(peers.p_data(peers.store_rq(DX, "1.2.3"), command=True))
        peer.send(peers.p_data(b"\x00" * 4096, last=False))
        eventually(lambda: running.incoming)
        began = time.monotonic()
        assert peer.answer(20) == ABORT
        assert time.monotonic() - began < SHORT.idle + _PATIENCE
        assert peer.seconds_open(20) < SHORT.closing + _PATIENCE
    running.settle(before)
    assert not running.rows()


def test_an_association_that_never_ends_is_ended(tmp_path: Path) -> None:
    with site(tmp_path, replace(SHORT, association=2)) as running:
        before = set(threading.enumerate())
        with running.peer() as peer:
            began = time.monotonic()
            while time.monotonic() - began < 20 and peer.echo() == 0:
                time.sleep(0.05)
            assert 1.5 < time.monotonic() - began < 2 + _PATIENCE
        running.settle(before)


def test_a_peer_that_stays_after_its_release_is_closed(running: Site) -> None:
    before = set(threading.enumerate())
    with running.peer() as peer:
        peer.release()
        assert peer.seconds_open(20) < SHORT.closing + _PATIENCE
    running.settle(before)


def test_a_peer_that_never_reads_is_ended(running: Site) -> None:
    before = set(threading.enumerate())
    with running.peer() as peer, pytest.raises((ConnectionError, TimeoutError)):  # noqa: PT012
        peer.socket.settimeout(SHORT.pdu + _PATIENCE)
        # Else the system would take some 40,000 responses before the listener has to wait.
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        while True:
            peer.send(peers.p_data(peers.echo_rq(), peers.ECHO_CONTEXT_ID, command=True) * 50)
    running.settle(before)


@pytest.mark.fault(25)
@pytest.mark.parametrize("moment", ["connected", "associated", "in a header", "in a pdu", "in an object"])
def test_a_reset_leaves_no_thread_and_no_file(running: Site, moment: str) -> None:
    before = set(threading.enumerate())
    if moment == "connected":
        peer = Peer(running.port)
    else:
        peer = running.peer()
        command = peers.p_data(peers.store_rq(DX, "1.2.3"), command=True)
        data = peers.p_data(b"\x00" * 4096, last=False)
        peer.send({"in a header": b"\x04\x00", "in a pdu": data[:100]}.get(moment, b""))
        if moment == "in an object":
            peer.send(command + data)
            eventually(lambda: running.incoming)
    peer.reset()
    running.settle(before)
    assert not running.rows()


@pytest.mark.fault(28)
def test_silent_connections_take_no_slot_from_a_real_sender(tmp_path: Path, film: tuple[str, bytes]) -> None:
    with site(tmp_path, replace(SHORT, negotiation=30), max_associations=3) as running:
        silent = [Peer(running.port) for _ in range(30)]
        sent = storescu(tmp_path / "sent", "HILUM", running.port)
        assert sent.returncode == 0, sent.stdout
        for peer in silent:
            peer.socket.close()


def test_one_silent_connection_too_many_closes_the_oldest(tmp_path: Path) -> None:
    with site(tmp_path, replace(SHORT, negotiation=30, half_open=5)) as running:
        oldest, *others = [Peer(running.port) for _ in range(5)]
        time.sleep(0.5)
        others.append(Peer(running.port))
        assert oldest.seconds_open(20) < _PATIENCE
        for peer in others:
            assert peer.associate()[0] == ASSOCIATE_AC
        for peer in [oldest, *others]:
            peer.socket.close()


@pytest.mark.fault(28)
@pytest.mark.parametrize(
    ("limits", "second"),
    [
        ({"max_associations": 1}, "OTHER"),
        ({"max_associations_per_address": 1}, "OTHER"),
        ({"max_associations_per_ae_title": 1}, "TEST"),
    ],
)
def test_an_association_too_many_is_rejected_for_now(
    tmp_path: Path, limits: dict[str, int], second: str
) -> None:
    with site(tmp_path, **limits) as running:
        with running.peer() as first, Peer(running.port) as late:
            assert late.associate(calling=second) == _CONGESTED
            turned_away = running.listener.about()["rejection"]
            assert (turned_away["ae_title"], turned_away["address"]) == (second, "127.0.0.1")
            assert f" HILUM_{next(iter(limits)).upper()} allows" in turned_away["reason"]
            assert late.seconds_open(20) < SHORT.closing + _PATIENCE
            assert first.echo() == 0
            first.release()
        eventually(lambda: Peer(running.port).associate(calling=second)[0] == ASSOCIATE_AC)


def test_limits_of_address_and_title_can_be_off(tmp_path: Path) -> None:
    with site(
        tmp_path, max_associations=10, max_associations_per_address=0, max_associations_per_ae_title=0
    ) as running:
        open_ = [running.peer() for _ in range(10)]
        with Peer(running.port) as late:
            assert late.associate() == _CONGESTED
        for peer in open_:
            peer.socket.close()


# --- 29: TLS ------------------------------------------------------------------------------------------------


@pytest.fixture
def secured(tmp_path: Path, authority: Authority) -> Iterator[tuple[Site, ssl.SSLContext]]:
    """A listener with a TLS port beside the plain one, and what TEST shows it."""
    config = tmp_path / "hilum.toml"
    config.write_text('[peers.TEST]\ncertificates = ["modality.example"]\n')
    ours = authority.issue("hilum.example").settings
    with site(tmp_path, config=config, dimse_tls_port=free_port(), **ours) as running:
        yield running, authority.issue("modality.example").client()


@pytest.mark.fault(29)
def test_silent_clients_of_the_tls_port_hold_up_nobody(
    secured: tuple[Site, ssl.SSLContext], film: tuple[str, bytes]
) -> None:
    running, context = secured
    before = set(threading.enumerate())
    silent = [Peer(running.tls_port) for _ in range(5)]
    began = time.monotonic()
    with Peer(running.tls_port, context) as peer:
        assert peer.associate()[0] == ASSOCIATE_AC
        assert time.monotonic() - began < SHORT.handshake
        assert peer.store(*film) == 0x0000
        peer.release()
    for left in silent:
        assert left.seconds_open(20) < SHORT.handshake + _PATIENCE
        left.socket.close()
    running.settle(before)


@pytest.mark.parametrize("sent", [b"\x16\x03\x01", b"GET / HTTP/1.0\r\n\r\n", peers.associate_rq()])
def test_what_is_no_tls_handshake_is_closed(secured: tuple[Site, ssl.SSLContext], sent: bytes) -> None:
    running, context = secured
    with Peer(running.tls_port) as peer:
        peer.send(sent)
        assert peer.seconds_open(20) < SHORT.handshake + _PATIENCE
    with Peer(running.tls_port, context) as peer:
        peer.associate()
        peer.send(b"\x04\x00\x00")
        assert peer.answer(20) == ABORT


# --- lengths ------------------------------------------------------------------------------------------------


def test_a_pdu_that_promises_four_gigabytes_is_refused_before_it_comes(running: Site) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Peer(running.port) as peer:
        peer.send(b"\x01\x00\xff\xff\xff\xff")
        assert peer.answer(SHORT.pdu * 0.9) == ABORT
    with running.peer() as peer:
        peer.send(b"\x04\x00\xff\xff\xff\xff")
        assert peer.answer(SHORT.pdu * 0.9) == ABORT
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_first_pdu_that_is_no_request_is_aborted(running: Site) -> None:
    for sent in (peers.p_data(b"\x00"), peers.RELEASE_RQ, b"GET / HTTP/1.0\r\n\r\n"):
        with Peer(running.port) as peer:
            peer.send(sent)
            assert peer.answer() in {ABORT, 0}


def test_a_request_that_is_none_frees_its_slot_at_once(tmp_path: Path) -> None:
    with site(tmp_path, replace(SHORT, closing=20), max_associations=1) as running:
        with Peer(running.port) as peer:
            peer.send(peers.pdu(0x01, b"\x00\x01\x00\x00" + b"A" * 64 + b"\x10\x00\xff\xff"))
            peer.seconds_open(20)
        eventually(lambda: Peer(running.port).associate()[0] == ASSOCIATE_AC, 5)


@pytest.mark.parametrize(
    "sent",
    [
        [peers.p_data(b"\x00" * 4096, command=True, last=False)] * 1000,
        [
            peers.pdu(
                peers.P_DATA, peers.p_data(peers.echo_rq(), peers.ECHO_CONTEXT_ID, command=True)[6:] * 500
            )
        ],
    ],
    ids=["a command without end", "requests without waiting, in one PDU"],
)
def test_what_would_pile_up_in_memory_is_aborted(running: Site, sent: list[bytes]) -> None:
    before = set(threading.enumerate())
    with running.peer() as peer:
        with suppress(ConnectionError):
            for part in sent:
                peer.send(part)
        assert peer.seconds_open(20) < SHORT.closing + _PATIENCE
    running.settle(before)


def test_an_object_over_the_limit_is_out_of_resources_and_the_association_lives(
    tmp_path: Path, film: tuple[str, bytes]
) -> None:
    sop_instance_uid, content = film
    with site(tmp_path, max_object_bytes=len(content)) as running, running.peer() as peer:
        assert peer.store(sop_instance_uid, content + bytes(3_000_000)) == 0xA700
        assert not running.incoming
        assert peer.store(sop_instance_uid, content) == 0x0000


# --- 30 to 36, 38, 39: what a sender says -------------------------------------------------------------------


@pytest.mark.fault(30)
def test_wrong_titles_are_rejected_for_good(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with site(tmp_path, calling_ae_titles="TEST") as running:
        for options, diagnostic in (({"called": "OTHER"}, 7), ({"calling": "OTHER"}, 3)):
            with Peer(running.port) as peer:
                assert peer.associate(**options) == bytes((3, 0, 0, 0, 0, 4, 0, 1, 1, diagnostic))
                assert peer.seconds_open(20) < SHORT.closing + _PATIENCE
        with running.peer() as peer:
            assert peer.echo() == 0
    assert "association.rejected" in "".join(capfd.readouterr())


@pytest.mark.fault(31)
def test_a_command_for_another_object_or_class_is_a_mismatch(running: Site, film: tuple[str, bytes]) -> None:
    with running.peer() as peer:
        assert peer.store("1.2.3.4", film[1]) == 0xA900
        assert peer.store(*film, sop_class_uid=CTImageStorage) == 0xA900
    with Peer(running.port) as peer:
        peer.associate(sop_class_uid=DigitalXRayImageStorageForProcessing)
        assert peer.store(*film, sop_class_uid=DigitalXRayImageStorageForProcessing) == 0xA900
    assert not running.rows()
    assert not running.incoming


@pytest.mark.fault(32)
@pytest.mark.parametrize(
    "hostile", ["../../../x", "/abs", "1." * 32 + "1", "1.2\0.3", "1.2\\3", "ä", "x" * 5000]
)
def test_a_uid_that_breaks_the_rules_is_an_invalid_instance(
    running: Site, film: tuple[str, bytes], tmp_path: Path, hostile: str
) -> None:
    sop_instance_uid, content = film
    named = hostile[: len(sop_instance_uid)].ljust(len(sop_instance_uid), "1").encode()
    with running.peer() as peer:
        assert peer.store(hostile, content) == 0x0117
        assert peer.store(
            hostile, content.replace(sop_instance_uid.encode(), named[: len(sop_instance_uid)])
        ) in {
            0x0117,
            0xC000,
        }
        assert peer.store(sop_instance_uid, content) == 0x0000
    assert {path.name for path in tmp_path.iterdir()} == {"site", "sent"}
    assert {path.name for path in (tmp_path / "site").iterdir()} == {"data"}


def test_a_store_without_a_data_set_hangs_nobody(running: Site) -> None:
    with running.peer() as peer:
        peer.send(peers.p_data(peers.store_rq(DX, "1.2.3", data_set=False), command=True))
        assert peer.status() == 0xC000
        assert peer.store("1.2.3", b"") == 0xC000
        assert peer.echo() == 0


@pytest.mark.fault(33, 36)
@pytest.mark.parametrize("kind", ["truncated", "odd", "unknown VR", "deep", "deeper", "many", "long"])
def test_a_hostile_data_set_is_not_understood_at_once_and_the_next_is_stored(
    running: Site, film: tuple[str, bytes], kind: str
) -> None:
    sop_instance_uid, content = film
    pixels = content.index(b"\xe0\x7f\x10\x00")
    uid_at = content.index(b"\x08\x00\x18\x00")
    hostile = {
        "truncated": content[: uid_at + 40],
        "odd": content[:uid_at] + peers.element(0x00080018, b"UI", b"1.2.3", 0xFFFF),
        "unknown VR": content[:uid_at] + b"\x08\x00\x18\x00ZZ\x40\x00" + content[uid_at + 8 :],
        "deep": content[:pixels] + peers.nested(1000, undefined=False) + content[pixels:],
        "deeper": content[:pixels] + peers.nested(1000, undefined=True) + content[pixels:],
        "many": content[:pixels] + peers.element(0x00711010, b"LO", b"") * 400_000 + content[pixels:],
        "long": content[:uid_at] + peers.element(0x00080060, b"UT", b"X" * 2_000_000) + content[uid_at:],
    }[kind]
    with running.peer() as peer:
        began = time.monotonic()
        assert peer.store(sop_instance_uid, hostile) in {0xC000, 0x0117}
        assert time.monotonic() - began < 5
        assert peer.store(sop_instance_uid, content) == 0x0000


@pytest.mark.fault(34)
def test_deflated_data_sets_are_not_offered(running: Site) -> None:
    with Peer(running.port) as peer:
        answer = peer.associate(transfer_syntax_uid=DeflatedExplicitVRLittleEndian)
        # PS3.8 9.3.3.2: context 1 has result 4, transfer syntaxes not supported.
        context = re.search(rb"\x21\x00..\x01\x00(.)", answer, re.DOTALL)
        assert context is not None
        assert context[1] == b"\x04"


@pytest.mark.fault(38)
@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("", "Name^Plain"),
        ("ISO_IR 999", "Name^Plain"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 100", "Müller^Änne"),
    ],
)
def test_names_in_any_character_set_are_kept(
    running: Site, tmp_path: Path, character_set: str | list[str], name: str
) -> None:
    made = factories.phantom_chest(rows=64, columns=64, SpecificCharacterSet=character_set, PatientName=name)
    content = peers.data_set(factories.write(made, tmp_path / "sent"))
    with running.peer() as peer:
        assert peer.store(str(made.SOPInstanceUID), content) == 0x0000
    with running.ledger.read() as session:
        assert session.scalars(select(Subject.patient_name)).one() == name


@pytest.mark.fault(39)
def test_empty_and_private_attributes_are_taken(running: Site, tmp_path: Path) -> None:
    empty = dict.fromkeys(["PatientID", "PatientName", "StudyDate", "PatientBirthDate", "PatientSex"], "")
    made = factories.phantom_chest(rows=64, columns=64, **empty)
    block = made.private_block(0x0071, "HOUSE", create=True)
    block.add_new(0x10, "OB", bytes(200_000))
    block.add_new(0x11, "LO", "")
    path = factories.write(made, tmp_path / "sent")
    sent = storescu(path, "HILUM", running.port)
    assert sent.returncode == 0, sent.stdout
    assert len(running.rows()) == 1


# --- 22, 24: the same again ---------------------------------------------------------------------------------


@pytest.mark.fault(24)
def test_eight_senders_of_one_instance_at_once_make_one_row(
    running: Site, film: tuple[str, bytes], tmp_path: Path
) -> None:
    assert outcomes(lambda: storescu(tmp_path / "sent", "HILUM", running.port).returncode, 8) == [0] * 8
    (row,) = running.rows()
    assert peers.data_set(running.settings.data_dir / str(row.spool_path)) == film[1]
    assert [path.suffix for path in (running.settings.data_dir / "spool").rglob("*.*")] == [".dcm"]


# --- 1, 14, 15: the process and its disk --------------------------------------------------------------------


@pytest.mark.fault(1)
def test_a_listener_killed_in_the_middle_of_an_object_leaves_nothing_of_it(
    film: tuple[str, bytes], tmp_path: Path
) -> None:
    big = factories.phantom_chest(seed="big", rows=64, columns=64)
    path = factories.write(big, tmp_path / "big")
    content = path.read_bytes()
    pixels = content.index(b"\xe0\x7f\x10\x00")
    with path.open("wb") as stream:
        stream.write(content[:pixels] + peers.element(0x00711010, b"OB", b"", 200_000_000))
        stream.seek(200_000_000, os.SEEK_CUR)
        stream.write(content[pixels:])
    with ListenerProcess() as gateway:
        sender = subprocess.Popen(
            [
                *(executable("dcmsend", "dcmtk"), "-aec", "HILUM", "-to", "10", "127.0.0.1"),
                *(str(gateway.dimse_port), str(path)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        eventually(lambda: any(part.stat().st_size > 1_000_000 for part in gateway.incoming), 20)
        gateway.kill()
        said = sender.communicate(timeout=60)[0].decode()
        assert sender.returncode != 0, said
        (left,) = gateway.incoming
        assert left.suffix == ".part"
        gateway.restart()
        eventually(lambda: not gateway.incoming, 5)
        assert not list((gateway.data_dir / "spool").rglob("*.*"))
        with Peer(gateway.dimse_port) as peer:
            peer.associate()
            assert peer.store(*film) == 0x0000


@pytest.mark.fault(14)
def test_a_full_disk_is_out_of_resources_until_there_is_room(tmp_path: Path, film: tuple[str, bytes]) -> None:
    """Needs root and the right to mount, as in CI."""
    ledger = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    with disk(tmp_path, "-o", "size=1m") as data:
        (data / "fill").write_bytes(bytes(1_000_000))
        with site(tmp_path, database_url=ledger) as running, running.peer() as peer:
            assert peer.store(*film) == 0xA700
            assert not running.incoming
            assert peer.store(*film) == 0xA700
            (data / "fill").unlink()
            assert peer.store(*film) == 0x0000
            assert len(running.rows()) == 1


@pytest.mark.fault(15)
def test_a_disk_mounted_read_only_is_out_of_resources_until_it_can_be_written(
    tmp_path: Path, film: tuple[str, bytes]
) -> None:
    """Needs root and the right to mount, as in CI."""
    ledger = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    with (
        disk(tmp_path) as data,
        site(tmp_path, database_url=ledger) as running,
        running.peer() as peer,
    ):
        subprocess.run(["mount", "-o", "remount,ro", str(data)], check=True)
        assert peer.store(*film) == 0xA700
        assert peer.store(*film) == 0xA700
        assert not running.rows()
        subprocess.run(["mount", "-o", "remount,rw", str(data)], check=True)
        assert peer.store(*film) == 0x0000
        assert len(running.rows()) == 1


@pytest.mark.fault(15)
def test_a_disk_whose_fsync_fails_is_out_of_resources(film: tuple[str, bytes]) -> None:
    """Needs the right to trace, as root has in CI."""
    with ListenerProcess() as gateway, Peer(gateway.dimse_port) as peer:
        peer.associate()
        with failing_fsync(*gateway.serving):
            assert peer.store(*film) == 0xA700
        assert not gateway.incoming
        assert not gateway.spooled
        assert peer.store(*film) == 0x0000


# --- connect and drop ---------------------------------------------------------------------------------------


def connect_and_drop(port: int, cycles: int) -> None:
    """Do what health checks and port scanners do: close, reset, or leave after an A-ASSOCIATE-RQ."""
    for number in range(cycles):
        peer = Peer(port)
        match number % 3:
            case 0:
                peer.socket.close()
            case 1:
                peer.reset()
            case _:
                peer.send(peers.associate_rq())
                if number % 2:
                    peer.pdu()
                peer.socket.close()


def footprint(processes: list[psutil.Process]) -> tuple[int, int, int]:
    """Return private memory in KiB, threads and descriptors once all threads of connections have ended."""
    # What stays in each: the main thread, the one that accepts, the heartbeat.
    for process in processes:
        eventually(lambda one=process: one.num_threads() <= 3, 30, "the threads of connections ended")
    return (
        sum(process.memory_full_info().uss for process in processes) // 1024,
        sum(process.num_threads() for process in processes),
        sum(process.num_fds() for process in processes),
    )


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param(150, 300, id="300"),
        pytest.param(1000, 5000, id="5000", marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_connecting_and_dropping_leaves_memory_threads_and_descriptors_flat(first: int, then: int) -> None:
    with ListenerProcess(max_associations=200, max_associations_per_address=0) as gateway:
        connect_and_drop(gateway.dimse_port, first)
        before = footprint(gateway.serving)
        connect_and_drop(gateway.dimse_port, then)
        after = footprint(gateway.serving)
        print(f"{then} cycles: {before} -> {after} (KiB, threads, descriptors)")
        assert after[0] - before[0] < 8 * 1024 * len(gateway.serving)
        assert after[1] <= before[1]
        # The ledger opens and closes its own.
        assert after[2] <= before[2] + 3 * len(gateway.serving)


# --- without pynetdicom's internals -------------------------------------------------------------------------


def test_without_the_internals_the_plain_path_serves_and_says_so(
    tmp_path: Path,
    film: tuple[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(scp, "missing_internals", lambda: ["Association.dimse"])
    monkeypatch.setattr(scp._config, "STORE_RECV_CHUNKED_DATASET", False)
    monkeypatch.setattr(scp.tempfile, "tempdir", None)
    with site(tmp_path) as running:
        with running.peer() as peer:
            assert peer.store(*film) == 0x0000
            peer.release()
        (row,) = running.rows()
        assert peers.data_set(running.settings.data_dir / str(row.spool_path)) == film[1]
    assert "listener.unbounded" in "".join(capfd.readouterr())
