"""The queue of keys: none is lost, none runs twice at once, each waits its turn, and memory stays bounded."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sheaf_operator.handlers.workqueue import SLACK, WorkQueue

KEYS = st.sampled_from("abcdef")


def test_keys_are_served_in_the_order_in_which_they_changed() -> None:
    queue = WorkQueue[str]()
    queue.changed("cab", 1.0)
    queue.changed("c", 2.0)
    assert [queue.take(3.0) for _ in range(4)] == [("c", 1.0), ("a", 1.0), ("b", 1.0), None]


def test_what_changes_while_it_runs_is_planned_once_more_afterwards() -> None:
    queue = WorkQueue[str]()
    queue.changed("a", 1.0)
    queue.take(1.0)
    queue.changed("a", 2.0)
    queue.changed("a", 3.0)
    assert queue.take(3.0) is None
    queue.done("a")
    assert queue.take(4.0) == ("a", 2.0)
    queue.done("a")
    assert queue.take(5.0) is None


def test_timers_ring_once_at_the_earliest_time_asked_for() -> None:
    queue = WorkQueue[str]()
    queue.wake("a", 9.0)
    queue.wake("a", 5.0)
    queue.wake("a", 7.0)
    assert queue.take(4.9) is None
    assert queue.next_timer() == 5.0
    assert queue.take(10.0) == ("a", 5.0)
    queue.done("a")
    assert queue.take(10.0) is None
    assert queue.next_timer() is None


def test_a_turn_answers_the_timers_set_before_it() -> None:
    queue = WorkQueue[str]()
    queue.wake("a", 5.0)
    queue.changed("a", 1.0)
    assert queue.take(1.0) == ("a", 1.0)
    queue.done("a")
    assert queue.next_timer() is None


def test_a_timer_that_rings_while_its_key_runs_is_not_lost() -> None:
    queue = WorkQueue[str]()
    queue.changed("a", 0.0)
    queue.take(0.0)
    queue.wake("a", 1.0)
    assert queue.take(2.0) is None
    queue.done("a")
    assert queue.take(2.0) == ("a", 1.0)


def test_forgetting_drops_what_waits() -> None:
    queue = WorkQueue[str]()
    queue.changed("ab", 0.0)
    queue.wake("c", 1.0)
    queue.forget()
    assert queue.take(9.0) is None


@given(st.lists(st.tuples(KEYS, st.floats(0, 1e6)), max_size=2000))
def test_timers_that_are_set_again_and_again_take_no_memory(wakes) -> None:
    queue = WorkQueue[str]()
    for key, at in wakes:
        queue.wake(key, at)
        queue.changed(key, 0.0)
        queue.done(queue.take(0.0)[0])
        queue.wake(key, at)
    assert len(queue._heap) <= 2 * len(queue._timers) + SLACK + 1


class NothingIsLost(RuleBasedStateMachine):
    """Whatever happens in whatever order: what changed is taken, after that change, and never twice at once."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WorkQueue[str]()
        self.owed: set[str] = set()
        self.running: set[str] = set()
        self.timers: dict[str, float] = {}
        self.now = 0.0

    @rule(key=KEYS)
    def change(self, key: str) -> None:
        self.queue.changed(key, self.now)
        self.owed.add(key)

    @rule(key=KEYS, delay=st.floats(0, 5))
    def set_timer(self, key: str, delay: float) -> None:
        self.queue.wake(key, self.now + delay)
        self.timers[key] = min(self.now + delay, self.timers.get(key, 1e9))

    @rule(step=st.floats(0, 3))
    def wait(self, step: float) -> None:
        self.now += step

    @rule()
    def take(self) -> None:
        due = {key for key, at in self.timers.items() if at <= self.now}
        self.owed |= due
        self.timers = {key: at for key, at in self.timers.items() if key not in due}
        taken = self.queue.take(self.now)
        if taken is None:
            assert not self.owed - self.running
            return
        key, since = taken
        assert key in self.owed
        assert key not in self.running
        assert since <= self.now
        self.owed.remove(key)
        self.timers.pop(key, None)
        self.running.add(key)

    @rule()
    def finish(self) -> None:
        if self.running:
            key = min(self.running)
            self.queue.done(key)
            self.running.remove(key)

    @invariant()
    def counts_agree(self) -> None:
        assert self.queue.running == len(self.running)


TestNothingIsLost = NothingIsLost.TestCase
