"""The choice among candidates: pure, from facts to a decision that says why.

Only pods in the best class present are candidates: ready and healthy; else ready with an open breaker; else
draining. When more than half of the ready pods look sick the gateway doubts its own eyes rather than overload
the rest, and uses all of them (panic mode, after Envoy). The lowest expected cost wins; equal costs are
settled by a hash of request and pod, so that the same request is decided alike everywhere.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import xxhash

from sheaf_gateway.routing.cost import (
    ADAPTER_SHARE,
    KV_PRESSURE_FROM,
    Coefficients,
    Residency,
    Terms,
    Work,
    cost,
    tokens,
)
from sheaf_gateway.routing.ledger import LEAST_MS, MOST_DONE, Seen

Standing = Literal["Healthy", "Open", "Draining", "NotReady", "Tried"]
Mode = Literal["Normal", "Panic", "Draining", "None"]

PANIC_SHARE = 0.5

_EXPLAINED = "%s; 1 of %d; %.1f ms = queue %.1f + prefill %.1f + adapter %.1f + harm %.1f%s; cached %d B"
_OVERDUE = " + silence %.1f"
_MAX_EXPLAINED = 199
_NO_ADAPTER: tuple[Residency, int] = ("Resident", 0)


class PodFacts(msgspec.Struct, frozen=True, gc=False):
    """One pod as this request would meet it. `cached_bytes` of the prompt are expected in its KV cache; of those
    `session_bytes` are known by the session alone."""

    pod: str
    standing: Standing
    cached_bytes: int
    work: Work
    session_bytes: int = 0


Own = tuple[int, float, float, float, float]
"""Bytes of the prompt that are cached, tokens and pairs of the prefill of the rest, what that takes in milliseconds,
and what it takes from each stream that runs there."""

Row = tuple[str, Own, float, float, int, int, float, Residency, int, int, float, float]
"""`PodFacts` of a healthy pod as a tuple: pod, own, pending tokens and pairs, running,
foreign waiting, KV usage, residency, queued, slots and room short, milliseconds overdue."""


class Weighing(msgspec.Struct, frozen=True, gc=False):
    """All pods as the quick way met them (see `weigh`): figures that decisions share, from which facts can be made.

    `pods` has name, foreign running, foreign waiting and KV usage of each; `seen` its ledger, `owns` what the request
    is for it; `adapted` residency and slots short, empty for the base model. `room` is how many tokens a KV cache
    holds, 0 where that is not known; `overdue` has milliseconds by place, of those whose word is overdue; `session` by
    place the bytes of the prompt that are known by the session alone.
    """

    pods: Sequence[tuple[str, int, int, float]]
    seen: Sequence[Seen]
    owns: Sequence[Own]
    adapted: Sequence[tuple[Residency, int]]
    now: float
    size: int
    room: int
    overdue: dict[int, float]
    session: Mapping[int, int]

    def row(self, place: int, price: Coefficients) -> Row:
        """One pod, as it was weighed."""
        name, foreign_running, waiting, usage = self.pods[place]
        pending, pending_pairs, first, first_pairs, since, running, queued, held = self.seen[place]
        if queued:
            expected = first * price.prefill_ms_per_token + first_pairs * price.attention_ms_per_pair
            done = min((self.now - since) * 1000.0 / max(LEAST_MS, expected), MOST_DONE)
            pending, pending_pairs = pending - done * first, pending_pairs - done * first_pairs
        over = max(0.0, held + tokens(self.size) - self.room) if self.room else 0.0
        state, short = self.adapted[place] if self.adapted else _NO_ADAPTER
        running, late = running + foreign_running, self.overdue.get(place, 0.0) if self.overdue else 0.0
        return name, self.owns[place], pending, pending_pairs, running, waiting, usage, state, queued, short, over, late


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One pod in a decision record; terms are milliseconds, the rest as in `PodFacts`."""

    pod: str
    standing: Standing
    cached_bytes: int
    terms: Terms
    session_bytes: int = 0


class Decision(msgspec.Struct, frozen=True, gc=False):
    """Where a request goes and what was weighed; `pod` is None where there was nothing to choose.

    It holds facts and prices only: most decisions are never asked about, so their terms are worked out when they are.
    """

    pod: str | None
    mode: Mode
    weighed: tuple[PodFacts, ...] | Weighing
    price: Coefficients
    place: int = -1

    @property
    def facts(self) -> tuple[PodFacts, ...]:
        """Every pod as the request would have met it."""
        weighed, price = self.weighed, self.price
        if not isinstance(weighed, Weighing):
            return weighed
        told = weighed.session
        return tuple([_fact(weighed.row(place, price), told.get(place, 0)) for place in range(len(weighed.pods))])

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every pod with the terms of its expected cost."""
        return tuple([_candidate(fact, self.price) for fact in self.facts])

    @property
    def cached_bytes(self) -> int:
        """Bytes of the prompt that the chosen pod should have."""
        if self.place < 0:
            return 0
        if isinstance(self.weighed, Weighing):
            return self.weighed.owns[self.place][0]
        return self.weighed[self.place].cached_bytes

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


def _fact(row: Row, session_bytes: int) -> PodFacts:
    pod, own, pending, pairs, running, waiting, usage, residency, queued, slots, room, overdue = row
    work = Work(own[1], pending, running, waiting, usage, residency, own[2], pairs, queued, slots, room, overdue)
    return PodFacts(pod, "Healthy", own[0], work, session_bytes)


def _candidate(fact: PodFacts, price: Coefficients) -> Candidate:
    return Candidate(fact.pod, fact.standing, fact.cached_bytes, cost(fact.work, price), fact.session_bytes)


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
    weighed, price, place = decision.weighed, decision.price, decision.place
    count = len(weighed.pods if isinstance(weighed, Weighing) else weighed)
    if place < 0:
        return f"no pod of {count} can answer"
    terms = (
        _terms(weighed.row(place, price), price) if isinstance(weighed, Weighing) else cost(weighed[place].work, price)
    )
    said = (terms.total, terms.queue, terms.prefill, terms.adapter, terms.harm)
    late = _OVERDUE % terms.silence if terms.silence else ""
    return (_EXPLAINED % (decision.mode.lower(), count, *said, late, decision.cached_bytes))[:_MAX_EXPLAINED]


def _terms(row: Row, price: Coefficients) -> Terms:
    """What `cost` says of a row, to the last bit, with no object between."""
    _, own, pending, pairs, running, waiting, usage, residency, queued, slots_short, room_short, overdue = row
    queue = pending * price.prefill_ms_per_token + pairs * price.attention_ms_per_pair + waiting * price.waiting_ms
    queue += room_short * price.room_ms_per_token
    prefill, adapter, harm = price.base_ms + own[3], 0.0, running * own[4]
    if slots_short or residency != "Resident":
        adapter = ADAPTER_SHARE[residency] * price.adapter_load_ms + slots_short * price.slot_ms
    if usage > KV_PRESSURE_FROM:
        harm += (usage - KV_PRESSURE_FROM) / (1.0 - KV_PRESSURE_FROM) * price.preemption_ms
    harm += (queued + 1) * own[3]
    silence = overdue * price.silence_per_ms
    return Terms(queue, prefill, adapter, harm, queue + prefill + adapter + harm + silence, silence)
