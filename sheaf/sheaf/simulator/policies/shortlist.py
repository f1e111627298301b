"""The few of many pods to which the Router could send a request, so that it need not weigh a thousand.

The expected cost (`sheaf_gateway.routing.cost`) never falls when any part of the work grows. So pods are kept in
buckets by how many requests run there, a prompt's blocks name the pods that hold them, and the buckets are searched
from the least busy one on, in each class of pods that hold equally much of the prompt, until even the least that a pod
could cost is more than the best that was found. Where nothing but prefill and equally many running requests counts,
costs are equal to the last bit: only the pod that wins the draw between equals is kept.

Whoever could win is on the list, which is all that is promised: `Router.decide` then weighs it as it weighs all pods,
and a property test compares both decisions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import xxhash
from sheaf_gateway.fleet.view import Pod as PodView
from sheaf_gateway.routing.cost import KV_PRESSURE_FROM, Coefficients, compute, pairs, tokens
from sheaf_gateway.routing.index import Held, PodKey, PrefixIndex
from sheaf_gateway.routing.ledger import PodLedger
from sheaf_gateway.routing.prefix import BLOCK
from sheaf_gateway.routing.router import Ask, Capacity

_SLACK = 1e-6
_NOBODY: frozenset[str] = frozenset()


class WatchedIndex(PrefixIndex):
    """The gateway's index, that also knows who holds a block."""

    def __init__(self) -> None:
        super().__init__()
        self._holding: dict[int, set[str]] = {}
        self._watched: set[str] = set()

    def watch(self, pods: Iterable[str]) -> None:
        """Know of these pods who holds what, from now on."""
        for name in pods:
            if name not in self._watched:
                self._watched.add(name)
                self._note(name, self._pods.get((name, 0), ()))

    def holding(self, chain: Sequence[int]) -> list[tuple[int, set[str]]]:
        """How many leading blocks some watched pods hold, deepest first, with all pods that hold so many or more."""
        found: list[tuple[int, set[str]]] = []
        for depth, block in enumerate(chain, start=1):
            names = self._holding.get(block)
            if not names:
                break
            if found and len(names) == len(found[-1][1]):
                found[-1] = (depth, names)
            else:
                found.append((depth, names))
        return found[::-1]

    def history(self, pod: PodKey) -> Held:
        """What the pod was sent; whoever is watched later tells what it drops from the first."""
        held = self._pods.get(pod)
        if held is None:
            held = self._pods[pod] = _Held(self, pod[0])
        return held

    def record(self, chain: Sequence[int], pod: PodKey, room: int = 0) -> None:
        """Remember that the pod was sent these blocks."""
        if pod[0] not in self._watched:
            return super().record(chain, pod, room)
        held = self.history(pod)
        fresh = [block for block in chain if block not in held]
        super().record(chain, pod, room)
        return self._note(pod[0], [block for block in fresh if block in held])

    def keep(self, pods: Iterable[PodKey]) -> None:
        """Forget every pod that is not named."""
        super().keep(pods)
        self._watched.intersection_update([name for name, _ in self._pods])
        self._holding.clear()
        for name in self._watched:
            self._note(name, self._pods[name, 0])

    def dropped(self, name: str, block: int) -> None:
        """A pod does not hold a block any more."""
        holding = self._holding.get(block)
        if holding is not None:
            holding.discard(name)
            if not holding:
                del self._holding[block]

    def _note(self, name: str, blocks: Iterable[int]) -> None:
        for block in blocks:
            holding = self._holding.get(block)
            if holding is None:
                self._holding[block] = {name}
            else:
                holding.add(name)


class _Held(OrderedDict[int, None]):
    """Blocks of one pod, that tells which it drops."""

    def __init__(self, index: WatchedIndex, name: str) -> None:
        super().__init__()
        self._index, self._name = index, name

    def popitem(self, last: bool = True) -> tuple[int, None]:  # noqa: FBT001, FBT002 - as the base class has it
        found = super().popitem(last)
        self._index.dropped(self._name, found[0])
        return found


@dataclass(slots=True)
class _Search:
    """One request: what it costs where it is computed anew from a depth on, and the best that was found so far."""

    size: int
    price: Coefficients
    best: float = float("inf")
    found: list[tuple[float, str]] = field(default_factory=list)
    own: float = 0.0
    disturbed: float = 0.0

    def at(self, depth: int) -> None:
        """Look at pods now that hold so many blocks."""
        cached = min(self.size, depth * BLOCK)
        count = tokens(self.size - cached)
        self.own = compute(count, pairs(count, tokens(cached)), self.price)
        self.disturbed = self.price.stream_ms + count * self.price.interference_ms_per_token

    def least(self, level: int) -> float:
        """What a pod with so many requests costs at least."""
        return self.price.base_ms + 2.0 * self.own + level * self.disturbed

    def hopeless(self, cost: float) -> bool:
        """Whether that is surely too much."""
        return cost > self.best + _SLACK * (1.0 + self.best)

    def note(self, cost: float, name: str) -> None:
        """A pod that would cost this."""
        if not self.hopeless(cost):
            self.found.append((cost, name))
            self.best = min(self.best, cost)

    def names(self) -> list[str]:
        """Who could win."""
        return [name for cost, name in self.found if not self.hopeless(cost)]


class Shortlist:
    """The pods of one Model, by how busy they are."""

    def __init__(self, index: WatchedIndex, capacity: Capacity) -> None:
        self._index, self._capacity = index, capacity
        self._plain: dict[int, set[str]] = {}
        self._other: dict[int, set[str]] = {}
        self._where: dict[str, set[str]] = {}
        self._pods: dict[str, tuple[PodView, PodLedger]] = {}
        self._resident: dict[str, set[str]] = {}
        self._broken: set[str] = set()

    def put(self, view: PodView, ledger: PodLedger) -> None:
        """A pod is as it is now."""
        name, before = view.name, self._pods.get(view.name)
        if before is None or before[0] is not view:
            self._reside(name, before[0].resident if before else {}, view.resident)
            self._pods[name] = view, ledger
        (self._broken.discard if ledger.breaker.phase == "Closed" else self._broken.add)(name)
        level = ledger.running + view.foreign_running
        buckets = self._plain if self._is_plain(view, ledger) else self._other
        there, was = buckets.get(level), self._where.get(name)
        if there is None:
            there = buckets[level] = set()
        if there is not was:
            if was is not None:
                was.discard(name)
            there.add(name)
            self._where[name] = there

    def names(self, ask: Ask, price: Coefficients, now: float) -> list[str] | None:
        """Who could be chosen; None where only weighing all of them tells."""
        kv_tokens = self._capacity.kv_tokens
        if self._broken or price.stream_ms <= 0.0 or (kv_tokens and tokens(ask.prompt_bytes) > kv_tokens / 2):
            return None
        search = _Search(ask.prompt_bytes, price)
        resident = self._resident.get(ask.adapter, _NOBODY) if ask.adapter is not None else None
        deeper: set[str] | frozenset[str] = _NOBODY
        for depth, holding in [*self._index.holding(ask.chain), (0, None)]:
            search.at(depth)
            for level in sorted({*self._plain, *self._other}):
                if search.hopeless(search.least(level)):
                    break
                self._look(search, level, holding, deeper, resident, ask, now)
            deeper = holding or _NOBODY
        return search.names()

    def _look(
        self,
        search: _Search,
        level: int,
        holding: set[str] | None,
        deeper: set[str] | frozenset[str],
        resident: set[str] | frozenset[str] | None,
        ask: Ask,
        now: float,
    ) -> None:
        plain, other = _among(self._plain.get(level), holding, deeper), _among(self._other.get(level), holding, deeper)
        if resident is None:
            if plain:
                search.note(search.least(level), _drawn(ask.request_id, plain))
            self._weigh(search, level, other, 0.0, ask, now)
            return
        every = plain | other
        self._weigh(search, level, every & resident, 0.0, ask, now)
        if not search.hopeless(search.least(level) + search.price.adapter_load_ms):
            self._weigh(search, level, every - resident, search.price.adapter_load_ms, ask, now)

    def _weigh(self, search: _Search, level: int, names: Iterable[str], load_ms: float, ask: Ask, now: float) -> None:
        price, least, room = search.price, search.least(level) + load_ms, self._capacity.kv_tokens
        for name in names:
            view, ledger = self._pods[name]
            cost = least + view.foreign_waiting * price.waiting_ms + len(ledger.queued) * search.own
            if ledger.queued or ledger.pending_tokens:
                ahead = ledger.ahead(now, price)
                cost += compute(ahead.tokens, ahead.pairs, price)
            if room:
                cost += max(0.0, ledger.held_tokens + tokens(search.size) - room) * price.room_ms_per_token
            if ask.adapter is not None:
                cost += ledger.slots_short(ask.adapter, self._capacity.slots) * price.slot_ms
            pressure = max(0.0, view.kv_usage - KV_PRESSURE_FROM) / (1.0 - KV_PRESSURE_FROM)
            search.note(cost + pressure * price.preemption_ms, name)

    def _is_plain(self, view: PodView, ledger: PodLedger) -> bool:
        """Whether nothing but running requests makes it cost more than an idle pod, for any prompt that is not huge."""
        return not (
            ledger.queued
            or ledger.pending_tokens
            or view.foreign_waiting
            or view.kv_usage > KV_PRESSURE_FROM
            or (self._capacity.kv_tokens and ledger.held_tokens > self._capacity.kv_tokens / 2)
        )

    def _reside(self, name: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
        if before != now:
            for adapter in before:
                self._resident[adapter].discard(name)
            for adapter in now:
                self._resident.setdefault(adapter, set()).add(name)


def _among(
    bucket: set[str] | None, holding: set[str] | None, deeper: set[str] | frozenset[str]
) -> set[str] | frozenset[str]:
    if not bucket:
        return _NOBODY
    found = bucket if holding is None else bucket & holding
    return found - deeper if deeper else found


def _drawn(request_id: str, names: Iterable[str]) -> str:
    """Who of these would win among equals (see `choose.cheapest`)."""
    digest, begin = xxhash.xxh3_64_intdigest, f"{request_id}\0"
    return min([(digest((begin + name).encode()), name) for name in names])[1]
