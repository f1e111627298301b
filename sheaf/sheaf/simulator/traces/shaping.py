"""Making a trace heavier, and giving it what it lacks: models, adapters drawn zipf, tenants. Deterministic by seed."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from sheaf.simulator.calls import Call


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is done to a trace.

    Attributes:
        model: Model of the calls that name none.
        speed: arrivals so many times as fast.
        adapters: names to draw from, the most popular first; empty leaves adapters as they are.
        exponent: of the zipf law of adapters.
        tenants: names to draw from, zipf too.
        seed: of all draws.
        limit: calls to keep, None for all.
    """

    model: str = "model"
    speed: float = 1.0
    adapters: Sequence[str] = ()
    exponent: float = 1.0
    tenants: Sequence[str] = ()
    seed: int = 0
    limit: int | None = None


def shaped(calls: Iterable[Call], shape: Shape) -> list[Call]:
    """The calls in that shape. A conversation keeps its adapter and its tenant."""
    adapters = Draw(shape.adapters, shape.exponent, shape.seed)
    tenants = Draw(shape.tenants, shape.exponent, shape.seed + 1)
    kept = list(calls)[: shape.limit]
    return [
        replace(
            call,
            arrival=call.arrival / shape.speed,
            model=call.model or shape.model,
            adapter=adapters.of(call.session) if shape.adapters else call.adapter,
            tenant=tenants.of(call.session) if shape.tenants else call.tenant,
        )
        for call in kept
    ]


class Draw:
    """One of some names for each number, by a zipf law; a number's name is a function of seed and number."""

    def __init__(self, names: Sequence[str], exponent: float, seed: int) -> None:
        self._names = names
        self._sums = list(accumulate((rank + 1) ** -exponent for rank in range(len(names))))
        self._seed = seed
        self._drawn: dict[int, str] = {}

    def of(self, number: int) -> str:
        """The name of that number."""
        name = self._drawn.get(number)
        if name is None:
            share = random.Random(self._seed << 32 ^ number).random()  # noqa: S311 - a simulation's draw
            name = self._names[bisect(self._sums, share * self._sums[-1])]
            self._drawn[number] = name
        return name
