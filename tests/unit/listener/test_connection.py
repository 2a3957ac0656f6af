"""A data set's bytes from a socket, in time."""

import queue
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from service.listener.connection import Came, Connection
from service.listener.limits import Bounds
from tests.certificates import Authority
from tests.servers import eventually

_CONTEXT = 1


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def opened(ours: socket.socket, seconds: float) -> Connection:
    association: Any = SimpleNamespace(
        requestor=SimpleNamespace(address="127.0.0.1"), dul=SimpleNamespace(event_queue=queue.SimpleQueue())
    )
    return Connection(association, ours, b"", replace(Bounds(), pdu=seconds))


def pdu(content: bytes, *, last: bool) -> bytes:
    value = struct.pack(">LBB", len(content) + 2, _CONTEXT, 2 * last) + content
    return struct.pack(">BxL", 4, len(value)) + value


def test_who_waits_for_the_rest_of_a_header_does_nothing(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    connection, taken, used = opened(ours, 20), bytearray(), [0.0]
    whole = pdu(b"0123456789", last=True)

    def read() -> None:
        begun = time.thread_time()
        assert connection.fragments(_CONTEXT, taken.extend, 20) is Came.LAST
        used[0] = time.thread_time() - begun

    reader = threading.Thread(target=read)
    theirs.sendall(whole[:3])
    reader.start()
    time.sleep(0.5)
    theirs.sendall(whole[3:9])
    time.sleep(0.5)
    theirs.sendall(whole[9:])
    reader.join(20)
    assert bytes(taken) == b"0123456789"
    assert 0 < used[0] < 0.2


def test_a_pdu_that_takes_too_long_ends_the_connection(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    connection, taken = opened(ours, 0.3), bytearray()
    theirs.sendall(pdu(b"first", last=False) + pdu(b"second", last=True)[:15])
    with pytest.raises(TimeoutError):
        connection.fragments(_CONTEXT, taken.extend, 20)
    theirs.setblocking(False)
    eventually(lambda: theirs.recv(16, socket.MSG_PEEK), 5)
    assert theirs.recv(16)[0] == 7  # A-ABORT


def test_between_two_pdus_there_is_time(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    connection, taken = opened(ours, 0.1), bytearray()
    theirs.sendall(pdu(b"first", last=False))
    assert connection.fragments(_CONTEXT, taken.extend, 0.3) is Came.NOTHING
    assert bytes(taken) == b"first"
    theirs.sendall(pdu(b"second", last=True))
    assert connection.fragments(_CONTEXT, taken.extend, 20) is Came.LAST
    assert bytes(taken) == b"firstsecond"


def test_a_peer_that_closes_within_a_data_set_is_told_apart(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    connection, taken = opened(ours, 20), bytearray()
    theirs.sendall(pdu(b"first", last=False))
    theirs.close()
    with pytest.raises(ConnectionAbortedError):
        connection.fragments(_CONTEXT, taken.extend, 20)
    assert bytes(taken) == b"first"


def test_a_tls_record_that_comes_in_pieces_has_no_time_of_its_own(
    ends: tuple[socket.socket, socket.socket], authority: Authority
) -> None:
    ours, theirs = ends
    issued, into, out = authority.issue("hilum.example"), ssl.MemoryBIO(), ssl.MemoryBIO()
    server, client = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.create_default_context(cafile=authority.file),
    )
    server.load_cert_chain(issued.certificate, issued.key)
    peer = client.wrap_bio(into, out, server_hostname="hilum.example")
    accepted: list[ssl.SSLSocket] = []
    accepting = threading.Thread(
        target=lambda: accepted.append(server.wrap_socket(ours, server_side=True)), daemon=True
    )
    accepting.start()
    while True:
        try:
            peer.do_handshake()
            break
        except ssl.SSLWantReadError:
            theirs.sendall(out.read())
            into.write(theirs.recv(65536))
    theirs.sendall(out.read())
    accepting.join(20)

    connection, taken = opened(accepted[0], 0.5), bytearray()
    whole = pdu(b"0123456789", last=True)
    peer.write(whole[:8])
    theirs.sendall(out.read())
    peer.write(whole[8:])
    record = out.read()
    late = threading.Timer(0.4, lambda: theirs.sendall(record[:5]))
    late.start()
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        connection.fragments(_CONTEXT, taken.extend, 20)
    assert time.monotonic() - begun < 0.75
    late.join(20)
    accepted[0].close()
