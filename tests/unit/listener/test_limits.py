"""The slots of associations."""

import multiprocessing
import threading
import time
from contextlib import ExitStack

from service.listener.limits import Slots


def test_a_slot_is_free_again_when_its_association_ends() -> None:
    slots = Slots(2, 0, 0)
    with ExitStack() as running:
        assert [running.enter_context(slots.taken("A", "X")) for _ in range(3)] == [None, None, "all"]
    with slots.taken("A", "X") as full:
        assert full is None


def test_one_address_and_one_title_leave_slots_to_others() -> None:
    slots = Slots(10, 2, 1)
    with ExitStack() as running:
        take = [("A", "X"), ("A", "X"), ("A", "Y"), ("A", "Z"), ("B", "Z"), ("B", "Y")]
        found = [running.enter_context(slots.taken(*who)) for who in take]
    assert found == [None, "calling_ae_title", None, "address", None, "calling_ae_title"]


def test_what_is_over_forgets_who_it_was() -> None:
    slots = Slots(1, 1, 1)
    for number in range(100):
        with slots.taken(f"10.0.0.{number}", f"AE{number}"):
            pass
    assert not any(holder for holder, _, _ in slots._slots())


def test_processes_share_the_slots_and_one_that_dies_gives_them_back() -> None:
    slots = Slots(3, 0, 1, processes=2)
    ready, over = multiprocessing.Event(), multiprocessing.Event()

    def take() -> None:
        slots.use_as(2)
        with slots.taken("A", "X"), slots.taken("A", "Y"):
            ready.set()
            over.wait(10)

    other = multiprocessing.get_context("fork").Process(target=take)
    other.start()
    assert ready.wait(10)
    assert not slots.is_ahead()
    with slots.taken("B", "X") as of_title, slots.taken("B", "Z") as free, slots.taken("B", "Q") as full:
        assert (of_title, free, full) == ("calling_ae_title", None, "all")
    other.kill()
    other.join(10)
    with slots.taken("B", "Z"), slots.taken("B", "Q") as full:
        assert full == "all"
        slots.use_as(2)  # as the process does that takes its place
        slots.use_as(1)
    with ExitStack() as running:
        found = [running.enter_context(slots.taken("B", name)) for name in ("X", "Y", "Z")]
        assert found == [None] * 3
        assert slots.is_ahead()


def test_a_process_that_dies_at_the_slots_keeps_nobody_else_from_them() -> None:
    slots = Slots(1, 0, 0, processes=2)
    inside = multiprocessing.Event()

    def stay() -> None:
        with slots._locked():
            inside.set()
            time.sleep(60)

    other = multiprocessing.get_context("fork").Process(target=stay)
    other.start()
    assert inside.wait(10)
    taken: list[str | None] = []

    def take() -> None:
        with slots.taken("A", "X") as full:
            taken.append(full)

    taking = threading.Thread(target=take)
    taking.start()
    taking.join(0.2)
    assert not taken
    other.kill()
    taking.join(10)
    assert taken == [None]
    other.join(10)
