"""The router's memory around the pure choice: what was sent where, breakers, the prefix index, the cost models.

It is deterministic: no clock, no randomness, no I/O. The same calls with the same times give the same
decisions, in the gateway, in a test and in the simulator.
"""

from collections.abc import Sequence

import msgspec

from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.routing import breaker as circuit
from sheaf_gateway.routing.breaker import Breaker, BreakerRules
from sheaf_gateway.routing.choose import Decision, PodFacts, Standing, choose
from sheaf_gateway.routing.cost import CostModel, Residency, Work, tokens
from sheaf_gateway.routing.index import PrefixIndex
from sheaf_gateway.routing.prefix import BLOCK
from sheaf_gateway.routing.retry import RetryBudget


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What routing needs of a request: whose prefix (`chain`, see `prefix`), how long, for which adapter."""

    request_id: str
    model: str
    adapter: str | None = None
    digest: str = ""
    chain: list[int] = []
    prompt_bytes: int = 0


class Ticket(msgspec.Struct):
    """One attempt on one pod, from the moment it was sent. Times are seconds, tokens estimates."""

    pod: str
    model: str
    probe: bool
    sent_at: float
    tokens: float
    ahead: float
    answered: bool = False


class PodLedger(msgspec.Struct):
    """What this gateway has under way on a pod: attempts, and prompt tokens that were sent but not answered yet."""

    running: int = 0
    pending_tokens: float = 0.0
    breaker: Breaker = circuit.CLOSED


class Router:
    """Chooses pods and learns from what became of its choices."""

    def __init__(self, *, rules: BreakerRules | None = None, max_blocks: int = 262_144) -> None:
        self.rules = rules or BreakerRules()
        self.index = PrefixIndex(max_blocks)
        self.budget = RetryBudget()
        self.ledgers: dict[str, PodLedger] = {}
        self.models: dict[str, CostModel] = {}

    def decide(self, ask: Ask, pods: Sequence[Pod], now: float, tried: frozenset[str] = frozenset()) -> Decision:
        """Where the request goes among the pods of its Model, leaving out those tried before."""
        matched = self.index.match(ask.chain, [(pod.name, pod.epoch) for pod in pods])
        facts = [self._facts(ask, pod, now, tried, matched.get((pod.name, pod.epoch), 0)) for pod in pods]
        return choose(facts, self.model(ask.model).coefficients, ask.request_id)

    def sent(self, ask: Ask, decision: Decision, pod: Pod, now: float) -> Ticket:
        """Account for an attempt that starts now on the chosen pod."""
        ledger = self.ledger(pod.name)
        chosen = decision.chosen()
        uncached = tokens(ask.prompt_bytes - (chosen.cached_bytes if chosen else 0))
        ledger.breaker, probe = circuit.sent(ledger.breaker, now, self.rules)
        ticket = Ticket(pod.name, ask.model, probe, now, uncached, ledger.pending_tokens)
        ledger.running += 1
        ledger.pending_tokens += uncached
        self.index.record(ask.chain, (pod.name, pod.epoch))
        return ticket

    def answered(self, ticket: Ticket, now: float, *, streamed: bool) -> None:
        """The pod began to answer well; a streamed answer's beginning is its first token."""
        ledger = self.ledger(ticket.pod)
        self._prefilled(ledger, ticket)
        ledger.breaker = circuit.succeeded(ledger.breaker, now, self.rules, probe=ticket.probe)
        if streamed:
            self.model(ticket.model).observe_ttft(ticket.tokens + ticket.ahead, (now - ticket.sent_at) * 1000.0)

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
        self._prefilled(ledger, ticket)
        ledger.running = max(0, ledger.running - 1)

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

    def _facts(self, ask: Ask, pod: Pod, now: float, tried: frozenset[str], blocks: int) -> PodFacts:
        ledger = self.ledger(pod.name)
        cached = min(blocks * BLOCK, ask.prompt_bytes)
        work = Work(
            tokens(ask.prompt_bytes - cached),
            ledger.pending_tokens,
            ledger.running + pod.foreign_running,
            pod.foreign_waiting,
            pod.kv_usage,
            _residency(ask, pod),
        )
        return PodFacts(pod.name, _standing(pod, ledger, now, tried), cached, work)

    def _prefilled(self, ledger: PodLedger, ticket: Ticket) -> None:
        if not ticket.answered:
            ticket.answered = True
            ledger.pending_tokens = max(0.0, ledger.pending_tokens - ticket.tokens)


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
