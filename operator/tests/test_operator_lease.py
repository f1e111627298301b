"""One writer: two never act at once, a dead one is replaced in time, a clean end hands over at once. Time is simulated."""

import random
from dataclasses import dataclass, field

import pytest
from sheaf_operator.handlers.lease import (
    DURATION,
    POLL,
    TRUST,
    Record,
    Standing,
    Wish,
    holds,
    released,
    seen,
    wish,
    written,
)


@dataclass
class Server:
    """The Lease behind optimistic locking."""

    record: Record | None = None
    version: int = 0

    def write(self, before: Record | None, holder: str, now: float, duration: float = DURATION) -> Record | None:
        """The record as written, or None where somebody was quicker."""
        if before != self.record:
            return None
        self.version += 1
        self.record = Record(holder, f"{now}", f"{self.version}", duration)
        return self.record


@dataclass
class Candidate:
    """A process whose clock began at `skew` and whose calls take a while; it may be cut off or dead."""

    name: str
    skew: float
    standing: Standing = field(init=False)
    next_at: float = 0.0
    cut_off: bool = False
    dead: bool = False

    def __post_init__(self) -> None:
        self.standing = Standing(self.name)

    def acts(self, now: float) -> bool:
        return not self.dead and holds(self.standing, now + self.skew)

    def step(self, server: Server, now: float, latency: float) -> None:
        """Look or write once; the answer comes `latency` later, trusted from when it was asked."""
        mine = now + self.skew
        if self.cut_off:
            self.next_at = now + 1.0
            return
        if not holds(self.standing, mine):
            self.standing = seen(self.standing, server.record, mine)
        wanted = wish(self.standing, mine)
        if wanted.do == "wait":
            self.next_at = now + max(0.05, wanted.seconds)
            return
        record = server.write(self.standing.record, self.name, now + latency)
        if record is None:
            self.standing = seen(self.standing, server.record, mine)
        else:
            self.standing = written(self.standing, record, mine)
        self.next_at = now + latency + 0.05


@pytest.mark.parametrize("seed", range(60))
def test_two_never_act_at_once_and_somebody_soon_does(seed: int) -> None:
    dice = random.Random(seed)
    server = Server()
    candidates = [Candidate(f"c{index}", dice.uniform(0, 1e6)) for index in range(3)]
    now, silent_since = 0.0, 0.0
    for _ in range(6000):
        now += 0.05
        for one in candidates:
            if dice.random() < 0.002:
                one.cut_off = not one.cut_off
            if not one.dead and now >= one.next_at:
                one.step(server, now, dice.uniform(0, 1.5))
        acting = [one.name for one in candidates if one.acts(now)]
        assert len(acting) <= 1, f"seed {seed}, at {now:.2f}: {acting}"
        if acting or all(one.cut_off for one in candidates):
            silent_since = now
        reachable = [one for one in candidates if not one.cut_off]
        if len(reachable) < 3:
            silent_since = max(silent_since, now - 5.0)
        assert now - silent_since < 20.0, f"seed {seed}: nobody acts at {now:.2f}"


def test_a_killed_holder_is_replaced_within_fifteen_seconds() -> None:
    server = Server()
    first, second = Candidate("first", 0.0), Candidate("second", 500.0)
    now = 0.0
    while now < 30.0:
        now += 0.05
        for one in (first, second):
            if now >= one.next_at:
                one.step(server, now, 0.2)
    assert first.acts(now)
    first.dead = True
    killed = now
    while not second.acts(now):
        now += 0.05
        if now >= second.next_at:
            second.step(server, now, 0.2)
    assert DURATION - POLL <= now - killed < 15.0


def test_a_free_or_absent_lease_is_taken_at_once() -> None:
    me = Standing("me")
    assert wish(me, 5.0) == Wish("create")
    assert wish(seen(me, Record("", "", "1", 1.0), 5.0), 5.0) == Wish("take")


def test_the_holder_renews_in_time_and_trusts_itself_only_from_when_it_asked() -> None:
    record = Record("me", "", "1")
    mine = written(Standing("me"), record, asked_at=100.0)
    assert wish(mine, 100.5) == Wish("wait", POLL - 0.5)
    assert wish(mine, 100.0 + POLL) == Wish("renew")
    assert holds(mine, 100.0 + TRUST - 0.1)
    assert not holds(mine, 100.0 + TRUST)


def test_one_that_could_not_renew_acts_no_more_but_may_renew_what_nobody_took() -> None:
    record = Record("me", "", "1")
    mine = written(Standing("me"), record, asked_at=0.0)
    assert wish(mine, 50.0) == Wish("renew")
    assert not holds(mine, 50.0)
    other = seen(mine, Record("other", "", "2"), 50.0)
    assert wish(other, 50.0) == Wish("wait", POLL)


def test_a_renewal_seen_again_is_no_news() -> None:
    record = Record("other", "", "1")
    standing = seen(Standing("me"), record, 10.0)
    assert seen(standing, record, 19.0) == standing
    assert wish(standing, 19.5) == Wish("wait", 0.5)
    assert wish(standing, 20.0) == Wish("take")


def test_one_that_let_go_acts_no_more() -> None:
    mine = written(Standing("me"), Record("me", "", "1"), asked_at=0.0)
    assert not holds(released(mine), 1.0)
