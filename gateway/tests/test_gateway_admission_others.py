"""Gateways that share slots without a referee: they fill them, do not pass them by more than a moment, starve nobody."""

from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.admission.others import Others, room

counts = st.integers(0, 200)


@given(counts, counts, counts, counts)
def test_while_nobody_waits_elsewhere_all_that_is_free_may_be_taken(slots, running, waiting, others):
    assert room(slots, running, waiting, Others(others)) == max(slots - others, min(1, slots))


@given(counts, counts, counts, st.builds(Others, counts, counts))
def test_nobody_takes_more_than_one_that_others_use(slots, running, waiting, others):
    assert room(slots, running, waiting, others) <= max(1, slots - others.running)


@given(counts, counts, st.builds(Others, counts, counts))
def test_without_slots_nobody_comes_in(running, waiting, others):
    assert room(0, running, waiting, others) <= 0


class Door:
    """A gateway with a queue that never ends, or one of so many requests."""

    def __init__(self, waiting: int) -> None:
        self.running, self.waiting, self.served = 0, waiting, 0


def others_of(one: Door, doors: list[Door]) -> Others:
    rest = [door for door in doors if door is not one]
    return Others(sum(door.running for door in rest), sum(door.waiting for door in rest))


def settle(doors: list[Door], slots: int) -> None:
    """Everybody who may comes in, one after the other, with fresh news."""
    moved = True
    while moved:
        moved = False
        for door in doors:
            if door.waiting and door.running < room(slots, door.running, door.waiting, others_of(door, doors)):
                door.running, door.waiting, moved = door.running + 1, door.waiting - 1, True


@given(st.integers(1, 40), st.lists(st.integers(0, 60), min_size=2, max_size=6), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_slots_are_used_and_everybody_gets_on(slots, queues, random):
    doors = [Door(waiting) for waiting in queues]
    settle(doors, slots)
    for _ in range(2 * sum(queues) + 200):
        total, asked = sum(door.running for door in doors), sum(door.waiting for door in doors)
        assert total <= slots + len(doors)
        assert total >= min(slots, 1) or not asked
        running = [door for door in doors if door.running]
        if not running:
            break
        ending = random.choice(running)
        ending.running, ending.served = ending.running - 1, ending.served + 1
        settle(doors, slots)
    assert [door.served for door in doors] == queues


def test_two_queues_that_never_end_share_as_they_ask():
    doors = [Door(10_000), Door(10_000), Door(0)]
    settle(doors, 16)
    for turn in range(400):
        busy = doors[turn % 2]
        if busy.running:
            busy.running, busy.served = busy.running - 1, busy.served + 1
        settle(doors, 16)
    assert abs(doors[0].served - doors[1].served) <= 16
    assert sum(door.running for door in doors) in (16, 17)


def test_one_slot_goes_back_and_forth_between_two_gateways():
    doors = [Door(50), Door(50)]
    settle(doors, 1)
    for turn in range(60):
        busy = doors[turn % 2] if doors[turn % 2].running else doors[1 - turn % 2]
        busy.running, busy.served = busy.running - 1, busy.served + 1
        settle(doors, 1)
    assert min(door.served for door in doors) >= 20
