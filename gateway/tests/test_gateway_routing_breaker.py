"""Circuit breakers and the retry budget: a sick pod is out soon, is tried by one request at a time, and retries stay bounded."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sheaf_gateway.routing.breaker import CLOSED, BreakerRules, abandoned, allows, failed, sent, succeeded
from sheaf_gateway.routing.retry import RetryBudget

QUICK = settings(max_examples=40, deadline=None)
RULES = BreakerRules()


def opened(now: float = 0.0, times: int = 1):
    state = CLOSED
    for _ in range(RULES.failures):
        state = failed(state, now, RULES, probe=False, pod="p")
    for _ in range(times - 1):
        now = state.until
        state, probe = sent(state, now, RULES)
        state = failed(state, now, RULES, probe=probe, pod="p")
    return state


def test_it_opens_after_five_failures_in_a_row_and_not_before():
    state = CLOSED
    for _ in range(4):
        state = failed(state, 0.0, RULES, probe=False, pod="p")
        assert allows(state, 0.0)
    assert succeeded(state, 0.0, RULES, probe=False).consecutive == 0
    state = failed(state, 0.0, RULES, probe=False, pod="p")
    assert not allows(state, 0.0)


def test_it_opens_on_a_high_error_rate_within_a_window():
    state = CLOSED
    for turn in range(10):
        state = (
            succeeded(state, 1.0, RULES, probe=False) if turn % 2 else failed(state, 1.0, RULES, probe=False, pod="p")
        )
        if turn < 9:
            assert state.phase == "Closed"
    state = failed(state, 1.0, RULES, probe=False, pod="p")
    assert state.phase == "Open"


def test_failures_of_an_older_window_are_forgotten():
    state = CLOSED
    for turn in range(40):
        now = turn * 3.0
        state = (
            succeeded(state, now, RULES, probe=False) if turn % 2 else failed(state, now, RULES, probe=False, pod="p")
        )
    assert state.phase == "Closed"


def test_open_times_double_up_to_a_bound_with_jitter():
    spans = []
    for times in range(1, 12):
        state = opened(times=times)
        before = opened(times=times - 1).until if times > 1 else 0.0
        spans.append(state.until - before)
    for place, span in enumerate(spans):
        plain = min(RULES.open_time * 2**place, RULES.max_open_time)
        assert plain * (1 - RULES.jitter) <= span <= plain * (1 + RULES.jitter)
    assert opened().until != failed_for("other").until


def failed_for(pod: str):
    state = CLOSED
    for _ in range(RULES.failures):
        state = failed(state, 0.0, RULES, probe=False, pod=pod)
    return state


def test_a_good_probe_closes_it_and_a_bad_one_opens_it_for_longer():
    state = opened()
    probing, probe = sent(state, state.until, RULES)
    assert probe
    assert succeeded(probing, state.until, RULES, probe=True).phase == "Closed"
    again = failed(probing, state.until, RULES, probe=True, pod="p")
    assert (again.phase, again.opened) == ("Open", 2)


def test_only_the_probe_decides_while_it_is_open():
    state = opened()
    assert succeeded(state, 0.0, RULES, probe=False) == state
    assert failed(state, 0.0, RULES, probe=False, pod="p") == state


def test_a_probe_that_was_given_up_leaves_room_for_the_next():
    state = opened()
    probing, _ = sent(state, state.until, RULES)
    assert not allows(probing, state.until)
    assert allows(abandoned(probing, state.until, probe=True), state.until)
    assert abandoned(probing, state.until, probe=False) == probing
    assert abandoned(CLOSED, 0.0, probe=True) == CLOSED
    assert allows(probing, state.until + RULES.probe_timeout)


class OneProbe(RuleBasedStateMachine):
    """Whatever happens in whatever order, at most one probe that was not given up is out at a time."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.state = CLOSED
        self.out: list[tuple[bool, float]] = []

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def send(self):
        if allows(self.state, self.now):
            self.state, probe = sent(self.state, self.now, RULES)
            self.out.append((probe, self.now))

    @rule(kind=st.sampled_from(["good", "bad", "gone"]), which=st.integers(0, 50))
    def report(self, kind, which):
        if not self.out:
            return
        probe, _ = self.out.pop(which % len(self.out))
        if kind == "good":
            self.state = succeeded(self.state, self.now, RULES, probe=probe)
        elif kind == "bad":
            self.state = failed(self.state, self.now, RULES, probe=probe, pod="p")
        else:
            self.state = abandoned(self.state, self.now, probe=probe)

    @invariant()
    def one_probe(self):
        fresh = [at for probe, at in self.out if probe and self.now < at + RULES.probe_timeout]
        if self.state.phase == "Probing":
            assert len(fresh) <= 1


TestOneProbe = OneProbe.TestCase
TestOneProbe.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)


@QUICK
@given(st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 6)), max_size=200))
def test_attempts_stay_below_a_fifth_more_than_requests_and_ten_a_second(steps):
    budget = RetryBudget()
    now, requests, retries = 0.0, 0, 0
    for wait, wanted in steps:
        now += wait
        budget.requested()
        requests += 1
        retries += sum(budget.take(now) for _ in range(wanted))
    assert retries <= 0.2 * requests + 10 * now + 10


def test_a_budget_that_was_spent_comes_back_with_time():
    budget = RetryBudget()
    assert [budget.take(0.0) for _ in range(11)] == [True] * 10 + [False]
    assert budget.take(0.1)
    assert not budget.take(0.1)


def test_who_can_wait_leaves_half_a_second_of_retries_to_those_who_cannot():
    budget = RetryBudget()
    assert [budget.take(0.0, patient=True) for _ in range(7)] == [True] * 6 + [False]
    assert [budget.take(0.0) for _ in range(5)] == [True] * 4 + [False]
    assert not budget.take(0.4, patient=True)
    assert budget.take(0.6, patient=True)


def test_requests_earn_retries_beyond_those_of_time():
    budget = RetryBudget()
    for _ in range(1_000):
        budget.requested()
    assert sum(budget.take(0.0) for _ in range(200)) == 100
