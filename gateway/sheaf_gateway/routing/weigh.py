"""The way that nearly every request takes: all pods of its Model are plainly healthy.

What the cost model says is worked out for all of them in one pass, to the last bit of every sum as `cost` does it (a
property test compares them), and only the facts are kept: what they mean term by term is worked out when somebody asks
why (`choose.Decision`). What belongs to a pod and not to the request is looked up once, and again when the pods change.
"""

from collections.abc import Callable, Mapping, Sequence

from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.routing.choose import PodFacts
from sheaf_gateway.routing.cost import (
    BYTES_PER_TOKEN,
    KV_PRESSURE_FROM,
    Coefficients,
    Residency,
    Work,
    compute,
    pairs,
    tokens,
)
from sheaf_gateway.routing.index import PodKey
from sheaf_gateway.routing.ledger import PodLedger
from sheaf_gateway.routing.prefix import BLOCK

_Own = tuple[int, float, float, float, float]
_RESIDENT: Residency = "Resident"


class Group:
    """The pods of one Model as one view of the fleet has them, with their keys and ledgers; `plain` where all are ready
    and none drains."""

    __slots__ = ("keys", "plain", "pods", "rows")

    def __init__(self, pods: Sequence[Pod], ledger: Callable[[str], PodLedger]) -> None:
        self.pods = pods
        self.plain = bool(pods) and all(pod.ready and not pod.draining for pod in pods)
        self.keys: list[PodKey] = [(pod.name, pod.epoch) for pod in pods]
        self.rows = [(pod, key, ledger(pod.name)) for pod, key in zip(pods, self.keys, strict=True)]


class Scale:
    """What one request is weighed by on every pod: its size, its adapter, the pool's prices, the time."""

    __slots__ = ("adapter", "digest", "kv_tokens", "now", "price", "size", "slots")

    def __init__(
        self, size: int, adapter: str | None, digest: str, price: Coefficients, now: float, slots: int, kv_tokens: int
    ) -> None:
        self.size = size
        self.adapter = adapter
        self.digest = digest
        self.price = price
        self.now = now
        self.slots = slots
        self.kv_tokens = kv_tokens

    def weigh(self, group: Group, matched: Mapping[PodKey, int]) -> tuple[list[PodFacts], list[float]] | None:
        """The facts of every pod and what each would cost in milliseconds; None where a breaker is not closed."""
        price, now, adapter, room = self.price, self.now, self.adapter, self.kv_tokens
        waiting_ms, base_ms, token_ms, pair_ms = (
            price.waiting_ms, price.base_ms, price.prefill_ms_per_token, price.attention_ms_per_pair,
        )  # fmt: skip
        last, state, short, load_ms, over = 0, _RESIDENT, 0, 0.0, 0.0
        cached, uncached, own_pairs, own_ms, disturbed = cold = self._own(0)
        facts, totals, owns, whole = [], [], {0: cold}, tokens(self.size)
        for pod, key, ledger in group.rows:
            if ledger.breaker.phase != "Closed":
                return None
            if matched and (blocks := matched.get(key, 0)) != last:
                last, own = blocks, owns.get(blocks)
                if own is None:
                    own = owns[blocks] = self._own(blocks)
                cached, uncached, own_pairs, own_ms, disturbed = own
            waiting, usage, queued = pod.foreign_waiting, pod.kv_usage, len(ledger.queued)
            queue, ahead_tokens, ahead_pairs = waiting * waiting_ms, 0.0, 0.0
            if queued or ledger.pending_tokens:
                ahead = ledger.ahead(now, price)
                ahead_tokens, ahead_pairs = ahead.tokens, ahead.pairs
                queue = ahead_tokens * token_ms + ahead_pairs * pair_ms + queue
            if room and (over := max(0.0, ledger.held_tokens + whole - room)):
                queue += over * price.room_ms_per_token
            if adapter is not None:
                state, short, load_ms = self._adapted(pod, ledger)
            running = ledger.running + pod.foreign_running
            harm = running * disturbed
            if usage > KV_PRESSURE_FROM:
                harm += (usage - KV_PRESSURE_FROM) / (1.0 - KV_PRESSURE_FROM) * price.preemption_ms
            harm += (queued + 1) * own_ms
            totals.append(queue + (base_ms + own_ms) + load_ms + harm)
            work = Work(
                uncached, ahead_tokens, running, waiting, usage, state,
                own_pairs, ahead_pairs, queued, short, over,
            )  # fmt: skip
            facts.append(PodFacts(key[0], "Healthy", cached, work))
        return facts, totals

    def _own(self, blocks: int) -> _Own:
        """Bytes that are cached, tokens and pairs of its own prefill, what that takes, and what it takes from each
        stream that runs there, in milliseconds."""
        price, size = self.price, self.size
        cached = min(size, blocks * BLOCK)
        count = (size - cached) / BYTES_PER_TOKEN
        met = pairs(count, cached / BYTES_PER_TOKEN)
        return cached, count, met, compute(count, met, price), price.stream_ms + count * price.interference_ms_per_token

    def _adapted(self, pod: Pod, ledger: PodLedger) -> tuple[Residency, int, float]:
        """Whether the adapter is there, how many must leave a slot for it, and what both cost."""
        state, price, short = residency(pod, self.adapter, self.digest), self.price, 0
        share = 0.0 if state == "Resident" else 0.5 if state == "Loading" else 1.0
        if self.slots:
            short = ledger.slots_short(self.adapter, self.slots)
        return state, short, share * price.adapter_load_ms + short * price.slot_ms


def residency(pod: Pod, adapter: str | None, digest: str) -> Residency:
    """Whether a pod has an adapter's present content."""
    if pod.holds(adapter, digest):
        return "Resident"
    return "Loading" if adapter in pod.loading else "Absent"
