"""The router's memory around the pure choice: what was sent where, breakers, the prefix index, the cost models.

It is deterministic: no clock, no randomness, no I/O. The same calls with the same times give the same
decisions, in the gateway, in a test and in the simulator.
"""

from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.routing import breaker as circuit
from sheaf_gateway.routing.blocks import NOTHING, Depth
from sheaf_gateway.routing.breaker import Breaker, BreakerRules
from sheaf_gateway.routing.choose import Decision, PodFacts, Standing, cheapest, choose
from sheaf_gateway.routing.cost import BYTES_PER_TOKEN, Coefficients, CostModel, Work, pairs, tokens
from sheaf_gateway.routing.index import PodKey, PrefixIndex
from sheaf_gateway.routing.ledger import (
    PodLedger,
    Prefill,
    Ticket,
    await_word,
    enter,
    expect_none,
    leave,
    prefilled,
)
from sheaf_gateway.routing.prefix import BLOCK
from sheaf_gateway.routing.retry import RetryBudget
from sheaf_gateway.routing.sessions import Counted, Sessions, Turn, after
from sheaf_gateway.routing.silence import granted_ms, late_ms, overdue_ms
from sheaf_gateway.routing.teller import Teller
from sheaf_gateway.routing.weigh import NOTHING_TOLD, Group, residency, weigh


class Ask(msgspec.Struct, frozen=True):
    """What routing needs of a request: whose prefix (`chain`, see `prefix`), how long, for which adapter.

    `exact` says that `prompt`, which the chain is of, are the very bytes that the engine will compute (see `form`);
    `streams` that the answer comes piece by piece; `session` names the caller's session (see `sessions`), 0: none.
    """

    request_id: str
    model: str
    adapter: str | None = None
    digest: str = ""
    chain: list[int] = []
    prompt_bytes: int = 0
    exact: bool = False
    prompt: bytes = b""
    streams: bool = True
    session: int = 0


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What one pod of a pool holds: adapters in one batch, and tokens of KV cache; 0 where it is not known."""

    slots: int = 0
    kv_tokens: int = 0


UNKNOWN = Capacity()
NO_CHAIN: list[int] = []
_NOT_YET = False
_SETTLE_S = 0.5
_MOST_UNSETTLED = 65_536


class Router:
    """Chooses pods and learns from what became of its choices.

    The ledgers also have what other gateways tell of their attempts (`join`, `move_on`, `part`); nothing is learnt from
    those.
    """

    def __init__(
        self, *, rules: BreakerRules | None = None, max_blocks: int = 262_144, prior: Coefficients | None = None
    ) -> None:
        self.rules = rules or BreakerRules()
        self.index = PrefixIndex(max_blocks)
        self.sessions = Sessions()
        self.budget = RetryBudget()
        self.ledgers: dict[str, PodLedger] = {}
        self.models: dict[str, CostModel] = {}
        self.capacities: dict[str, Capacity] = {}
        self.teller: Teller | None = None
        self._prior = prior
        self._tickets = 0
        self._unsettled: deque[tuple[float, Ticket]] = deque(maxlen=_MOST_UNSETTLED)
        self._groups: dict[str, Group] = {}

    def decide(self, ask: Ask, pods: Sequence[Pod], now: float, tried: frozenset[str] = frozenset()) -> Decision:
        """Where the request goes among the pods of its Model, leaving out those tried before."""
        group, price = self._group(ask.model, pods), self.model(ask.model).coefficients
        if group.plain and not tried:
            capacity = self.capacities.get(ask.model, UNKNOWN)
            matched = self.index.depths(ask.chain, group.histories, group.keys)
            told = NOTHING_TOLD
            if ask.session:
                matched, told = self._with_session(ask, group, matched, now)
            found = weigh(
                group,
                matched,
                ask.prompt_bytes,
                ask.adapter,
                ask.digest,
                price,
                now,
                capacity.slots,
                capacity.kv_tokens,
                told,
            )
            if found is not None:
                weighed, totals = found
                place = cheapest(group.names, totals, ask.request_id) if len(totals) > 1 else 0
                return Decision(group.names[place], "Normal", weighed, price, place)
        facts = self.facts(ask, group, self.index.match(ask.chain, group.keys), now, tried)
        return choose(facts, price, ask.request_id)

    def facts(
        self, ask: Ask, group: Group, matched: Mapping[PodKey, int], now: float, tried: frozenset[str] = frozenset()
    ) -> list[PodFacts]:
        """What the request would meet on each pod, whatever state the pods are in."""
        price, capacity = self.model(ask.model).coefficients, self.capacities.get(ask.model, UNKNOWN)
        found = []
        depths, told = self._with_session(ask, group, [matched.get(key, 0) for key in group.keys], now)
        for place, (pod, _, ledger) in enumerate(group.rows):
            cached = min(depths[place] * BLOCK, ask.prompt_bytes)
            late = overdue_ms(ledger, now, price) if price.silence_per_ms else 0.0
            work = _work(ask, pod, ledger, cached, capacity, ledger.ahead(now, price), late)
            found.append(PodFacts(pod.name, _standing(pod, ledger, now, tried), cached, work, told.get(place, 0)))
        return found

    def sent(self, ask: Ask, decision: Decision, pod: Pod, now: float) -> Ticket:
        """Account for an attempt that starts now on the chosen pod."""
        if self._unsettled:
            self._settle(now)
        ledger, key = self.ledger(pod.name), (pod.name, pod.epoch)
        price, capacity = self.model(ask.model).coefficients, self.capacities.get(ask.model, UNKNOWN)
        predicted = decision.cached_bytes
        cached = self._cached(ask, predicted, key) if ask.exact else _predicted(predicted)
        own, ahead = _own(ask, cached.end), ledger.ahead(now, price)
        clear, probe = ask.adapter is None or not ledger.slots_short(ask.adapter, capacity.slots), False
        if ledger.breaker.phase != "Closed":
            ledger.breaker, probe = circuit.sent(ledger.breaker, now, self.rules)
        self._tickets += 1
        ticket = Ticket(
            pod.name, ask.model, probe, now, own.tokens, ahead.tokens, _NOT_YET, self._tickets, ask.adapter,
            tokens(ask.prompt_bytes), own.pairs, ahead.pairs, clear, cached.tokens,
            ask.chain if ask.exact and key in self.index.announced else NO_CHAIN, pod.epoch,
            ask.streams, _NOT_YET, ledger,
        )  # fmt: skip
        enter(ledger, ticket, now)
        await_word(ledger, ticket, now)
        self.index.record(ask.chain, key, _room(capacity))
        if self.teller is not None:
            self.teller.sent(ticket, ask.chain, exact=ask.exact)
        return ticket

    def answered(self, ticket: Ticket, now: float, *, streamed: bool) -> None:
        """The pod began to answer well; a streamed answer's beginning is its first token."""
        ledger = self.ledger(ticket.pod)
        self.heard(ticket, now)
        self.move_on(ticket, now)
        if self.teller is not None:
            self.teller.answered(ticket)
        self._turn(ledger, ticket.pod, circuit.succeeded(ledger.breaker, now, self.rules, probe=ticket.probe))
        if streamed and ticket.clear:
            work, seen = ticket.tokens + ticket.ahead, (now - ticket.sent_at) * 1000.0
            self.model(ticket.model).observe_ttft(work, seen, ticket.pairs + ticket.ahead_pairs)

    def heard(self, ticket: Ticket, now: float) -> None:
        """The pod said something of this attempt; how long it took is learnt from."""
        ledger, model = self.ledger(ticket.pod), self.model(ticket.model)
        if model.coefficients.silence_per_ms:
            model.observe_silence(late_ms(ledger, now, model.coefficients), streams=ledger.streams > 0)
        ledger.heard_at = now

    def stopped(self, ticket: Ticket, now: float, *, on: bool) -> None:
        """The client of this attempt does not read, or reads again: until then the pod cannot say anything."""
        if ticket.stopped is on:
            return
        ticket.stopped, ledger = on, self.ledger(ticket.pod)
        if on:
            expect_none(ledger, ticket)
        else:
            await_word(ledger, ticket, now)
            ledger.heard_at = now

    def failed(self, ticket: Ticket, now: float) -> None:
        """The pod failed this attempt."""
        ledger = self.ledger(ticket.pod)
        found = circuit.failed(ledger.breaker, now, self.rules, probe=ticket.probe, pod=ticket.pod)
        self._turn(ledger, ticket.pod, found)

    def abandoned(self, ticket: Ticket, now: float) -> None:
        """The attempt was given up for no fault of the pod."""
        ledger = self.ledger(ticket.pod)
        ledger.breaker = circuit.abandoned(ledger.breaker, now, probe=ticket.probe)

    def finished(self, ticket: Ticket) -> None:
        """The attempt is over, however it went; call once."""
        self._await_no_more(ticket)
        self._end(ticket)
        if self.teller is not None:
            self.teller.finished(ticket)

    def turned(self, ask: Ask, pod: PodKey, counted: Counted, now: float) -> None:
        """A turn of a session was answered there."""
        if not ask.chain:
            return
        turn = after(pod, ask.chain, ask.prompt_bytes, counted, now, self.ledger(pod[0]).meter)
        before = self.sessions.put(ask.session, turn)
        self.sessions.learn(ask.model, before, ask.chain, counted.cached)
        if self.teller is not None:
            self.teller.turned(ask.session, turn)

    # What other gateways tell.

    def join(self, ticket: Ticket, chain: list[int], now: float, *, exact: bool) -> None:
        """Another gateway sent this attempt to its pod, with a prompt of this chain."""
        ledger, key = self.ledger(ticket.pod), (ticket.pod, ticket.epoch)
        self._tickets += 1
        ticket.number = self._tickets
        ticket.chain = chain if exact and key in self.index.announced else NO_CHAIN
        enter(ledger, ticket, now)
        ledger.told += 1
        self.index.record(chain, key, _room(self.capacities.get(ticket.model, UNKNOWN)))

    def move_on(self, ticket: Ticket, now: float) -> None:
        """The answer of an attempt began: its prompt is computed."""
        self._settle(now)
        ledger = self.ledger(ticket.pod)
        ledger.heard_at = max(ledger.heard_at, now)
        prefilled(ledger, ticket, now)
        if ticket.chain:
            self._unsettled.append((now + _SETTLE_S, ticket))

    def part(self, ticket: Ticket) -> None:
        """An attempt that joined is over; call once."""
        self._end(ticket)
        ledger = self.ledger(ticket.pod)
        ledger.told = max(0, ledger.told - 1)

    def hear(self, session: int, turn: Turn) -> None:
        """A turn of a session is over that came through another gateway."""
        meter = self.ledger(turn.pod[0]).meter
        self.sessions.put(session, msgspec.structs.replace(turn, meter=meter))

    def warned(self, pod: str, now: float, *, opened: bool) -> None:
        """Another gateway's breaker of this pod opened, or closed: its word speeds ours up and never decides alone."""
        ledger = self.ledger(pod)
        ledger.breaker = (
            circuit.suspected(ledger.breaker, self.rules) if opened else circuit.cleared(ledger.breaker, now)
        )

    def keep(self, pods: Sequence[Pod]) -> None:
        """Forget pods, epochs and pools that are gone."""
        self.index.keep((pod.name, pod.epoch) for pod in pods)
        names = {pod.name for pod in pods}
        self.ledgers = {name: ledger for name, ledger in self.ledgers.items() if name in names or ledger.running}
        self._groups.clear()
        pools = {pod.model for pod in pods}
        self.sessions.keep(pools)
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
            found = self.models[name] = CostModel(self._prior)
        return found

    def _group(self, model: str, pods: Sequence[Pod]) -> Group:
        """What is the same for every request while the pods are the same tuple."""
        found = self._groups.get(model)
        if found is None or found.pods is not pods:
            found = Group(pods, self.ledger, self.index.history)
            if isinstance(pods, tuple):
                self._groups[model] = found
        return found

    def _with_session(
        self, ask: Ask, group: Group, matched: list[int], now: float
    ) -> tuple[list[int], Mapping[int, int]]:
        """Matched blocks with what the session's last turns left, and by place the bytes that only they tell of."""
        told: dict[int, int] = {}
        for turn in self.sessions.of(ask.session, now) if ask.session else ():
            place = group.places.get(turn.pod)
            if place is None or not self._still_there(ask, turn):
                continue
            matched = matched or [0] * len(group.keys)
            left = min(turn.left(answer=self.sessions.believes(ask.model)), len(ask.chain))
            if left > matched[place]:
                told[place] = (left - matched[place]) * BLOCK
                matched[place] = left
        return matched, told

    def _still_there(self, ask: Ask, turn: Turn) -> bool:
        """Whether the prompt goes on from that turn, and its pod should hold what it left: by the index, or where that
        forgot it, because the pod was not given enough since to push it out. Where events tell, only they count."""
        if not turn.begins(ask.chain) or (ask.exact and self.index.exact(turn.pod)):
            return False
        if turn.tip in self.index.history(turn.pod):
            return True
        since, room = self.ledger(turn.pod[0]).meter - turn.meter, self.capacities.get(ask.model, UNKNOWN).kv_tokens
        return 0.0 <= since <= room - turn.held()

    def _cached(self, ask: Ask, predicted: int, pod: PodKey) -> Depth:
        """What the pod should have of the prompt: to the KV block where its engine says so, else by hash blocks."""
        said = self.index.depth(ask.chain, ask.prompt, pod)
        return said if said.tokens and said.end + BLOCK > predicted else _predicted(predicted)

    def _turn(self, ledger: PodLedger, pod: str, breaker: Breaker) -> None:
        before, ledger.breaker = ledger.breaker.phase, breaker
        if self.teller is not None and breaker.phase != before:
            self.teller.broke(pod, opened=breaker.phase == "Open")

    def _await_no_more(self, ticket: Ticket) -> None:
        """What was given up before its first token still explains as much silence as it did."""
        ledger = self.ledger(ticket.pod)
        if not ticket.stopped:
            expect_none(ledger, ticket)
        if not ticket.answered:
            price = self.model(ticket.model).coefficients
            ledger.heard_at += (granted_ms(ticket.tokens, ticket.pairs, price) - granted_ms(0.0, 0.0, price)) / 1000.0

    def _end(self, ticket: Ticket) -> None:
        ledger = self.ledger(ticket.pod)
        if ticket.chain and not ticket.answered:
            self.index.settle(ticket.chain, (ticket.pod, ticket.epoch), computed=False)
        prefilled(ledger, ticket, ledger.since)
        leave(ledger, ticket)

    def _settle(self, now: float) -> None:
        unsettled = self._unsettled
        while unsettled and unsettled[0][0] <= now:
            ticket = unsettled.popleft()[1]
            self.index.settle(ticket.chain, (ticket.pod, ticket.epoch), computed=True)


def _predicted(cached_bytes: int) -> Depth:
    return Depth(int(tokens(cached_bytes)), cached_bytes) if cached_bytes else NOTHING


def _room(capacity: Capacity) -> int:
    """Blocks of `BLOCK` bytes that the KV cache of a pod has room for; 0: unknown."""
    return int(capacity.kv_tokens * BYTES_PER_TOKEN) // BLOCK


def _work(ask: Ask, pod: Pod, ledger: PodLedger, cached: int, capacity: Capacity, ahead: Prefill, late: float) -> Work:
    own = _own(ask, cached)
    over = ledger.held_tokens + tokens(ask.prompt_bytes) - capacity.kv_tokens if capacity.kv_tokens else 0.0
    return Work(
        own.tokens,
        ahead.tokens,
        ledger.running + pod.foreign_running,
        pod.foreign_waiting,
        pod.kv_usage,
        residency(pod, ask.adapter, ask.digest),
        own.pairs,
        ahead.pairs,
        len(ledger.queued),
        ledger.slots_short(ask.adapter, capacity.slots),
        max(0.0, over),
        late,
    )


def _own(ask: Ask, cached_bytes: int) -> Prefill:
    uncached = tokens(ask.prompt_bytes - cached_bytes)
    return Prefill(uncached, pairs(uncached, tokens(cached_bytes)))


def _standing(pod: Pod, ledger: PodLedger, now: float, tried: frozenset[str]) -> Standing:
    if pod.name in tried:
        return "Tried"
    if not pod.ready:
        return "NotReady"
    if pod.draining:
        return "Draining"
    return "Healthy" if circuit.allows(ledger.breaker, now) else "Open"
