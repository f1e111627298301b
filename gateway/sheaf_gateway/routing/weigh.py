"""The way that nearly every request takes: all pods of its Model are plainly healthy.

What the cost model says is worked out for all of them in one pass, to the last bit of every sum as `cost` does it (a
property test compares them; calls would cost more than the sums), and only the facts are kept: what they mean term by
term is worked out when somebody asks why (`choose.Decision`). What belongs to a pod and not to the request is looked up
once, and again when the pods change.
"""

from collections.abc import Callable, Mapping, Sequence

from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.routing.choose import Own, Row
from sheaf_gateway.routing.cost import (
    BYTES_PER_TOKEN,
    KV_PRESSURE_FROM,
    Coefficients,
    Residency,
    compute,
    pairs,
    tokens,
)
from sheaf_gateway.routing.index import PodKey
from sheaf_gateway.routing.ledger import LEAST_MS, MOST_DONE, PodLedger
from sheaf_gateway.routing.prefix import BLOCK

_RESIDENT: Residency = "Resident"


class Group:
    """The pods of one Model as one view of the fleet has them, with their keys and ledgers; `plain` where all are ready
    and none drains. `looks` has of each pod what `weigh` reads: it stays while the view does."""

    __slots__ = ("keys", "looks", "plain", "pods", "rows")

    def __init__(self, pods: Sequence[Pod], ledger: Callable[[str], PodLedger]) -> None:
        self.pods = pods
        self.plain = bool(pods) and all(pod.ready and not pod.draining for pod in pods)
        self.keys: list[PodKey] = [(pod.name, pod.epoch) for pod in pods]
        self.rows = [(pod, key, ledger(pod.name)) for pod, key in zip(pods, self.keys, strict=True)]
        self.looks = [
            (pod.name, pod, key, ledger, pod.foreign_running, pod.foreign_waiting, pod.kv_usage)
            for pod, key, ledger in self.rows
        ]


def weigh(
    group: Group,
    matched: Mapping[PodKey, int],
    size: int,
    adapter: str | None,
    digest: str,
    price: Coefficients,
    now: float,
    slots: int,
    room: int,
) -> tuple[list[Row], list[float]] | None:
    """The facts of every pod and what each would cost in milliseconds; None where a breaker is not closed.

    Args:
        group: the pods.
        matched: leading blocks of the prompt that pods should hold; those with none may be left out.
        size: bytes of the prompt.
        adapter: the adapter, None for the base model, and `digest` its present content.
        digest: see `adapter`.
        price: the pool's prices.
        now: the time in seconds.
        slots: adapters in one batch of a pod; 0: unknown.
        room: tokens that a pod's KV cache holds; 0: unknown.
    """
    waiting_ms, base_ms, token_ms, pair_ms = (
        price.waiting_ms, price.base_ms, price.prefill_ms_per_token, price.attention_ms_per_pair,
    )  # fmt: skip
    last, state, short, load_ms, over = 0, _RESIDENT, 0, 0.0, 0.0
    own = _own(size, 0, price)
    owns, own_ms, disturbed = {0: own}, own[3], own[4]
    rows: list[Row] = []
    totals: list[float] = []
    for name, pod, key, ledger, foreign_running, waiting, usage in group.looks:
        if ledger.breaker.phase != "Closed":
            return None
        if matched and (blocks := matched.get(key, 0)) != last:
            last, own = blocks, owns.get(blocks) or owns.setdefault(blocks, _own(size, blocks, price))
            own_ms, disturbed = own[3], own[4]
        ahead_tokens, ahead_pairs, queued = 0.0, 0.0, 0
        if ledger.queued:
            queued, first = len(ledger.queued), next(iter(ledger.queued.values()))
            expected = first.tokens * token_ms + first.pairs * pair_ms
            done = (now - ledger.since) * 1000.0 / (expected if expected > LEAST_MS else LEAST_MS)  # noqa: FURB136
            done = done if done < MOST_DONE else MOST_DONE  # noqa: FURB136
            ahead_tokens = ledger.pending_tokens - done * first.tokens
            ahead_pairs = ledger.pending_pairs - done * first.pairs
        queue = ahead_tokens * token_ms + ahead_pairs * pair_ms + waiting * waiting_ms
        if room:
            over = max(0.0, ledger.held_tokens + tokens(size) - room)
            queue += over * price.room_ms_per_token
        if adapter is not None:
            state, short, load_ms = _adapted(pod, ledger, adapter, digest, price, slots)
        running = ledger.running + foreign_running
        harm = running * disturbed
        if usage > KV_PRESSURE_FROM:
            harm += (usage - KV_PRESSURE_FROM) / (1.0 - KV_PRESSURE_FROM) * price.preemption_ms
        harm += (queued + 1) * own_ms
        totals.append(queue + (base_ms + own_ms) + load_ms + harm)
        rows.append(
            (name, own, ahead_tokens, ahead_pairs, running, waiting, usage, state, queued, short, over)
        )  # fmt: skip
    return rows, totals


def _own(size: int, blocks: int, price: Coefficients) -> Own:
    """See `choose.Own`."""
    cached = min(size, blocks * BLOCK)
    count = (size - cached) / BYTES_PER_TOKEN
    met = pairs(count, cached / BYTES_PER_TOKEN)
    return cached, count, met, compute(count, met, price), price.stream_ms + count * price.interference_ms_per_token


def _adapted(
    pod: Pod, ledger: PodLedger, adapter: str, digest: str, price: Coefficients, slots: int
) -> tuple[Residency, int, float]:
    """Whether the adapter is there, how many must leave a slot for it, and what both cost."""
    state = residency(pod, adapter, digest)
    share = 0.0 if state == "Resident" else 0.5 if state == "Loading" else 1.0
    short = ledger.slots_short(adapter, slots)
    return state, short, share * price.adapter_load_ms + short * price.slot_ms


def residency(pod: Pod, adapter: str | None, digest: str) -> Residency:
    """Whether a pod has an adapter's present content."""
    if pod.holds(adapter, digest):
        return "Resident"
    return "Loading" if adapter in pod.loading else "Absent"
