"""A circuit breaker for one pod: pure, time is an argument, states are values.

Closed: requests go there. It opens after `failures` in a row, or when at least `min_requests` of one window
failed at `error_rate`. Open: none goes there until the open time ends; it doubles with every opening in a row
and is jittered by a hash of pod and count, so that gateways and pods do not probe in step. Then exactly one
request goes as a probe: its success closes the breaker, its failure opens it for longer, and a probe that
never reports is given up after `probe_timeout` seconds.
"""

from typing import Literal

import msgspec
import xxhash

Phase = Literal["Closed", "Open", "Probing"]


class BreakerRules(msgspec.Struct, frozen=True, kw_only=True):
    """When a breaker opens and for how long. Times are seconds, `error_rate` and `jitter` shares from 0 to 1."""

    failures: int = 5
    window: float = 10.0
    min_requests: int = 10
    error_rate: float = 0.5
    open_time: float = 1.0
    max_open_time: float = 60.0
    jitter: float = 0.2
    probe_timeout: float = 30.0


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """One pod's breaker. `until` is when an open one may be probed, or a probe is given up."""

    phase: Phase = "Closed"
    consecutive: int = 0
    window_start: float = 0.0
    good: int = 0
    bad: int = 0
    until: float = 0.0
    opened: int = 0


CLOSED = Breaker()


def allows(state: Breaker, now: float) -> bool:
    """Whether a request may go to the pod now."""
    return state.phase == "Closed" or now >= state.until


def sent(state: Breaker, now: float, rules: BreakerRules) -> tuple[Breaker, bool]:
    """The breaker after a request was sent there, and whether that request is its probe."""
    if state.phase == "Closed" or now < state.until:
        return state, False
    return msgspec.structs.replace(state, phase="Probing", until=now + rules.probe_timeout), True


def succeeded(state: Breaker, now: float, rules: BreakerRules, *, probe: bool) -> Breaker:
    """The breaker after an answer that began well."""
    if state.phase != "Closed":
        return Breaker(window_start=now) if probe else state
    if now - state.window_start >= rules.window:
        return Breaker(window_start=now, good=1)
    return Breaker(window_start=state.window_start, good=state.good + 1, bad=state.bad)


def failed(state: Breaker, now: float, rules: BreakerRules, *, probe: bool, pod: str) -> Breaker:
    """The breaker after a failure of the pod; failures of requests sent before it opened change nothing more."""
    if state.phase != "Closed":
        return _opened(state, now, rules, pod) if probe else state
    counted = _failed_once_more(state, now, rules)
    requests = counted.good + counted.bad
    often = requests >= rules.min_requests and counted.bad >= rules.error_rate * requests
    return _opened(counted, now, rules, pod) if often or counted.consecutive >= rules.failures else counted


def abandoned(state: Breaker, now: float, *, probe: bool) -> Breaker:
    """The breaker after a request that its client gave up: it says nothing of the pod, and the next one may
    probe."""
    if not probe or state.phase != "Probing":
        return state
    return msgspec.structs.replace(state, phase="Open", until=now)


def suspected(state: Breaker, rules: BreakerRules) -> Breaker:
    """The breaker after another gateway's opened: the next failure seen here is enough, a success clears it."""
    if state.phase != "Closed":
        return state
    return msgspec.structs.replace(state, consecutive=max(state.consecutive, rules.failures - 1))


def cleared(state: Breaker, now: float) -> Breaker:
    """The breaker after another gateway's closed: an open one may be probed at once."""
    return msgspec.structs.replace(state, until=min(state.until, now)) if state.phase == "Open" else state


def _failed_once_more(state: Breaker, now: float, rules: BreakerRules) -> Breaker:
    consecutive = state.consecutive + 1
    if now - state.window_start >= rules.window:
        return Breaker(consecutive=consecutive, window_start=now, bad=1)
    return Breaker(consecutive=consecutive, window_start=state.window_start, good=state.good, bad=state.bad + 1)


def _opened(state: Breaker, now: float, rules: BreakerRules, pod: str) -> Breaker:
    opened = state.opened + 1
    plain = min(rules.open_time * 2.0 ** min(opened - 1, 32), rules.max_open_time)
    share = xxhash.xxh3_64_intdigest(pod.encode(), opened) / 2.0**64
    until = now + plain * (1.0 + rules.jitter * (2.0 * share - 1.0))
    return Breaker(phase="Open", until=until, opened=opened)
