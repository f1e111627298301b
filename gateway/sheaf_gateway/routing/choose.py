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
    """Where a request goes and what was weighed; `pod` is None where there was nothing to choose."""

    pod: str | None
    mode: Mode
    candidates: tuple[Candidate, ...]

    def chosen(self) -> Candidate | None:
        """The candidate that won."""
        return next((c for c in self.candidates if c.pod == self.pod), None)


def choose(facts: Sequence[PodFacts], price: Coefficients, request_id: str) -> Decision:
    """The pod with the lowest expected cost among those in the best class present."""
    candidates = tuple([Candidate(f.pod, f.standing, f.cached_bytes, cost(f.work, price)) for f in facts])
    mode, usable = _usable(candidates)
    if not usable:
        return Decision(None, mode, candidates)
    best = usable[0] if len(usable) == 1 else _cheapest(usable, request_id)
    return Decision(best.pod, mode, candidates)


def _usable(candidates: Sequence[Candidate]) -> tuple[Mode, list[Candidate]]:
    healthy = [c for c in candidates if c.standing == "Healthy"]
    if len(healthy) == len(candidates):
        return ("Normal" if healthy else "None"), healthy
    sick = [c for c in candidates if c.standing == "Open"]
    if sick and (not healthy or len(sick) > PANIC_SHARE * (len(sick) + len(healthy))):
        return "Panic", healthy + sick
    if healthy:
        return "Normal", healthy
    draining = [c for c in candidates if c.standing == "Draining"]
    return ("Draining" if draining else "None"), draining


def _cheapest(usable: Sequence[Candidate], request_id: str) -> Candidate:
    lowest = min([c.terms.total for c in usable])
    ties = [c for c in usable if c.terms.total == lowest]
    if len(ties) == 1:
        return ties[0]
    return min(ties, key=lambda c: (xxhash.xxh3_64_intdigest(f"{request_id}\0{c.pod}".encode()), c.pod))


def explain(decision: Decision) -> str:
    """Why, in under 200 characters of ASCII for a header."""
    chosen = decision.chosen()
    if chosen is None:
        return f"no pod of {len(decision.candidates)} can answer"
    t = chosen.terms
    where = (decision.mode.lower(), len(decision.candidates))
    return (_EXPLAINED % (*where, t.total, t.queue, t.prefill, t.adapter, t.harm, chosen.cached_bytes))[:_MAX_EXPLAINED]
