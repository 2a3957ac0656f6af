"""Workers that are killed, stopped, told to stop, or given what kills them."""

import subprocess
import threading
import time
from collections.abc import Callable

import pytest
from pydicom.uid import JPEG2000Lossless
from sqlalchemy import select

from service.commands.watchdog import Watchdog
from service.core.leases import DECODE, FAMILY_VARIABLE, INFER, LEASE_SECONDS, STAGES, Stage
from service.core.tables import Analysis, Instance
from tests import factories
from tests.faults.peers import Peer
from tests.faults.victim import PATIENCE, Victim, kill, small_film
from tests.servers import HTTP, Gateway, Redis, ServerError, eventually

# Twice what they take where other tests run beside them.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def attempts(victim: Victim, sop_instance_uid: str) -> list[tuple[int, int]]:
    """Return how often a film's decoding and its analyses were begun."""
    with victim.ledger.read() as session:
        return [
            (decoding, analysis)
            for decoding, analysis in session.execute(
                select(Instance.attempts, Analysis.attempts)
                .join(Analysis, Analysis.instance_id == Instance.id)
                .where(Instance.sop_instance_uid == sop_instance_uid)
            )
        ]


@pytest.mark.fault(4)
def test_a_pool_child_killed_while_it_decodes_is_no_second_result_and_no_long_wait(victim: Victim) -> None:
    film = factories.chest_film("child")
    path = factories.write(film, victim.folder, JPEG2000Lossless)
    assert victim.gateway.send(path).returncode == 0
    _, token, child = victim.caught(DECODE, film)
    kill(child)
    began = time.monotonic()
    victim.caught(DECODE, film, after=token)
    took = time.monotonic() - began
    victim.wait_for_one_result(film)
    assert attempts(victim, film.SOPInstanceUID) == [(2, 1)]
    print(f"decoded again {took:.1f} s after its process was killed")
    assert took < LEASE_SECONDS - 10


@pytest.mark.fault(4, 5)
@pytest.mark.parametrize("stage", [DECODE, INFER], ids=lambda stage: stage.queue)
def test_a_whole_worker_killed_in_the_middle_is_no_second_result(victim: Victim, stage: Stage) -> None:
    for number in range(5):
        film = factories.chest_film(f"worker {stage.queue} {number}")
        pools = eventually(lambda: victim.pools(stage.queue), PATIENCE, "a pool")
        assert victim.gateway.send(factories.write(film, victim.folder, JPEG2000Lossless)).returncode == 0
        row, token, _ = victim.caught(stage, film)
        for process in pools:
            kill(process)
        if victim.holds(stage, row, token):
            break
        victim.wait_for_one_result(film)  # it was done before it was killed
    else:
        pytest.fail("nothing was killed in the middle of its work")
    began = time.monotonic()
    # How far the second try has come by the time it is seen does not matter.
    eventually(lambda: not victim.holds(stage, row, token), PATIENCE, f"{stage.queue} begun again")
    print(f"{stage.queue} began again {time.monotonic() - began:.1f} s after its worker was killed")
    victim.wait_for_one_result(film)


@pytest.mark.fault(6, 7)
def test_a_worker_stopped_beyond_its_lease_loses_its_work_and_its_result_is_dropped(victim: Victim) -> None:
    gateway = victim.gateway
    log = (victim.folder / "second.log").open("w+")
    command = [*gateway.command()[:3], "worker", "--queue", "infer", "--pool"]
    for number in range(5):
        film = small_film(f"stopped{number}")
        victim.push(film)
        row, token, first = victim.caught(INFER, film)
        with victim.stopped([first]):
            still = [(lease[0], lease[1]) for lease in victim.leased(INFER, film)]
            if still != [(row, token)]:
                continue  # it was done before it was stopped
            began = time.monotonic()
            second = subprocess.Popen(command, env=gateway.environment(), stdout=log, stderr=log)
            try:
                victim.wait_for_one_result(film)
                took = time.monotonic() - began
                first.resume()
                eventually(lambda: "infer.lease_lost" in gateway.log(), PATIENCE, "the late result dropped")
            finally:
                second.terminate()
                second.wait(60)
        victim.wait_for_one_result(film)
        assert attempts(victim, film.SOPInstanceUID) == [(1, 2)]
        print(f"reported {took:.1f} s after its worker was stopped; a lease lasts {LEASE_SECONDS:.0f} s")
        return
    raise ServerError("five films, and each was done before its worker was stopped")


@pytest.mark.fault(8)
def test_a_film_that_kills_its_process_three_times_is_failed_and_the_others_go_on(victim: Victim) -> None:
    poison = factories.chest_film("poison")
    healthy = [small_film(f"healthy{number}") for number in range(3)]
    path = factories.write(poison, victim.folder, JPEG2000Lossless)
    given_up = threading.Event()

    def strike() -> None:
        """Kill whoever decodes this film, as a codec that ends its process does."""
        while not given_up.wait(0.002):
            for _, _, process in victim.leased(DECODE, poison):
                kill(process)

    killer = threading.Thread(target=strike)
    killer.start()
    try:
        assert victim.gateway.send(path).returncode == 0
        victim.push(*healthy)
        (study,) = victim.wait(poison, states="failed")
    finally:
        given_up.set()
        killer.join()
    assert study["reason"] == "decoding failed 3 times (its process died)"
    assert study["attention"] == study["reason"]
    for film in healthy:
        victim.wait_for_one_result(film)
    # Whoever mends the cause gets the film back.
    assert victim.gateway.run("retry", poison.StudyInstanceUID).returncode == 0
    victim.wait(poison)


@pytest.mark.fault(13)
def test_a_worker_that_lives_and_does_not_consume_is_seen_by_its_waiting_work(
    victim: Victim, broker: Redis
) -> None:
    film = small_film("silent")
    (pool,) = victim.pools("infer")
    families = {"infer": pool.environ()[FAMILY_VARIABLE]}
    watchdog = Watchdog(victim.ledger, broker.url, families, silent_seconds=3)
    with victim.stopped([pool]):
        assert not watchdog.look()
        victim.push(film)
        why = eventually(watchdog.look, PATIENCE, "the pool found out", 0.5)["infer"]
        assert "1 piece(s) of work are ready, and it has taken none" in why
        assert pool.is_running()
        metrics = HTTP.get(f"{victim.gateway.http_url}/metrics").text
        (age,) = [
            line
            for line in metrics.splitlines()
            if line.startswith('hilum_oldest_ready_seconds{queue="infer"}')
        ]
        assert float(age.split()[-1]) > 3
    victim.wait_for_one_result(film)
    assert not watchdog.look()


@pytest.mark.fault(13)
@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("queue", ["decode", "infer"])
def test_a_worker_that_does_not_consume_is_replaced_by_itself(victim: Victim, queue: str) -> None:
    film = small_film(f"replaced {queue}")
    pools = victim.pools(queue)
    with victim.stopped(pools[:1]):
        began = time.monotonic()
        victim.push(film)

        def faults() -> str:
            answer = HTTP.get(f"{victim.gateway.http_url}/readyz")
            return str(answer.json()["faults"].get(queue, "")) if answer.status_code == 503 else ""

        # What is found missing first, its beats or its work, depends on the pool.
        eventually(faults, 120, f"/readyz names {queue}")
        eventually(lambda: not any(process.is_running() for process in pools), 120, "the pool killed")
        took = time.monotonic() - began
    victim.wait_for_one_result(film)
    assert "supervisor.not_working" in victim.gateway.log()
    print(f"{queue} was replaced {took:.0f} s after it was stopped with work waiting")


@pytest.mark.long
@pytest.mark.fault(40)
def test_sigterm_lets_the_work_in_hand_be_finished_and_the_next_start_does_the_rest(victim: Victim) -> None:
    films = [factories.chest_film(f"term{number}") for number in range(4)]
    paths = [factories.write(film, victim.folder, JPEG2000Lossless) for film in films]
    gateway = victim.gateway
    assert gateway.send(*paths).returncode == 0
    victim.caught(DECODE)
    process = gateway.process
    assert process is not None
    began = time.monotonic()
    gateway.stop()
    took = time.monotonic() - began
    try:
        assert process.returncode == 0
        before = rows(victim)
        assert not [lease for stage in STAGES for lease in victim.leased(stage)]
    finally:
        gateway.restart()
    for film in films:
        victim.wait_for_one_result(film)
        # Nothing was begun twice: what was in hand was finished, the rest was not begun.
        assert attempts(victim, film.SOPInstanceUID) == [(1, 1)]
    assert rows(victim) == before
    print(f"stopped in {took:.1f} s")


def rows(victim: Victim) -> set[tuple[int, str]]:
    with victim.ledger.read() as session:
        return {(row.id, row.sop_instance_uid) for row in session.scalars(select(Instance))}


@pytest.mark.fault(3)
def test_a_listener_that_dies_after_its_commit_has_its_film_analysed_all_the_same(victim: Victim) -> None:
    gateway = victim.gateway
    film = small_film("committed")
    path = factories.write(film, victim.folder)
    door = Gateway(
        command=("listen",),
        **{**gateway.settings, "data_dir": gateway.data_dir, "failpoint": "receive.recorded"},
    )

    def answers() -> bool:
        with Peer(door.dimse_port) as peer:
            return peer.associate()[0] == 0x02

    door.ready = lambda: _quietly(answers)  # type: ignore[method-assign]
    with door:
        assert door.send(path).returncode != 0
        eventually(lambda: '"exit_code": 137' in door.log(), 20, "a process of the listener died")
        victim.wait_for_one_result(film)


def _quietly(ask: Callable[[], bool]) -> bool:
    try:
        return ask()
    except OSError:
        return False
