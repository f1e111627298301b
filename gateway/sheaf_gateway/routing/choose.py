"""The choice among candidates: pure, from facts to a decision that says why.

Only pods in the best class present are candidates: ready and healthy; else ready with an open breaker; else
draining. When more than half of the ready pods look sick the gateway doubts its own eyes rather than overload
the rest, and uses all of them (panic mode, after Envoy). The lowest expected cost wins; equal costs are
settled by a hash of request and pod, so that the same request is decided alike everywhere.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec
import xxhash

from sheaf_gateway.routing.cost import Coefficients, Terms, Work, cost

Standing = Literal["Healthy", "Open", "Draining", "NotReady", "Tried"]
Mode = Literal["Normal", "Panic", "Draining", "None"]

PANIC_SHARE = 0.5

_EXPLAINED = "%s; 1 of %d; %.1f ms = queue %.1f + prefill %.1f + adapter %.1f + harm %.1f; cached %d B"
_MAX_EXPLAINED = 199


class PodFacts(msgspec.Struct, frozen=True, gc=False):
    """One pod as this request would meet it. `cached_bytes` of the prompt are expected in its KV cache."""

    pod: str
    standing: Standing
    cached_bytes: int
    work: Work


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One pod in a decision record; terms are milliseconds."""

    pod: str
    standing: Standing
    cached_bytes: int
    terms: Terms


class Decision(msgspec.Struct, frozen=True, gc=False):
    """Where a request goes and what was weighed; `pod` is None where there was nothing to choose.

    It holds facts and prices only: most decisions are never asked about, so their terms are worked out when they are.
    """

    pod: str | None
    mode: Mode
    facts: tuple[PodFacts, ...]
    price: Coefficients
    place: int = -1

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every pod with the terms of its expected cost."""
        return tuple([_candidate(fact, self.price) for fact in self.facts])

    @property
    def cached_bytes(self) -> int:
        """Bytes of the prompt that the chosen pod should have."""
        return 0 if self.place < 0 else self.facts[self.place].cached_bytes

    def chosen(self) -> Candidate | None:
        """The candidate that won."""
        return None if self.place < 0 else _candidate(self.facts[self.place], self.price)

    def told(self) -> dict[str, object]:
        """What people and programs are told of it."""
        return {"pod": self.pod, "mode": self.mode, "candidates": self.candidates}


def choose(facts: Sequence[PodFacts], price: Coefficients, request_id: str) -> Decision:
    """The pod with the lowest expected cost among those in the best class present."""
    mode, usable = _usable(facts)
    if not usable:
        return Decision(None, mode, tuple(facts), price)
    totals = [cost(facts[place].work, price).total for place in usable]
    place = usable[cheapest([facts[place].pod for place in usable], totals, request_id)]
    return Decision(facts[place].pod, mode, tuple(facts), price, place)


def cheapest(pods: Sequence[str], totals: Sequence[float], request_id: str) -> int:
    """The place of the lowest total; of equal ones that of the lowest lot."""
    lowest = min(totals)
    place = totals.index(lowest)
    if totals.count(lowest) == 1:
        return place
    ties = [place for place, total in enumerate(totals) if total == lowest]
    return min(ties, key=lambda place: _lot(request_id, pods[place]))


def _lot(request_id: str, pod: str) -> tuple[int, str]:
    return xxhash.xxh3_64_intdigest(f"{request_id}\0{pod}".encode()), pod


def _candidate(fact: PodFacts, price: Coefficients) -> Candidate:
    return Candidate(fact.pod, fact.standing, fact.cached_bytes, cost(fact.work, price))


def _usable(facts: Sequence[PodFacts]) -> tuple[Mode, list[int]]:
    """The places of the best class present."""
    healthy = [place for place, fact in enumerate(facts) if fact.standing == "Healthy"]
    if len(healthy) == len(facts):
        return ("Normal" if healthy else "None"), healthy
    sick = [place for place, fact in enumerate(facts) if fact.standing == "Open"]
    if sick and (not healthy or len(sick) > PANIC_SHARE * (len(sick) + len(healthy))):
        return "Panic", healthy + sick
    if healthy:
        return "Normal", healthy
    draining = [place for place, fact in enumerate(facts) if fact.standing == "Draining"]
    return ("Draining" if draining else "None"), draining


def explain(decision: Decision) -> str:
    """Why, in under 200 characters of ASCII for a header."""
    chosen = decision.chosen()
    if chosen is None:
        return f"no pod of {len(decision.facts)} can answer"
    t = chosen.terms
    where = (decision.mode.lower(), len(decision.facts))
    return (_EXPLAINED % (*where, t.total, t.queue, t.prefill, t.adapter, t.harm, chosen.cached_bytes))[:_MAX_EXPLAINED]
