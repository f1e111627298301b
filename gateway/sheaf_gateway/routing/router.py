"""The router's memory around the pure choice: what was sent where, breakers, the prefix index, the cost models.

It is deterministic: no clock, no randomness, no I/O. The same calls with the same times give the same
decisions, in the gateway, in a test and in the simulator.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.routing import breaker as circuit
from sheaf_gateway.routing.blocks import NOTHING, Depth
from sheaf_gateway.routing.breaker import Breaker, BreakerRules
from sheaf_gateway.routing.choose import Decision, PodFacts, Standing, choose
from sheaf_gateway.routing.cost import BYTES_PER_TOKEN, Coefficients, CostModel, Residency, Work, compute, pairs, tokens
from sheaf_gateway.routing.index import PodKey, PrefixIndex
from sheaf_gateway.routing.prefix import BLOCK
from sheaf_gateway.routing.retry import RetryBudget


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What routing needs of a request: whose prefix (`chain`, see `prefix`), how long, for which adapter.

    `exact` says that `prompt`, which the chain is of, are the very bytes that the engine will compute (see `form`).
    """

    request_id: str
    model: str
    adapter: str | None = None
    digest: str = ""
    chain: list[int] = []
    prompt_bytes: int = 0
    exact: bool = False
    prompt: bytes = b""


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What one pod of a pool holds: adapters in one batch, and tokens of KV cache; 0 where it is not known."""

    slots: int = 0
    kv_tokens: int = 0


UNKNOWN = Capacity()
_MOST_DONE = 0.9
_SETTLE_S = 0.5
_MOST_UNSETTLED = 65_536


class Prefill(NamedTuple):
    """Prompt work: tokens to compute, and (token, token it attends to) pairs."""

    tokens: float = 0.0
    pairs: float = 0.0


_NOTHING = Prefill()


class Ticket(msgspec.Struct):
    """One attempt on one pod, from the moment it was sent. Times are seconds, tokens estimates.

    `ahead` are the tokens that had to be computed before its own, `ahead_pairs` likewise; `held` the tokens that it
    keeps in the KV cache; `clear` whether nothing but prefill stood before it, so that its time teaches prices.
    `cached` are the tokens of its prompt that the pod should have; `chain` is what its events will tell of, if they do.
    """

    pod: str
    model: str
    probe: bool
    sent_at: float
    tokens: float
    ahead: float
    answered: bool = False
    number: int = 0
    adapter: str | None = None
    held: float = 0.0
    pairs: float = 0.0
    ahead_pairs: float = 0.0
    clear: bool = True
    cached: int = 0
    chain: list[int] = []
    epoch: int = 0


class PodLedger(msgspec.Struct):
    """What this gateway has under way on a pod: attempts, and prompt work that was sent but not answered yet.

    `queued` has that work by ticket, in order; `since` is when its first entry came to be the first. `adapters` counts
    attempts by adapter, `held_tokens` what all of them keep in the KV cache.
    """

    running: int = 0
    pending_tokens: float = 0.0
    pending_pairs: float = 0.0
    held_tokens: float = 0.0
    since: float = 0.0
    breaker: Breaker = circuit.CLOSED
    queued: dict[int, Prefill] = {}
    adapters: dict[str, int] = {}

    def ahead(self, now: float, price: Coefficients) -> Prefill:
        """The work before a request that came now: what is queued, less what the first of it must have done by now."""
        if not self.queued:
            return _NOTHING if not self.pending_tokens else Prefill(self.pending_tokens, self.pending_pairs)
        first = next(iter(self.queued.values()))
        expected = max(compute(first.tokens, first.pairs, price), 1e-6)
        done = min(_MOST_DONE, (now - self.since) * 1000.0 / expected)
        return Prefill(self.pending_tokens - done * first.tokens, self.pending_pairs - done * first.pairs)

    def slots_short(self, adapter: str | None, slots: int) -> int:
        """Adapters that must leave before `adapter` gets one of so many slots (0: unknown)."""
        if not slots or adapter is None or adapter in self.adapters:
            return 0
        return max(0, len(self.adapters) + 1 - slots)


class Router:
    """Chooses pods and learns from what became of its choices."""

    def __init__(self, *, rules: BreakerRules | None = None, max_blocks: int = 262_144) -> None:
        self.rules = rules or BreakerRules()
        self.index = PrefixIndex(max_blocks)
        self.budget = RetryBudget()
        self.ledgers: dict[str, PodLedger] = {}
        self.models: dict[str, CostModel] = {}
        self.capacities: dict[str, Capacity] = {}
        self._tickets = 0
        self._unsettled: deque[tuple[float, Ticket]] = deque(maxlen=_MOST_UNSETTLED)

    def decide(self, ask: Ask, pods: Sequence[Pod], now: float, tried: frozenset[str] = frozenset()) -> Decision:
        """Where the request goes among the pods of its Model, leaving out those tried before."""
        matched = self.index.match(ask.chain, [(pod.name, pod.epoch) for pod in pods])
        price, capacity = self.model(ask.model).coefficients, self.capacities.get(ask.model, UNKNOWN)
        facts = []
        for pod in pods:
            ledger = self.ledger(pod.name)
            cached = min(matched.get((pod.name, pod.epoch), 0) * BLOCK, ask.prompt_bytes)
            work = _work(ask, pod, ledger, cached, capacity, ledger.ahead(now, price))
            facts.append(PodFacts(pod.name, _standing(pod, ledger, now, tried), cached, work))
        return choose(facts, price, ask.request_id)

    def sent(self, ask: Ask, decision: Decision, pod: Pod, now: float) -> Ticket:
        """Account for an attempt that starts now on the chosen pod."""
        self._settle(now)
        ledger, key = self.ledger(pod.name), (pod.name, pod.epoch)
        cached = self._cached(ask, decision, key)
        own = _own(ask, cached.end)
        ahead = ledger.ahead(now, self.model(ask.model).coefficients)
        capacity = self.capacities.get(ask.model, UNKNOWN)
        clear = not ledger.slots_short(ask.adapter, capacity.slots)
        ledger.breaker, probe = circuit.sent(ledger.breaker, now, self.rules)
        self._tickets += 1
        ticket = Ticket(
            pod.name,
            ask.model,
            probe,
            now,
            own.tokens,
            ahead.tokens,
            number=self._tickets,
            adapter=ask.adapter,
            held=tokens(ask.prompt_bytes),
            pairs=own.pairs,
            ahead_pairs=ahead.pairs,
            clear=clear,
            cached=cached.tokens,
            chain=ask.chain if ask.exact and key in self.index.announced else [],
            epoch=pod.epoch,
        )
        _enter(ledger, ticket, now)
        self.index.record(ask.chain, key, int(capacity.kv_tokens * BYTES_PER_TOKEN) // BLOCK)
        return ticket

    def answered(self, ticket: Ticket, now: float, *, streamed: bool) -> None:
        """The pod began to answer well; a streamed answer's beginning is its first token."""
        ledger = self.ledger(ticket.pod)
        self._prefilled(ledger, ticket, now)
        if ticket.chain:
            self._unsettled.append((now + _SETTLE_S, ticket))
        ledger.breaker = circuit.succeeded(ledger.breaker, now, self.rules, probe=ticket.probe)
        if streamed and ticket.clear:
            work, seen = ticket.tokens + ticket.ahead, (now - ticket.sent_at) * 1000.0
            self.model(ticket.model).observe_ttft(work, seen, ticket.pairs + ticket.ahead_pairs)

    def failed(self, ticket: Ticket, now: float) -> None:
        """The pod failed this attempt."""
        ledger = self.ledger(ticket.pod)
        ledger.breaker = circuit.failed(ledger.breaker, now, self.rules, probe=ticket.probe, pod=ticket.pod)

    def abandoned(self, ticket: Ticket, now: float) -> None:
        """The attempt was given up for no fault of the pod."""
        ledger = self.ledger(ticket.pod)
        ledger.breaker = circuit.abandoned(ledger.breaker, now, probe=ticket.probe)

    def finished(self, ticket: Ticket) -> None:
        """The attempt is over, however it went; call once."""
        ledger = self.ledger(ticket.pod)
        if ticket.chain and not ticket.answered:
            self.index.settle(ticket.chain, (ticket.pod, ticket.epoch), computed=False)
        self._prefilled(ledger, ticket, ledger.since)
        _leave(ledger, ticket)

    def keep(self, pods: Sequence[Pod]) -> None:
        """Forget pods, epochs and pools that are gone."""
        self.index.keep((pod.name, pod.epoch) for pod in pods)
        names = {pod.name for pod in pods}
        self.ledgers = {name: ledger for name, ledger in self.ledgers.items() if name in names or ledger.running}
        pools = {pod.model for pod in pods}
        self.models = {name: model for name, model in self.models.items() if name in pools}

    def ledger(self, pod: str) -> PodLedger:
        """The accounts of a pod."""
        found = self.ledgers.get(pod)
        if found is None:
            found = self.ledgers[pod] = PodLedger()
        return found

    def model(self, name: str) -> CostModel:
        """The cost model of a pool, which is all pods of one Model."""
        found = self.models.get(name)
        if found is None:
            found = self.models[name] = CostModel()
        return found

    def _cached(self, ask: Ask, decision: Decision, pod: PodKey) -> Depth:
        """What the pod should have of the prompt: to the KV block where its engine says so, else by hash blocks."""
        chosen = decision.chosen()
        predicted = chosen.cached_bytes if chosen else 0
        said = self.index.depth(ask.chain, ask.prompt, pod) if ask.exact else NOTHING
        if said.tokens and said.end + BLOCK > predicted:
            return said
        return Depth(int(tokens(predicted)), predicted)

    def _settle(self, now: float) -> None:
        unsettled = self._unsettled
        while unsettled and unsettled[0][0] <= now:
            ticket = unsettled.popleft()[1]
            self.index.settle(ticket.chain, (ticket.pod, ticket.epoch), computed=True)

    def _prefilled(self, ledger: PodLedger, ticket: Ticket, now: float) -> None:
        if not ticket.answered:
            ticket.answered = True
            if next(iter(ledger.queued), None) == ticket.number:
                ledger.since = now
            ledger.queued.pop(ticket.number, None)
            ledger.pending_tokens = max(0.0, ledger.pending_tokens - ticket.tokens)
            ledger.pending_pairs = max(0.0, ledger.pending_pairs - ticket.pairs)


def _work(ask: Ask, pod: Pod, ledger: PodLedger, cached: int, capacity: Capacity, ahead: Prefill) -> Work:
    own = _own(ask, cached)
    over = ledger.held_tokens + tokens(ask.prompt_bytes) - capacity.kv_tokens if capacity.kv_tokens else 0.0
    return Work(
        own.tokens,
        ahead.tokens,
        ledger.running + pod.foreign_running,
        pod.foreign_waiting,
        pod.kv_usage,
        _residency(ask, pod),
        own.pairs,
        ahead.pairs,
        len(ledger.queued),
        ledger.slots_short(ask.adapter, capacity.slots),
        max(0.0, over),
    )


def _own(ask: Ask, cached_bytes: int) -> Prefill:
    uncached = tokens(ask.prompt_bytes - cached_bytes)
    return Prefill(uncached, pairs(uncached, tokens(cached_bytes)))


def _enter(ledger: PodLedger, ticket: Ticket, now: float) -> None:
    if not ledger.queued:
        ledger.since = now
    ledger.running += 1
    ledger.queued[ticket.number] = Prefill(ticket.tokens, ticket.pairs)
    ledger.pending_tokens += ticket.tokens
    ledger.pending_pairs += ticket.pairs
    ledger.held_tokens += ticket.held
    if ticket.adapter is not None:
        ledger.adapters[ticket.adapter] = ledger.adapters.get(ticket.adapter, 0) + 1


def _leave(ledger: PodLedger, ticket: Ticket) -> None:
    ledger.running = max(0, ledger.running - 1)
    ledger.held_tokens = max(0.0, ledger.held_tokens - ticket.held)
    left = ledger.adapters.get(ticket.adapter or "", 0) - 1
    if left > 0:
        ledger.adapters[ticket.adapter or ""] = left
    else:
        ledger.adapters.pop(ticket.adapter or "", None)


def _standing(pod: Pod, ledger: PodLedger, now: float, tried: frozenset[str]) -> Standing:
    if pod.name in tried:
        return "Tried"
    if not pod.ready:
        return "NotReady"
    if pod.draining:
        return "Draining"
    return "Healthy" if circuit.allows(ledger.breaker, now) else "Open"


def _residency(ask: Ask, pod: Pod) -> Residency:
    if pod.holds(ask.adapter, ask.digest):
        return "Resident"
    return "Loading" if ask.adapter in pod.loading else "Absent"
