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

from sheaf_gateway.routing.cost import ADAPTER_SHARE, KV_PRESSURE_FROM, Coefficients, Residency, Terms, Work, cost

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


Own = tuple[int, float, float, float, float]
"""Bytes of the prompt that are cached, tokens and pairs of the prefill of the rest, what that takes in milliseconds,
and what it takes from each stream that runs there."""

Row = tuple[str, Own, float, float, int, int, float, Residency, int, int, float]
"""`PodFacts` of a healthy pod in the quick way's terms (see `weigh`): pod, own, pending tokens and pairs, running,
foreign waiting, KV usage, residency, queued, slots and room short."""


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
    weighed: Sequence[PodFacts | Row]
    price: Coefficients
    place: int = -1

    @property
    def facts(self) -> tuple[PodFacts, ...]:
        """Every pod as the request would have met it."""
        return tuple([_fact(weighed) for weighed in self.weighed])

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every pod with the terms of its expected cost."""
        return tuple([_candidate(fact, self.price) for fact in self.facts])

    @property
    def cached_bytes(self) -> int:
        """Bytes of the prompt that the chosen pod should have."""
        return 0 if self.place < 0 else _fact(self.weighed[self.place]).cached_bytes

    def chosen(self) -> Candidate | None:
        """The candidate that won."""
        return None if self.place < 0 else _candidate(_fact(self.weighed[self.place]), self.price)

    def told(self) -> dict[str, object]:
        """What people and programs are told of it."""
        return {"pod": self.pod, "mode": self.mode, "candidates": self.candidates}


def choose(facts: Sequence[PodFacts], price: Coefficients, request_id: str) -> Decision:
    """The pod with the lowest expected cost among those in the best class present."""
    mode, usable = _usable(facts)
    if not usable:
        return Decision(None, mode, tuple(facts), price)
    totals = [cost(facts[place].work, price).total for place in usable]
    place = usable[cheapest([(facts[place].pod,) for place in usable], totals, request_id)]
    return Decision(facts[place].pod, mode, tuple(facts), price, place)


def cheapest(pods: Sequence[Row | tuple[str]], totals: Sequence[float], request_id: str) -> int:
    """The place of the lowest total; of equal ones that of the lowest lot of the pods, which are named first."""
    lowest = min(totals)
    place = totals.index(lowest)
    if totals.count(lowest) == 1:
        return place
    ties = [place for place, total in enumerate(totals) if total == lowest]
    return min(ties, key=lambda place: _lot(request_id, pods[place][0]))


def _lot(request_id: str, pod: str) -> tuple[int, str]:
    return xxhash.xxh3_64_intdigest(f"{request_id}\0{pod}".encode()), pod


def _fact(weighed: PodFacts | Row) -> PodFacts:
    if isinstance(weighed, PodFacts):
        return weighed
    pod, own, tokens, pairs, running, waiting, usage, residency, queued, slots_short, room_short = weighed
    work = Work(own[1], tokens, running, waiting, usage, residency, own[2], pairs, queued, slots_short, room_short)
    return PodFacts(pod, "Healthy", own[0], work)


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
    count, price, place = len(decision.weighed), decision.price, decision.place
    if place < 0:
        return f"no pod of {count} can answer"
    weighed = decision.weighed[place]
    if isinstance(weighed, PodFacts):
        terms, cached = cost(weighed.work, price), weighed.cached_bytes
    else:
        terms, cached = _terms(weighed, price), weighed[1][0]
    said = (decision.mode.lower(), count, terms.total, terms.queue, terms.prefill, terms.adapter, terms.harm, cached)
    return (_EXPLAINED % said)[:_MAX_EXPLAINED]


def _terms(row: Row, price: Coefficients) -> Terms:
    """What `cost` says of a row, to the last bit, with no object between."""
    _, own, pending, pairs, running, waiting, usage, residency, queued, slots_short, room_short = row
    queue = pending * price.prefill_ms_per_token + pairs * price.attention_ms_per_pair + waiting * price.waiting_ms
    queue += room_short * price.room_ms_per_token
    prefill, adapter, harm = price.base_ms + own[3], 0.0, running * own[4]
    if slots_short or residency != "Resident":
        adapter = ADAPTER_SHARE[residency] * price.adapter_load_ms + slots_short * price.slot_ms
    if usage > KV_PRESSURE_FROM:
        harm += (usage - KV_PRESSURE_FROM) / (1.0 - KV_PRESSURE_FROM) * price.preemption_ms
    harm += (queued + 1) * own[3]
    return Terms(queue, prefill, adapter, harm, queue + prefill + adapter + harm)
