"""The slots of associations."""

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
    assert not slots._taken
