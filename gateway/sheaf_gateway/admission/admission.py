"""Whether a request may enter now: admit it, let it wait, or refuse it with the reason and when to come back.

Deterministic, with time as an argument in seconds. Each Model admits as many requests at once as its ready
pods take; the rest wait in order of arrival, within the bounds that the Model's SLO sets. A Model without a
ready pod refuses at once, naming why: holding requests while it wakes fits in as another answer `Wait` here,
with the pods' arrival calling `next_waiter`.
"""

from collections import deque
from typing import Literal

import msgspec

from sheaf_gateway.admission.limits import Limits, Refusal, ScopedRate
from sheaf_gateway.fleet.view import Availability

Code = Literal[
    "rate_limit_exceeded",
    "concurrency_limit_exceeded",
    "model_at_zero",
    "model_starting",
    "queue_full",
    "queue_timeout",
]

_PRIOR_SERVICE_S = 1.0
_SMOOTHING = 0.1
_MAX_RETRY_S = 60.0
_ZERO_RETRY_S = 10.0
_STARTING_RETRY_S = 5.0


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request at the door. `tokens` is an estimate, `slots` how many requests the Model's pods take at once."""

    request_id: str
    model: str
    availability: Availability
    slots: int
    scopes: tuple[ScopedRate, ...] = ()
    tokens: float = 0.0
    max_queue: int = 1024
    max_wait: float = 30.0


class Admit(msgspec.Struct, frozen=True):
    """Go on to routing; `release` must follow."""


class Wait(msgspec.Struct, frozen=True):
    """Stay in the queue until called by `next_waiter`, at most until `deadline`; then `expire` must follow."""

    deadline: float


class Reject(msgspec.Struct, frozen=True):
    """Answer with this; `retry_after` in seconds."""

    status: Literal[429, 503]
    code: Code
    message: str
    retry_after: float


Answer = Admit | Wait | Reject


class _Gate:
    __slots__ = ("running", "service_s", "waiting")

    def __init__(self) -> None:
        self.running = 0
        self.service_s = _PRIOR_SERVICE_S
        self.waiting: deque[Ask] = deque()


class Admission:
    """The gates of all Models and the limits of all callers."""

    def __init__(self) -> None:
        self.limits = Limits()
        self._gates: dict[str, _Gate] = {}

    def decide(self, ask: Ask, now: float) -> Answer:
        """What to do with a request that arrived now."""
        refused = _unavailable(ask) or self._limited(ask, now)
        if refused is not None:
            return refused
        gate = self._gate(ask.model)
        if gate.running >= ask.slots or gate.waiting:
            return self._queue(gate, ask, now)
        self._enter(gate, ask, now)
        return Admit()

    def release(self, ask: Ask, now: float, *, used_tokens: float | None = None, service_s: float = 0.0) -> None:
        """An admitted request is over; `used_tokens` is what it really used, where that is known."""
        gate = self._gate(ask.model)
        gate.running = max(0, gate.running - 1)
        gate.service_s += _SMOOTHING * (service_s - gate.service_s)
        self.limits.finish(ask.scopes, 0.0 if used_tokens is None else used_tokens - ask.tokens, now)

    def next_waiter(self, model: str, slots: int) -> Ask | None:
        """The waiter whose turn it is, now admitted, or None while there is no room or nobody waits."""
        gate = self._gate(model)
        if not gate.waiting or gate.running >= slots:
            return None
        gate.running += 1
        return gate.waiting.popleft()

    def expire(self, ask: Ask, now: float) -> Reject:
        """Take a waiter out of the queue whose wait has ended, and say what to answer."""
        self.withdraw(ask, now)
        message = f"The request waited {ask.max_wait:g} s for `{ask.model}`, the longest that its SLO allows."
        return Reject(503, "queue_timeout", message, self._retry_after(self._gate(ask.model), ask))

    def withdraw(self, ask: Ask, now: float) -> None:
        """Take a waiter out of the queue that went away."""
        gate = self._gate(ask.model)
        if ask in gate.waiting:
            gate.waiting.remove(ask)
            self.limits.finish(ask.scopes, -ask.tokens, now)

    def running(self, model: str) -> int:
        """Requests of a Model that were admitted and are not over."""
        return self._gate(model).running

    def waiting(self, model: str) -> int:
        """Requests that wait for a Model."""
        return len(self._gate(model).waiting)

    def keep(self, models: frozenset[str]) -> None:
        """Forget Models that are gone and have nobody left."""
        self._gates = {m: gate for m, gate in self._gates.items() if m in models or gate.running or gate.waiting}

    def _limited(self, ask: Ask, now: float) -> Reject | None:
        refusal = self.limits.check(ask.scopes, ask.tokens, now)
        return None if refusal is None else _over_limit(refusal)

    def _queue(self, gate: _Gate, ask: Ask, now: float) -> Answer:
        if len(gate.waiting) >= ask.max_queue:
            message = f"`{ask.model}` is busy and {len(gate.waiting)} requests already wait for it."
            return Reject(503, "queue_full", message, self._retry_after(gate, ask))
        self.limits.start(ask.scopes, ask.tokens, now)
        gate.waiting.append(ask)
        return Wait(now + ask.max_wait)

    def _enter(self, gate: _Gate, ask: Ask, now: float) -> None:
        gate.running += 1
        self.limits.start(ask.scopes, ask.tokens, now)

    def _retry_after(self, gate: _Gate, ask: Ask) -> float:
        expected = gate.service_s * (len(gate.waiting) + 1) / max(1, ask.slots)
        return min(max(expected, 1.0), _MAX_RETRY_S)

    def _gate(self, model: str) -> _Gate:
        gate = self._gates.get(model)
        if gate is None:
            gate = self._gates[model] = _Gate()
        return gate


def _unavailable(ask: Ask) -> Reject | None:
    if ask.availability == "Ready":
        return None
    if ask.availability == "Zero":
        message = f"`{ask.model}` is declared with no replicas; raise spec.replicas of the Model to serve it."
        return Reject(503, "model_at_zero", message, _ZERO_RETRY_S)
    return Reject(503, "model_starting", f"`{ask.model}` has no ready replica yet.", _STARTING_RETRY_S)


def _over_limit(refusal: Refusal) -> Reject:
    code: Code = "concurrency_limit_exceeded" if refusal.limit == "max_concurrent" else "rate_limit_exceeded"
    words = refusal.limit.replace("_", " ")
    message = f"The limit of {refusal.bound} {words} is reached for {refusal.scope}."
    return Reject(429, code, message, max(refusal.retry_after, 0.001))
