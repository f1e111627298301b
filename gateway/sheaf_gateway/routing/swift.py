"""The router's choice without a record of everybody who was weighed: for simulations of millions of requests.

`pick` chooses the pod that `Router.decide` chooses, to the last bit of every sum (a property test compares them), and
records the chosen one only. Where a pod is not plainly healthy it asks `decide`.
"""

from collections.abc import Mapping, Sequence

import xxhash

from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.routing.choose import Candidate, Decision
from sheaf_gateway.routing.cost import KV_PRESSURE_FROM, Terms, compute, pairs, tokens
from sheaf_gateway.routing.index import PodKey
from sheaf_gateway.routing.prefix import BLOCK
from sheaf_gateway.routing.router import UNKNOWN, Ask, PodLedger, Router

_WHATEVER = Terms(0.0, 0.0, 0.0, 0.0, 0.0)


def pick(router: Router, ask: Ask, pods: Sequence[Pod], keys: Sequence[PodKey], now: float) -> Decision:
    """Where the request goes among the pods of its Model.

    Args:
        router: whose memory counts.
        ask: the request.
        pods: the pods of its Model, at least one.
        keys: name and epoch of each, in the same order.
        now: seconds.
    """
    if not all(pod.ready and not pod.draining for pod in pods):
        return router.decide(ask, pods, now)
    matched = router.index.match(ask.chain, keys)
    totals = _totals(router, ask, pods, matched, now)
    if totals is None:
        return router.decide(ask, pods, now)
    lowest = min(totals)
    place = totals.index(lowest)
    if totals.count(lowest) > 1:
        ties = [index for index, total in enumerate(totals) if total == lowest]
        place = min(ties, key=lambda index: _lot(ask.request_id, pods[index].name))
    cached = min(matched.get(keys[place], 0) * BLOCK, ask.prompt_bytes)
    name = pods[place].name
    return Decision(name, "Normal", (Candidate(name, "Healthy", cached, _WHATEVER),))


def _totals(
    router: Router, ask: Ask, pods: Sequence[Pod], matched: Mapping[PodKey, int], now: float
) -> list[float] | None:
    """The expected cost on each pod, None where one has a breaker that is not closed."""
    scale, ledgers = _Scale(router, ask, now), router.ledgers
    totals: list[float] = []
    for pod in pods:
        ledger = ledgers.get(pod.name) or router.ledger(pod.name)
        if ledger.breaker.phase != "Closed":
            return None
        blocks = matched.get((pod.name, pod.epoch), 0) if matched else 0
        totals.append(scale.total(pod, ledger, blocks))
    return totals


class _Scale:
    """What one request is weighed by on every pod; the sums are those of `cost`, in the same order."""

    __slots__ = ("_adapted", "_ask", "_asked", "_capacity", "_cold", "_now", "_price")

    def __init__(self, router: Router, ask: Ask, now: float) -> None:
        self._price = router.model(ask.model).coefficients
        self._capacity = router.capacities.get(ask.model, UNKNOWN)
        self._ask, self._now = ask, now
        self._asked = tokens(ask.prompt_bytes)
        self._adapted = ask.adapter is not None
        self._cold = self._own(0)

    def total(self, pod: Pod, ledger: PodLedger, blocks: int) -> float:
        """Milliseconds expected on a pod that has so many blocks of the prompt."""
        price, room = self._price, self._capacity.kv_tokens
        own, disturbed = self._own(blocks) if blocks else self._cold
        queue = pod.foreign_waiting * price.waiting_ms
        if ledger.queued or ledger.pending_tokens:
            ahead = ledger.ahead(self._now, price)
            queue = compute(ahead.tokens, ahead.pairs, price) + queue
        if room and (over := ledger.held_tokens + self._asked - room) > 0.0:
            queue += over * price.room_ms_per_token
        adapter = self._adapter(pod, ledger) if self._adapted else 0.0
        harm = (ledger.running + pod.foreign_running) * disturbed
        if pod.kv_usage > KV_PRESSURE_FROM:
            harm += (pod.kv_usage - KV_PRESSURE_FROM) / (1.0 - KV_PRESSURE_FROM) * price.preemption_ms
        harm += (len(ledger.queued) + 1) * own
        return queue + (price.base_ms + own) + adapter + harm

    def _own(self, blocks: int) -> tuple[float, float]:
        """Milliseconds of its own prefill, and what it takes from each stream that runs there."""
        size, price = self._ask.prompt_bytes, self._price
        cached = min(blocks * BLOCK, size)
        count = tokens(size - cached)
        own = compute(count, pairs(count, tokens(cached)), price)
        return own, price.stream_ms + count * price.interference_ms_per_token

    def _adapter(self, pod: Pod, ledger: PodLedger) -> float:
        ask, price = self._ask, self._price
        waits = 0.5 if ask.adapter in pod.loading else 1.0
        share = 0.0 if pod.holds(ask.adapter, ask.digest) else waits
        return share * price.adapter_load_ms + ledger.slots_short(ask.adapter, self._capacity.slots) * price.slot_ms


def _lot(request_id: str, pod: str) -> tuple[int, str]:
    return xxhash.xxh3_64_intdigest(f"{request_id}\0{pod}".encode()), pod
