"""What is known to be under way on one pod, and the attempts that it is made of."""

import msgspec

from sheaf_gateway.routing import breaker as circuit
from sheaf_gateway.routing.breaker import Breaker
from sheaf_gateway.routing.cost import Coefficients

MOST_DONE = 0.9
LEAST_MS = 1e-6


class Prefill(msgspec.Struct, frozen=True, gc=False):
    """Prompt work: tokens to compute, and (token, token it attends to) pairs."""

    tokens: float = 0.0
    pairs: float = 0.0


NO_WORK = Prefill()

Seen = tuple[float, float, float, float, float, int, int, float]
"""A ledger at one moment: pending tokens and pairs, tokens and pairs of the first that is queued, since when it is the
first, running, queued, tokens held."""


class Ticket(msgspec.Struct):
    """One attempt on one pod, from the moment it was sent. Times are seconds, tokens estimates.

    `ahead` are the tokens that had to be computed before its own, `ahead_pairs` likewise; `held` the tokens that it
    keeps in the KV cache; `clear` whether nothing but prefill stood before it, so that its time teaches prices.
    `cached` are the tokens of its prompt that the pod should have; `chain` is what its events will tell of, if they do.
    `streams` says that its answer comes piece by piece; `stopped` that its client does not read for now. `ledger` is
    its pod's, for attempts of this gateway.
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
    streams: bool = True
    stopped: bool = False
    ledger: "PodLedger | None" = None


class PodLedger(msgspec.Struct):
    """What is known to be under way on a pod: attempts, and prompt work that was sent but not answered yet.

    Of the `running` attempts `told` are those of other gateways. `queued` has that work by ticket, in order; `since` is
    when its first entry came to be the first. `adapters` counts attempts by adapter, `held_tokens` what all of them
    keep in the KV cache. `seen` is what `look` last said, None where that has changed. A word is expected of the
    `awaited` ones, of which so many are `streams`; `heard_at` is when the pod said something last, or began to be
    waited for. `meter` counts all tokens that it was ever given to compute.
    """

    running: int = 0
    told: int = 0
    pending_tokens: float = 0.0
    pending_pairs: float = 0.0
    held_tokens: float = 0.0
    since: float = 0.0
    breaker: Breaker = circuit.CLOSED
    queued: dict[int, Prefill] = {}
    adapters: dict[str, int] = {}
    seen: Seen | None = None
    awaited: int = 0
    streams: int = 0
    heard_at: float = 0.0
    meter: float = 0.0

    def look(self) -> Seen:
        """The ledger as it is, kept in `seen` until it changes: many decisions share what they hold of it."""
        first = next(iter(self.queued.values()), NO_WORK)
        seen = self.seen = (
            self.pending_tokens, self.pending_pairs, first.tokens, first.pairs,
            self.since, self.running, len(self.queued), self.held_tokens,
        )  # fmt: skip
        return seen

    def ahead(self, now: float, price: Coefficients) -> Prefill:
        """The work before a request that came now: what is queued, less what the first of it must have done by now."""
        if not self.queued:
            return NO_WORK
        first = next(iter(self.queued.values()))
        count, met = first.tokens, first.pairs
        expected = count * price.prefill_ms_per_token + met * price.attention_ms_per_pair
        done = (now - self.since) * 1000.0 / (max(LEAST_MS, expected))
        done = min(done, MOST_DONE)
        return Prefill(self.pending_tokens - done * count, self.pending_pairs - done * met)

    def slots_short(self, adapter: str | None, slots: int) -> int:
        """Adapters that must leave before `adapter` gets one of so many slots (0: unknown)."""
        if not slots or adapter is None or adapter in self.adapters:
            return 0
        return max(0, len(self.adapters) + 1 - slots)


def enter(ledger: PodLedger, ticket: Ticket, now: float) -> None:
    """An attempt begins on the pod."""
    ledger.seen = None
    if not ledger.queued:
        ledger.since = now
    ledger.running += 1
    ledger.queued[ticket.number] = Prefill(ticket.tokens, ticket.pairs)
    ledger.pending_tokens += ticket.tokens
    ledger.pending_pairs += ticket.pairs
    ledger.held_tokens += ticket.held
    ledger.meter += ticket.tokens
    if ticket.adapter is not None:
        ledger.adapters[ticket.adapter] = ledger.adapters.get(ticket.adapter, 0) + 1


def await_word(ledger: PodLedger, ticket: Ticket, now: float) -> None:
    """A word of the pod is expected for the sake of this attempt."""
    if ledger.awaited <= 0:
        ledger.heard_at = now
    ledger.awaited += 1
    ledger.streams += ticket.streams


def expect_none(ledger: PodLedger, ticket: Ticket) -> None:
    """None is expected for its sake any more."""
    ledger.awaited = max(0, ledger.awaited - 1)
    ledger.streams = max(0, ledger.streams - ticket.streams)


def leave(ledger: PodLedger, ticket: Ticket) -> None:
    """An attempt whose prompt is computed, or given up, is over."""
    ledger.seen = None
    ledger.running = max(0, ledger.running - 1)
    ledger.held_tokens = max(0.0, ledger.held_tokens - ticket.held)
    if ticket.adapter is None:
        return
    left = ledger.adapters.get(ticket.adapter, 0) - 1
    if left > 0:
        ledger.adapters[ticket.adapter] = left
    else:
        ledger.adapters.pop(ticket.adapter, None)


def prefilled(ledger: PodLedger, ticket: Ticket, now: float) -> None:
    """The prompt of an attempt is computed, or will not be. Where nothing is queued nothing is pending, whatever
    rounding has left."""
    if ticket.answered:
        return
    ticket.answered = True
    ledger.seen = None
    queued = ledger.queued
    if next(iter(queued), None) == ticket.number:
        ledger.since = now
    queued.pop(ticket.number, None)
    if queued:
        ledger.pending_tokens = max(0.0, ledger.pending_tokens - ticket.tokens)
        ledger.pending_pairs = max(0.0, ledger.pending_pairs - ticket.pairs)
    else:
        ledger.pending_tokens = ledger.pending_pairs = 0.0
