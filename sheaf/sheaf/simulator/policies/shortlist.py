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

import heapq
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import xxhash
from sheaf_gateway.fleet.view import Pod as PodView
from sheaf_gateway.routing.cost import KV_PRESSURE_FROM, Coefficients, compute, pairs, tokens
from sheaf_gateway.routing.index import Held, PodKey, PrefixIndex
from sheaf_gateway.routing.ledger import PodLedger
from sheaf_gateway.routing.prefix import BLOCK
from sheaf_gateway.routing.router import Ask, Capacity

_SLACK = 1e-6
_NOBODY: AbstractSet[str] = frozenset()
FEW = 16
MAX_BLOCKS = 262_144
_STALE = 8


class WatchedIndex(PrefixIndex):
    """The gateway's index, that also knows who holds a block, and which pod most, without asking all of them."""

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        super().__init__(max_blocks)
        self._holding: dict[int, str | set[str]] = {}
        self._watched: set[str] = set()
        self._places: dict[PodKey, int] = {}
        self._sizes: list[tuple[int, int, PodKey]] = []
        self._changed: set[PodKey] = set()

    def watch(self, pods: Iterable[str]) -> None:
        """Know of these pods who holds what, from now on."""
        for name in pods:
            if name not in self._watched:
                self._watched.add(name)
                self._note(name, list(self.history((name, 0))))

    def holding(self, chain: Sequence[int]) -> list[tuple[int, set[str]]]:
        """How many leading blocks some watched pods hold, deepest first, with all pods that hold so many or more."""
        found: list[tuple[int, set[str]]] = []
        last = 0
        for depth, block in enumerate(chain, start=1):
            names = self._holding.get(block)
            if names is None:
                break
            count = 1 if isinstance(names, str) else len(names)
            if count == last:
                found.pop()
            found.append((depth, {names} if isinstance(names, str) else names))
            last = count
        return found[::-1]

    def history(self, pod: PodKey) -> Held:
        """What the pod was sent; whoever is watched later tells what it drops from the first."""
        held = self._pods.get(pod)
        if held is None:
            held = self._pods[pod] = _Held(pod[0])
        return held

    def record(self, chain: Sequence[int], pod: PodKey, room: int = 0) -> None:
        """Remember that the pod was sent these blocks."""
        name = pod[0]
        self._changed.add(pod)
        if name in self._watched:
            held, most = self._pods[pod], min(room or self._max, self._max)
            known = next((place for place, block in enumerate(chain) if block not in held), len(chain))
            self._note(name, chain[known:most])
        super().record(chain, pod, room)

    def keep(self, pods: Iterable[PodKey]) -> None:
        """Forget every pod that is not named."""
        super().keep(pods)
        self._places.clear()
        self._sizes.clear()
        self._changed = set(self._pods)
        self._watched.intersection_update([name for name, _ in self._pods])
        self._holding.clear()
        for name in self._watched:
            self._note(name, list(self._pods[name, 0]))

    def _shrink(self, held: Held, size: int) -> None:
        """Let go what was used least recently, and know that the pod does not hold it any more."""
        name, holding, drop = getattr(held, "name", ""), self._holding, held.popitem
        for _ in range(len(held) - size):
            block = drop(last=False)[0]
            names = holding.get(block)
            if isinstance(names, set):
                names.discard(name)
            if not names or names == name:
                holding.pop(block, None)

    def _largest(self) -> Held:
        """The first of the pods that hold most."""
        if len(self._places) < len(self._pods) or len(self._sizes) > _STALE * len(self._pods):
            self._places = {pod: place for place, pod in enumerate(self._pods)}
            self._sizes.clear()
            self._changed.update(self._pods)
        for pod in self._changed:
            heapq.heappush(self._sizes, (-len(self._pods[pod]), self._places[pod], pod))
        self._changed.clear()
        while len(self._pods[self._sizes[0][2]]) != -self._sizes[0][0]:
            heapq.heappop(self._sizes)
        found = self._sizes[0][2]
        self._changed.add(found)
        return self._pods[found]

    def _note(self, name: str, blocks: Sequence[int]) -> None:
        """A pod holds these blocks now; mostly nobody holds any from some block on."""
        holding, first = self._holding, True
        for place, block in enumerate(blocks):
            names = holding.get(block)
            if names is None:
                if first and holding.keys().isdisjoint(blocks[place:]):
                    holding.update(dict.fromkeys(blocks[place:], name))
                    return
                holding[block], first = name, False
            elif isinstance(names, set):
                names.add(name)
            elif names != name:
                holding[block] = {names, name}


class _Held(Held):
    """Blocks of one pod, that knows whose they are."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class _Search:
    """One request: what it costs on a pod that holds so much of its prompt, and the best that was found so far."""

    __slots__ = ("_best", "_disturbed", "_found", "_now", "_own", "_size", "ask", "capacity", "price")

    def __init__(self, ask: Ask, now: float, price: Coefficients, capacity: Capacity) -> None:
        self.ask, self.price, self.capacity = ask, price, capacity
        self._now, self._size = now, tokens(ask.prompt_bytes)
        self._best = float("inf")
        self._found: list[tuple[float, str]] = []
        self._own = self._disturbed = 0.0

    def at(self, depth: int) -> None:
        """Look at pods now that hold so many blocks."""
        cached = min(self._size, tokens(depth * BLOCK))
        count = self._size - cached
        self._own = compute(count, pairs(count, cached), self.price)
        self._disturbed = self.price.stream_ms + count * self.price.interference_ms_per_token

    def least(self, level: int) -> float:
        """What a pod with so many requests costs at least."""
        return self.price.base_ms + 2.0 * self._own + level * self._disturbed

    def cost(self, view: PodView, ledger: PodLedger) -> float:
        """What a pod costs but for loading the adapter, or something less that is too much already."""
        price, capacity = self.price, self.capacity
        cost = self.least(ledger.running + view.foreign_running) + view.foreign_waiting * price.waiting_ms
        if ledger.queued or ledger.pending_tokens:
            cost += len(ledger.queued) * self._own
            if self.hopeless(cost):
                return cost
            ahead = ledger.ahead(self._now, price)
            cost += compute(ahead.tokens, ahead.pairs, price)
        if capacity.kv_tokens:
            cost += max(0.0, ledger.held_tokens + self._size - capacity.kv_tokens) * price.room_ms_per_token
        if self.ask.adapter is not None:
            cost += ledger.slots_short(self.ask.adapter, capacity.slots) * price.slot_ms
        return cost + max(0.0, view.kv_usage - KV_PRESSURE_FROM) / (1.0 - KV_PRESSURE_FROM) * price.preemption_ms

    def hopeless(self, cost: float) -> bool:
        """Whether that is surely too much."""
        return cost > self._best + _SLACK * (1.0 + self._best)

    def note(self, cost: float, name: str) -> None:
        """A pod that would cost this."""
        if not self.hopeless(cost):
            self._found.append((cost, name))
            self._best = min(self._best, cost)

    def names(self) -> list[str]:
        """Who could win."""
        return [name for cost, name in self._found if not self.hopeless(cost)]


class Shortlist:
    """The pods of one Model, by how busy they are: those that are plain (see `_is_plain`), and the others."""

    def __init__(self, index: WatchedIndex, capacity: Capacity) -> None:
        self._index, self._capacity = index, capacity
        self._plain: dict[int, set[str]] = {}
        self._other: dict[int, set[str]] = {}
        self._where: dict[str, tuple[dict[int, set[str]], int]] = {}
        self._pods: dict[str, tuple[PodView, PodLedger]] = {}
        self._encoded: dict[str, bytes] = {}
        self._resident: dict[str, set[str]] = {}
        self._broken: set[str] = set()

    def put(self, view: PodView, ledger: PodLedger) -> None:
        """A pod is as it is now."""
        name, before = view.name, self._pods.get(view.name)
        if before is None or before[0] is not view:
            self._reside(name, before[0].resident if before else {}, view.resident)
            self._pods[name] = view, ledger
            self._encoded[name] = name.encode()
        fit = ledger.breaker.phase == "Closed" and view.ready and not view.draining
        (self._broken.discard if fit else self._broken.add)(name)
        level = ledger.running + view.foreign_running
        buckets = self._plain if self._is_plain(view, ledger) else self._other
        was = self._where.get(name)
        if was is None or was[0] is not buckets or was[1] != level:
            if was is not None:
                was[0][was[1]].discard(name)
                if not was[0][was[1]]:
                    del was[0][was[1]]
            buckets.setdefault(level, set()).add(name)
            self._where[name] = buckets, level

    def names(self, ask: Ask, price: Coefficients, now: float) -> list[str] | None:
        """Who could be chosen; None where only weighing all of them tells."""
        kv_tokens = self._capacity.kv_tokens
        huge = kv_tokens and tokens(ask.prompt_bytes) > kv_tokens / 2
        if self._broken or self._index.announced or price.stream_ms <= 0.0 or price.silence_per_ms or huge:
            return None
        search = _Search(ask, now, price, self._capacity)
        deeper = _NOBODY
        for depth, holding in self._index.holding(ask.chain):
            search.at(depth)
            there = holding - deeper if deeper else holding
            if len(there) <= FEW:
                self._weigh_all(search, there)
            else:
                self._by_level(search, there, _NOBODY)
            deeper = holding
        search.at(0)
        self._by_level(search, None, deeper)
        return search.names()

    def _by_level(self, search: _Search, among: AbstractSet[str] | None, but: AbstractSet[str]) -> None:
        """Search the pods in `among` (None: all) except those in `but`, which hold equally much of the prompt."""
        for level in sorted(self._plain.keys() | self._other.keys()):
            if search.hopeless(search.least(level)):
                return
            plain, other = (_among(bucket.get(level, _NOBODY), among, but) for bucket in (self._plain, self._other))
            if search.ask.adapter is not None:
                self._weigh_all(search, plain | other)
            else:
                if plain:
                    search.note(search.least(level), self._drawn(search.ask.request_id, plain))
                self._weigh(search, other, 0.0)

    def _weigh_all(self, search: _Search, names: AbstractSet[str]) -> None:
        """Note what each of these pods costs, but for those where loading the adapter alone is too much."""
        adapter, load_ms = search.ask.adapter, search.price.adapter_load_ms
        if adapter is None:
            self._weigh(search, names, 0.0)
            return
        resident = self._resident.get(adapter, _NOBODY)
        self._weigh(search, names & resident, 0.0)
        if not search.hopeless(search.least(0) + load_ms):
            self._weigh(search, names - resident, load_ms)

    def _weigh(self, search: _Search, names: Iterable[str], load_ms: float) -> None:
        for name in names:
            known = self._pods.get(name)
            if known is not None:
                search.note(search.cost(*known) + load_ms, name)

    def _drawn(self, request_id: str, names: AbstractSet[str]) -> str:
        """Who of these would win among equals (see `choose.cheapest`)."""
        if len(names) == 1:
            return next(iter(names))
        digest, begin, encoded = xxhash.xxh3_64_intdigest, f"{request_id}\0".encode(), self._encoded
        return min([(digest(begin + encoded[name]), name) for name in names])[1]

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


def _among(bucket: AbstractSet[str], among: AbstractSet[str] | None, but: AbstractSet[str]) -> AbstractSet[str]:
    found = bucket if among is None or not bucket else bucket & among
    return found - but if but and found else found
