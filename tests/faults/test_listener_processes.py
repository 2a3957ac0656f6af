"""A listener of several processes: one socket, one set of limits, and nothing lost when one of them dies."""

import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests import audit_trail, factories
from tests.faults import peers
from tests.faults.peers import ASSOCIATE_AC, Peer
from tests.faults.site import ListenerProcess
from tests.servers import eventually

_CONGESTED = bytes.fromhex("030000000004 00 02 03 02")


@pytest.fixture
def films(tmp_path: Path) -> list[tuple[str, bytes]]:
    made = [factories.phantom_chest(seed=str(number), rows=64, columns=64) for number in range(8)]
    return [
        (str(film.SOPInstanceUID), peers.data_set(factories.write(film, tmp_path / str(number))))
        for number, film in enumerate(made)
    ]


@pytest.fixture
def gateway() -> Iterator[ListenerProcess]:
    with ListenerProcess(listener_processes=2, max_associations=6) as running:
        eventually(lambda: running.log().count("listener.started") == 2)
        yield running


def associated(gateway: ListenerProcess, stack: ExitStack) -> Peer:
    peer = stack.enter_context(Peer(gateway.dimse_port))
    assert peer.associate()[0] == ASSOCIATE_AC
    return peer


def serves(process: psutil.Process, peer: Peer) -> bool:
    port = peer.socket.getsockname()[1]
    return any(held.raddr and held.raddr.port == port for held in process.net_connections())


def test_the_processes_share_associations_and_limits(
    gateway: ListenerProcess, films: list[tuple[str, bytes]]
) -> None:
    with ExitStack() as stack:
        open_ = [associated(gateway, stack) for _ in range(6)]
        held = [sum(serves(process, peer) for peer in open_) for process in gateway.serving]
        assert sum(held) == 6
        assert min(held) >= 1, held
        late = stack.enter_context(Peer(gateway.dimse_port))
        assert late.associate() == _CONGESTED
        assert [peer.store(*film) for peer, film in zip(open_, films, strict=False)] == [0] * 6
        open_[0].release()
        eventually(lambda: associated_at_last(gateway))
    assert len(gateway.spooled) == 6


def associated_at_last(gateway: ListenerProcess) -> bool:
    with Peer(gateway.dimse_port) as peer:
        return peer.associate()[0] == ASSOCIATE_AC


def test_one_that_dies_takes_its_own_associations_along_and_nothing_else(
    gateway: ListenerProcess, films: list[tuple[str, bytes]]
) -> None:
    with ExitStack() as stack:
        open_ = [associated(gateway, stack) for _ in range(6)]
        victim, other = gateway.serving
        lost = [peer for peer in open_ if serves(victim, peer)]
        left = [peer for peer in open_ if serves(other, peer)]
        victim.kill()
        assert all(peer.seconds_open(10) < 10 for peer in lost)
        assert [peer.store(*film) for peer, film in zip(left, films, strict=False)] == [0] * len(left)
        eventually(lambda: len(gateway.serving) == 2 and victim not in gateway.serving, 20)
        # The slots of who died are free again.
        again = eventually(lambda: try_all(gateway, stack, len(lost)), 20)
        assert [peer.store(*film) for peer, film in zip(again, films[len(left) :], strict=False)] == [
            0
        ] * len(lost)
    assert len(gateway.spooled) == 6


def try_all(gateway: ListenerProcess, stack: ExitStack, number: int) -> list[Peer]:
    """Return so many associations, none when there is no room for all."""
    with ExitStack() as tried:
        peers_ = [tried.enter_context(Peer(gateway.dimse_port)) for _ in range(number)]
        if all(peer.associate()[0] == ASSOCIATE_AC for peer in peers_):
            stack.push(tried.pop_all())
            return peers_
    return []


def test_nobody_waits_at_the_door_of_a_listener_that_ends(
    gateway: ListenerProcess, films: list[tuple[str, bytes]]
) -> None:
    with ExitStack() as stack:
        open_ = [associated(gateway, stack) for _ in range(4)]
        gateway.itself.send_signal(signal.SIGTERM)
        eventually(lambda: refuses(gateway.dimse_port))
        assert [peer.store(*film) for peer, film in zip(open_, films, strict=False)] == [0] * 4
        for peer in open_:
            peer.release()
        assert gateway.process is not None
        assert gateway.process.wait(20) == 0
    told = [audit_trail.event(message)[1] for message in audit_trail.of(gateway.data_dir, "110100")]
    assert told == ["110120", "110121"]


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # at the very moment at which the socket is closed
        pass
    return False


def test_a_listener_that_is_killed_leaves_no_process_and_its_port(gateway: ListenerProcess) -> None:
    children = gateway.serving
    gateway.itself.kill()
    eventually(lambda: not any(alive(child) for child in children))
    eventually(lambda: refuses(gateway.dimse_port))


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
