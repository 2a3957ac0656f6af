"""Redis under faults: killed without persistence, away, restarted, stopped, emptied, full."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pydicom import Dataset

from tests.faults.victim import Victim, small_film
from tests.servers import HTTP, Redis, eventually

# Twice what they take where other tests run beside them.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def films(name: str, count: int = 3) -> list[Dataset]:
    return [small_film(f"{name}{number}") for number in range(count)]


def hints(broker: Redis) -> int:
    """Return how many messages wait for a pool that decodes."""
    return int(broker.client.llen("decode"))


@contextmanager
def waiting(victim: Victim, broker: Redis, pushed: list[Dataset]) -> Iterator[None]:
    """Push films while nobody decodes, so that their messages wait in Redis."""
    with victim.stopped(victim.pools("decode")):
        victim.push(*pushed)
        eventually(lambda: hints(broker) >= len(pushed) - 1, 20, "the messages in Redis")
        yield


def goes_on(victim: Victim, *pushed: Dataset, name: str = "after") -> float:
    """Return how long it took until the films and one that came later were reported, each once."""
    began = time.monotonic()
    # First without the later one, whose messages would have the earlier ones done too.
    for film in pushed:
        victim.wait_for_one_result(film)
    later = small_film(f"{name} {time.monotonic_ns()}")
    victim.push(later)
    victim.wait_for_one_result(later)
    return time.monotonic() - began


@pytest.mark.fault(9)
def test_a_redis_killed_with_all_its_messages_loses_no_study(victim: Victim, broker: Redis) -> None:
    pushed = films("killed")
    with waiting(victim, broker, pushed):
        broker.kill()
        broker.restart()
        assert not broker.client.exists("unacked")
    goes_on(victim, *pushed)


@pytest.mark.fault(12)
def test_a_redis_that_is_emptied_loses_no_study(victim: Victim, broker: Redis) -> None:
    pushed = films("emptied")
    with waiting(victim, broker, pushed):
        broker.client.flushall()
    goes_on(victim, *pushed)


@pytest.mark.fault(12)
def test_a_redis_without_memory_keeps_nobody_from_storing(victim: Victim, broker: Redis) -> None:
    pushed = films("full")
    broker.client.config_set("maxmemory", "1mb")
    try:
        victim.push(*pushed)
        eventually(
            lambda: "scheduler.redis_unreachable" in victim.gateway.log(), 20, "the scheduler complains"
        )
    finally:
        broker.client.config_set("maxmemory", "0")
    goes_on(victim, *pushed)


@pytest.mark.fault(10)
def test_what_arrives_while_redis_is_down_is_stored_at_once_and_done_later(
    victim: Victim, broker: Redis
) -> None:
    pushed = films("down")
    broker.stop()
    try:
        began = time.monotonic()
        victim.push(*pushed)
        assert time.monotonic() - began < 10
        ready = f"{victim.gateway.http_url}/readyz"
        eventually(lambda: "Redis cannot be reached" in HTTP.get(ready).text, 20, "/readyz names Redis")
    finally:
        broker.restart()
    goes_on(victim, *pushed)


@pytest.mark.fault(11)
@pytest.mark.parametrize("times", [2, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
def test_consumption_resumes_after_each_restart_of_redis(victim: Victim, broker: Redis, times: int) -> None:
    took = []
    for number in range(times):
        pushed = films(f"restart{times} {number} ", 1)
        victim.push(*pushed)
        (broker.kill if number % 2 else broker.stop)()
        time.sleep(number % 4)
        broker.restart()
        took.append(goes_on(victim, *pushed))
    print(f"{times} restarts of Redis: resumed after at most {max(took):.1f} s")


@pytest.mark.fault(11)
def test_consumption_resumes_after_every_connection_was_closed(victim: Victim, broker: Redis) -> None:
    for _ in range(3):
        assert broker.client.client_kill_filter(_type="normal", skipme=True) > 0
        goes_on(victim)


@pytest.mark.fault(11)
@pytest.mark.parametrize("seconds", [8, pytest.param(90, marks=[pytest.mark.long, pytest.mark.timeout(400)])])
def test_consumption_resumes_after_redis_was_stopped(victim: Victim, broker: Redis, seconds: int) -> None:
    pushed = films(f"paused{seconds}", 2)
    assert broker.process is not None
    pools = [process for queue in ("decode", "infer", "report") for process in victim.pools(queue)]
    broker.process.send_signal(signal.SIGSTOP)
    try:
        victim.push(*pushed)
        time.sleep(seconds)
    finally:
        broker.process.send_signal(signal.SIGCONT)
    took = goes_on(victim, *pushed)
    # A Redis that is away is no reason to kill a worker.
    assert all(process.is_running() for process in pools)
    print(f"resumed within {took:.1f} s of a stop of {seconds} s")
