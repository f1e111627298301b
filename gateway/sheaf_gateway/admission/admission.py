"""Whether a request may enter now: admit it, let it wait, or refuse it with the reason and when to come back.

Deterministic, with time as an argument in seconds. Each Model admits as many requests at once as its pods take; the
rest wait, within bounds, in the order of `line`. In this order a request is

1. refused where a limit of its key or tenant is reached (429),
2. held where the Model has no ready pod but will have one: so many and so long, then 503,
3. admitted where there is room and nobody waits,
4. refused early where it would have to wait and its predicted time to first token is beyond the longest that the SLO
   promises (429, after Clockwork and Mooncake: a late answer nobody waits for costs others theirs); the prediction is
   its place in the line times the time that a slot takes for one request, plus the usual time to a first token,
5. refused where the queue is full, unless another makes room for it (503),
6. else it waits, at most `max_wait` (then 503).

Every refusal says when it is worth coming back. What other gateways let in and have waiting counts where it is known
(`others`, see `admission.others`).
"""

from typing import Literal

import msgspec

from sheaf_gateway.admission.gate import Gate
from sheaf_gateway.admission.limits import Limits, Refusal
from sheaf_gateway.admission.line import BATCH, LATE, Waiter
from sheaf_gateway.admission.others import Others, room
from sheaf_gateway.admission.terms import Ask, Measure, Work

Code = Literal[
    "rate_limit_exceeded",
    "concurrency_limit_exceeded",
    "slo_unattainable",
    "model_at_zero",
    "model_starting",
    "queue_full",
    "queue_timeout",
]

_MAX_RETRY_S = 60.0
_ZERO_RETRY_S = 10.0
_STARTING_RETRY_S = 5.0


class DoorRules(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of holding requests for a Model without a ready pod: how many for each Model, how many seconds."""

    max_held: int = 256
    hold_s: float = 120.0


class Admit(msgspec.Struct, frozen=True):
    """Go on to routing; `release` must follow."""


class Reject(msgspec.Struct, frozen=True):
    """Answer with this; `retry_after` in seconds, `reason` in short for programs."""

    status: Literal[429, 503]
    code: Code
    message: str
    retry_after: float
    reason: str = ""


class Wait(msgspec.Struct, frozen=True):
    """Stay in the queue until called by `next_waiter`, at most until `deadline`; then `expire` must follow.

    `displaced` is a request that made room and is to be answered with `refusal`.
    """

    deadline: float
    displaced: Ask | None = None
    refusal: Reject | None = None


class Demand(msgspec.Struct, frozen=True):
    """What is asked of a Model at one moment. `held` wait for a first pod; the rest of those who wait are `waiting`,
    of whom `late` will miss their promise and `batch` are Batch; times in seconds, rates in requests a second. What a
    limit of its caller refuses is no demand. Tokens are means of late requests: whole prompts, what of them had to be
    computed with its squared coefficient of variation, and answers. `quiet_s` is for how long nobody has been there;
    None where nobody ever was."""

    running: int = 0
    waiting: int = 0
    held: int = 0
    late: int = 0
    batch: int = 0
    oldest_wait_s: float = 0.0
    arrival_rate: float = 0.0
    service_s: float = 0.0
    refused: int = 0
    prompt_tokens: float = 0.0
    uncached_tokens: float = 0.0
    uncached_spread: float = 0.0
    output_tokens: float = 0.0
    context_tokens: float = 0.0
    context_spread: float = 0.0
    quiet_s: float | None = None


Answer = Admit | Wait | Reject

_ADMIT = Admit()


class Admission:
    """The gates of all Models and the limits of all callers."""

    def __init__(self, rules: DoorRules | None = None) -> None:
        self.rules = rules or DoorRules()
        self.limits = Limits()
        self.others: dict[str, Others] = {}
        self._gates: dict[str, Gate] = {}
        self._stirred: set[str] | None = None

    def decide(self, ask: Ask, now: float, measure: Measure | None = None) -> Answer:
        """What to do with a request that arrived now; `measure` is asked only where it cannot enter at once."""
        gate = self._gate(ask)
        if ask.model in self.others:
            ask = msgspec.structs.replace(ask, slots=self._share(gate, ask.model, ask.slots, 1))
        fits = gate.let_in(ask.slots) and not gate.line.size and ask.availability == "Ready"
        refusal = (self.limits.take if fits else self.limits.check)(ask.scopes, ask.tokens, now) if ask.scopes else None
        if refusal is not None:
            return over_limit(refusal)
        gate.arrivals.count(now)
        gate.busy_at = now
        if fits:
            return self._enter(gate, ask)
        asleep = _asleep(ask)
        return self._queue(gate, ask, measure, now) if asleep is None else _counted(gate, asleep)

    def routed(self, ask: Ask, uncached: float) -> None:
        """An admitted request goes to a pod that has all but `uncached` tokens of its prompt."""
        gate = self._gates.get(ask.model)
        bill = gate.bills.get(ask.request_id) if gate is not None else None
        if gate is not None and bill is not None:
            gate.charge(bill, uncached, bill.output)
            self._stir(ask.model)

    def produced(self, ask: Ask, output: float) -> None:
        """An admitted request has `output` tokens so far."""
        gate = self._gates.get(ask.model)
        bill = gate.bills.get(ask.request_id) if gate is not None else None
        if gate is not None and bill is not None:
            gate.charge(bill, bill.prompt, max(bill.output, output))
            self._stir(ask.model)

    def release(
        self,
        ask: Ask,
        now: float,
        *,
        used_tokens: float | None = None,
        uncached: float | None = None,
        output: float | None = None,
        service_s: float | None = None,
        first_s: float | None = None,
    ) -> None:
        """An admitted request is over; nothing happens where it was not admitted, or is over already.

        Args:
            ask: the request.
            now: the time.
            used_tokens: what limits are charged in all, where it is known.
            uncached: prompt tokens that were computed, where it is known.
            output: tokens that were produced, where it is known.
            service_s: seconds from admission to the end, where it went well.
            first_s: seconds from admission to the first token, where there was one.
        """
        gate = self._gate(ask)
        bill = gate.bills.pop(ask.request_id, None)
        if bill is None:
            return
        gate.busy_at = now
        gate.learn(bill, service_s, first_s)
        prompt = bill.prompt if uncached is None else uncached
        gate.charge(bill, prompt, bill.output if output is None else output)
        if service_s is not None:
            gate.sizes.learn(ask.prompt, prompt, bill.output)
        if ask.scopes:
            self.limits.finish(ask.scopes, 0.0 if used_tokens is None else used_tokens - ask.tokens, now)

    def next_waiter(self, model: str, slots: int, now: float) -> Ask | None:
        """The waiter whose turn it is, now admitted, or None while there is no room or nobody waits."""
        gate = self._gates.get(model)
        if gate is None or not gate.let_in(self._share(gate, model, slots, 0) if self.others else slots):
            return None
        waiter = gate.line.next(now, gate.first_s)
        if waiter is None:
            return None
        gate.enter(waiter.ask, waiter.tenant, waiter.work.uncached)
        self._stir(model)
        return waiter.ask

    def expire(self, ask: Ask, now: float) -> Reject:
        """Take a waiter out of the queue whose wait has ended, and say what to answer."""
        self.withdraw(ask, now)
        gate = self._gate(ask)
        gate.refused += 1
        if ask.availability != "Ready":
            return _held_in_vain(ask, f"it was held for {self.rules.hold_s:g} s")
        message = f"The request waited {ask.max_wait:g} s for `{ask.model}`, the longest that its SLO allows."
        return Reject(503, "queue_timeout", message, _retry_after(gate, ask), f"queue_timeout; waited={ask.max_wait:g}")

    def withdraw(self, ask: Ask, now: float) -> None:
        """Take a waiter out of the queue that went away."""
        gate = self._gates.get(ask.model)
        if gate is not None and gate.line.leave(ask.request_id) is not None:
            gate.busy_at = now
            self._stir(ask.model)
            self.limits.finish(ask.scopes, -ask.tokens, now)

    def running(self, model: str) -> int:
        """Requests of a Model that were admitted and are not over."""
        gate = self._gates.get(model)
        return 0 if gate is None else gate.running

    def waiting(self, model: str) -> int:
        """Requests that wait for a Model, or are held for it."""
        gate = self._gates.get(model)
        return 0 if gate is None else gate.line.size

    def demand(self, model: str, now: float, *, ready: bool) -> Demand:
        """What is asked of a Model; `ready` says whether it has a pod that takes requests."""
        gate = self._gates.get(model)
        if gate is None:
            return Demand()
        line, waits = gate.line, gate.line.size
        return Demand(
            running=gate.running,
            waiting=waits if ready else 0,
            held=0 if ready else waits,
            late=line.count(LATE),
            batch=line.count(BATCH),
            oldest_wait_s=max((now - waiter.arrived for waiter in line), default=0.0),
            arrival_rate=gate.arrivals.read(now),
            service_s=gate.service_s if gate.learnt else 0.0,
            refused=gate.refused,
            prompt_tokens=gate.sizes.prompt,
            uncached_tokens=gate.sizes.uncached,
            uncached_spread=gate.sizes.spread,
            output_tokens=gate.sizes.output,
            context_tokens=gate.sizes.context,
            context_spread=gate.sizes.context_spread,
            quiet_s=0.0 if gate.running or waits else max(0.0, now - gate.busy_at),
        )

    def served(self, model: str) -> dict[str, float]:
        """What each tenant of a Model was served since its books began, in virtual tokens."""
        gate = self._gates.get(model)
        return {} if gate is None else {name: tenant.served for name, tenant in gate.line.books.tenants.items()}

    # What gateways tell each other.

    def tell(self, *, on: bool) -> None:
        """Note from now on what changes, for `news`; or note nothing any more."""
        self._stirred = set() if on else None
        self.limits.tell(on=on)
        for gate in self._gates.values():
            gate.tell(on=on)

    def stir(self) -> None:
        """Let `news` tell of every Model again."""
        if self._stirred is not None:
            self._stirred.update(self._gates)

    def news(self) -> tuple[list[tuple[str, int, int]], list[tuple[str, str, float, float]]]:
        """What changed since the last time: (Model, requests let in, requests that wait) and (Model, tenant, what it
        was served here since the beginning, its weight)."""
        doors, service = [], []
        for model in self._stirred or ():
            gate = self._gates.get(model)
            doors.append((model, self.running(model), self.waiting(model)))
            service += [(model, *told) for told in gate.told()] if gate is not None else []
        if self._stirred:
            self._stirred.clear()
        return doors, service

    def hear(self, model: str, tenant: str, cost: float, weight: float) -> None:
        """Another gateway served a tenant this much more; nothing is kept of Models that nobody asked for here."""
        gate = self._gates.get(model)
        if gate is not None:
            books = gate.line.books
            books.hear(books.tenants.get(tenant) or books.tenant(tenant, weight), cost)

    def keep(self, models: frozenset[str]) -> None:
        """Forget Models that are gone and have nobody left."""
        self._gates = {m: gate for m, gate in self._gates.items() if m in models or gate.running or gate.line.size}

    def _enter(self, gate: Gate, ask: Ask) -> Answer:
        books = gate.line.books
        tenant = books.tenant(ask.tenant, ask.terms.weights.get(ask.tenant, 1))
        if not books.plain:
            books.arrive(tenant)
        gate.enter(ask, tenant, ask.prompt)
        return _ADMIT

    def _queue(self, gate: Gate, ask: Ask, measure: Measure | None, now: float) -> Answer:
        measure = measure or (lambda: Work(uncached=ask.prompt))
        if ask.availability != "Ready":
            return self._hold(gate, ask, measure, now)
        refused = _too_late(gate, ask, measure)
        if refused is not None:
            return _counted(gate, refused)
        if gate.line.size < ask.max_queue:
            return self._join(gate, ask, measure, now, now + ask.max_wait)
        victim = gate.line.victim(ask) if ask.max_queue else None
        if victim is None:
            return _counted(gate, _full(gate, ask))
        return self._replace(gate, victim, ask, measure, now)

    def _hold(self, gate: Gate, ask: Ask, measure: Measure, now: float) -> Answer:
        if gate.line.size >= self.rules.max_held:
            return _counted(gate, _held_in_vain(ask, f"{gate.line.size} requests are held for it already"))
        return self._join(gate, ask, measure, now, now + self.rules.hold_s)

    def _join(self, gate: Gate, ask: Ask, measure: Measure, now: float, deadline: float) -> Wait:
        self.limits.start(ask.scopes, ask.tokens, now)
        gate.line.join(ask, measure, now)
        return Wait(deadline)

    def _replace(self, gate: Gate, victim: Waiter, ask: Ask, measure: Measure, now: float) -> Wait:
        gate.refused += 1
        self.withdraw(victim.ask, now)
        joined = self._join(gate, ask, measure, now, now + ask.max_wait)
        return Wait(joined.deadline, victim.ask, _full(gate, victim.ask))

    def _gate(self, ask: Ask) -> Gate:
        gate = self._gates.get(ask.model)
        if gate is None:
            gate = self._gates[ask.model] = Gate(ask.terms.policy)
            gate.tell(on=self._stirred is not None)
        elif ask.terms.policy != gate.line.books.policy:
            gate.adopt(ask.terms)
        if self._stirred is not None:
            self._stirred.add(ask.model)
        return gate

    def _stir(self, model: str) -> None:
        if self._stirred is not None:
            self._stirred.add(model)

    def _share(self, gate: Gate, model: str, slots: int, coming: int) -> int:
        others = self.others.get(model)
        return slots if others is None else room(slots, gate.running, gate.line.size + coming, others)


def _counted(gate: Gate, refused: Reject) -> Reject:
    gate.refused += 1
    return refused


def over_limit(refusal: Refusal) -> Reject:
    """What to answer where a limit is reached."""
    code: Code = "concurrency_limit_exceeded" if refusal.limit == "max_concurrent" else "rate_limit_exceeded"
    words = refusal.limit.replace("_", " ")
    message = f"The limit of {refusal.bound} {words} is reached for {refusal.scope}."
    return Reject(429, code, message, max(refusal.retry_after, 0.001), f"{code}; limit={refusal.limit}")


def _asleep(ask: Ask) -> Reject | None:
    if ask.availability != "Zero" or ask.terms.wakes:
        return None
    message = f"`{ask.model}` is declared with no replicas; raise spec.replicas of the Model to serve it."
    return Reject(503, "model_at_zero", message, _ZERO_RETRY_S, "model_at_zero")


def _held_in_vain(ask: Ask, why: str) -> Reject:
    if ask.availability == "Zero":
        message = f"`{ask.model}` is waking from zero replicas, and {why}."
        return Reject(503, "model_at_zero", message, _ZERO_RETRY_S, "model_at_zero")
    message = f"`{ask.model}` has no ready replica yet, and {why}."
    return Reject(503, "model_starting", message, _STARTING_RETRY_S, "model_starting")


def _too_late(gate: Gate, ask: Ask, measure: Measure) -> Reject | None:
    limit = ask.terms.ttft_limit
    if limit is None or ask.batch or not gate.learnt:
        return None
    places = gate.line.places(ask.tenant, ask.terms.weights.get(ask.tenant, 1))
    predicted = gate.expected_wait(places, ask.slots) + gate.expected_first(measure())
    if predicted <= limit:
        return None
    message = f"`{ask.model}` would begin its answer after about {predicted:.3g} s; its SLO promises {limit:g} s."
    reason = f"slo_unattainable; predicted_ttft={predicted:.3f}; promised_ttft={limit:.3f}"
    return Reject(429, "slo_unattainable", message, _bounded(predicted - limit), reason)


def _full(gate: Gate, ask: Ask) -> Reject:
    message = f"`{ask.model}` is busy and {gate.line.size} requests already wait for it."
    return Reject(503, "queue_full", message, _retry_after(gate, ask), f"queue_full; waiting={gate.line.size}")


def _retry_after(gate: Gate, ask: Ask) -> float:
    return _bounded(gate.expected_wait(gate.line.size + 1, ask.slots))


def _bounded(seconds: float) -> float:
    return min(max(seconds, 1.0), _MAX_RETRY_S)
