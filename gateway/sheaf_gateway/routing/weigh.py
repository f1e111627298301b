"""The way that nearly every request takes: all pods of its Model are plainly healthy.

What the cost model says is worked out for all of them in one pass, to the last bit of every sum as `cost` does it (a
property test compares them; calls would cost more than the sums), and only the facts are kept: what they mean term by
term is worked out when somebody asks why (`choose.Decision`). What belongs to a pod and not to the request is looked up
once, and again when the pods change.
"""

from collections.abc import Callable, Mapping, Sequence

from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.routing.choose import Own, Weighing
from sheaf_gateway.routing.cost import (
    ADAPTER_SHARE,
    BYTES_PER_TOKEN,
    KV_PRESSURE_FROM,
    Coefficients,
    Residency,
    pairs,
    tokens,
)
from sheaf_gateway.routing.index import Held, PodKey
from sheaf_gateway.routing.ledger import LEAST_MS, MOST_DONE, PodLedger, Seen
from sheaf_gateway.routing.prefix import BLOCK
from sheaf_gateway.routing.silence import LATE_S, overdue_ms

NOTHING_TOLD: Mapping[int, int] = {}
_ON_TIME: dict[int, float] = {}


class Group:
    """The pods of one Model as one view of the fleet has them, with their keys and ledgers; `plain` where all are ready
    and none drains. `looks` has of each pod what `weigh` reads, `told` what decisions keep of it (see `Weighing`).
    Valid until the index and the ledgers forget pods."""

    __slots__ = ("histories", "keys", "looks", "names", "nothing", "places", "plain", "pods", "rows", "told")

    def __init__(
        self, pods: Sequence[Pod], ledger: Callable[[str], PodLedger], history: Callable[[PodKey], Held]
    ) -> None:
        self.pods = pods
        self.plain = bool(pods) and all(pod.ready and not pod.draining for pod in pods)
        self.names = [pod.name for pod in pods]
        self.keys: list[PodKey] = [(pod.name, pod.epoch) for pod in pods]
        self.places = {key: place for place, key in enumerate(self.keys)}
        self.rows = [(pod, key, ledger(pod.name)) for pod, key in zip(pods, self.keys, strict=True)]
        self.told = tuple((pod.name, pod.foreign_running, pod.foreign_waiting, pod.kv_usage) for pod in pods)
        self.looks = [(row[2], *told[1:]) for row, told in zip(self.rows, self.told, strict=True)]
        self.histories = [history(key) for key in self.keys]
        self.nothing = [0] * len(pods)


def weigh(
    group: Group,
    matched: Sequence[int],
    size: int,
    adapter: str | None,
    digest: str,
    price: Coefficients,
    now: float,
    slots: int,
    room: int,
    session: Mapping[int, int] = NOTHING_TOLD,
) -> tuple[Weighing, list[float]] | None:
    """The facts of every pod and what each would cost in milliseconds; None where a breaker is not closed.

    Args:
        group: the pods.
        matched: leading blocks of the prompt that each pod should hold; empty where none holds any.
        size: bytes of the prompt.
        adapter: the adapter, None for the base model, and `digest` its present content.
        digest: see `adapter`.
        price: the pool's prices.
        now: the time in seconds.
        slots: adapters in one batch of a pod; 0: unknown.
        room: tokens that a pod's KV cache holds; 0: unknown.
        session: by place the bytes among those of `matched` that only the session tells of.
    """
    waiting_ms, base_ms, token_ms, pair_ms = (
        price.waiting_ms, price.base_ms, price.prefill_ms_per_token, price.attention_ms_per_pair,
    )  # fmt: skip
    own = cold = _own(size, 0, price)
    known, own_ms, disturbed, last = {0: cold}, cold[3], cold[4], 0
    adapted, loads = _adapted(group, adapter, digest, price, slots) if adapter is not None else ((), ())
    silent_since, silence = now - LATE_S, price.silence_per_ms
    overdue = _ON_TIME
    totals: list[float] = []
    looked: list[Seen] = []
    owns: list[Own] = []
    for (ledger, foreign_running, waiting, usage), blocks in zip(group.looks, matched or group.nothing, strict=True):
        if ledger.breaker.phase != "Closed":
            return None
        if blocks != last:
            last, own = blocks, known.get(blocks) or known.setdefault(blocks, _own(size, blocks, price))
            own_ms, disturbed = own[3], own[4]
        seen = ledger.seen or ledger.look()
        pending, pending_pairs, first, first_pairs, since, running, queued, held = seen
        if queued:
            expected = first * token_ms + first_pairs * pair_ms
            done = (now - since) * 1000.0 / (expected if expected > LEAST_MS else LEAST_MS)  # noqa: FURB136
            done = done if done < MOST_DONE else MOST_DONE  # noqa: FURB136
            pending, pending_pairs = pending - done * first, pending_pairs - done * first_pairs
        queue = pending * token_ms + pending_pairs * pair_ms + waiting * waiting_ms
        if room:
            queue += max(0.0, held + tokens(size) - room) * price.room_ms_per_token
        harm = (running + foreign_running) * disturbed
        if usage > KV_PRESSURE_FROM:
            harm += (usage - KV_PRESSURE_FROM) / (1.0 - KV_PRESSURE_FROM) * price.preemption_ms
        harm += (queued + 1) * own_ms
        total = queue + (base_ms + own_ms) + (loads[len(totals)] if loads else 0.0) + harm
        if running and silence and ledger.heard_at < silent_since and (late := overdue_ms(ledger, now, price)):
            overdue = {**overdue, len(totals): late}
            total += late * silence
        totals.append(total)
        looked.append(seen)
        owns.append(own)
    return Weighing(group.told, looked, owns, adapted, now, size, room, overdue, session), totals


def _own(size: int, blocks: int, price: Coefficients) -> Own:
    """See `choose.Own`."""
    cached = min(size, blocks * BLOCK)
    count = (size - cached) / BYTES_PER_TOKEN
    met = pairs(count, cached / BYTES_PER_TOKEN)
    spent = count * price.prefill_ms_per_token + met * price.attention_ms_per_pair
    return cached, count, met, spent, price.stream_ms + count * price.interference_ms_per_token


def _adapted(
    group: Group, adapter: str, digest: str, price: Coefficients, slots: int
) -> tuple[list[tuple[Residency, int]], list[float]]:
    """Of each pod whether the adapter is there, how many must leave a slot for it, and what both cost."""
    found = [(residency(pod, adapter, digest), ledger.slots_short(adapter, slots)) for pod, _, ledger in group.rows]
    return found, [ADAPTER_SHARE[state] * price.adapter_load_ms + short * price.slot_ms for state, short in found]


def residency(pod: Pod, adapter: str | None, digest: str) -> Residency:
    """Whether a pod has an adapter's present content."""
    if pod.holds(adapter, digest):
        return "Resident"
    return "Loading" if adapter in pod.loading else "Absent"
