"""What a request is expected to cost on a pod, in milliseconds until its first token, term by term.

    queue    = pending_tokens * prefill_ms_per_token + pending_pairs * attention_ms_per_pair
               + foreign_waiting * waiting_ms + room_short * room_ms_per_token
    prefill  = base_ms + uncached_tokens * prefill_ms_per_token + pairs * attention_ms_per_pair
    adapter  = 0 where resident, adapter_load_ms / 2 where it is loading, adapter_load_ms otherwise,
               + slots_short * slot_ms
    harm     = running * (stream_ms + uncached_tokens * interference_ms_per_token) + kv_pressure * preemption_ms
               + (queued + 1) * (what prefill costs above base_ms: it is paid by those there and those to come)
    silence  = overdue_ms * silence_per_ms (see `silence`)

The coefficients and their units are explained in docs/gateway.md. `CostModel` corrects them online from
observed times to the first token by normalised least mean squares with clipped residuals: a stalled engine or
one absurd sample moves them little, and they never leave their bounds.
"""

from typing import Literal

import msgspec

BYTES_PER_TOKEN = 4.0
KV_PRESSURE_FROM = 0.9

Residency = Literal["Resident", "Loading", "Absent"]


class Coefficients(msgspec.Struct, frozen=True, kw_only=True):
    """Prices in milliseconds; the defaults are the prior of a pool that was never observed."""

    base_ms: float = 10.0
    prefill_ms_per_token: float = 0.2
    attention_ms_per_pair: float = 0.0
    waiting_ms: float = 50.0
    adapter_load_ms: float = 400.0
    stream_ms: float = 5.0
    interference_ms_per_token: float = 0.002
    preemption_ms: float = 500.0
    slot_ms: float = 3000.0
    room_ms_per_token: float = 0.2
    silence_per_ms: float = 10.0
    patience_ms: float = 1_000.0
    whole_patience_ms: float = 5_000.0


class Work(msgspec.Struct, frozen=True, gc=False):
    """What a request would meet on a pod. Tokens are estimates; `kv_usage` is a share from 0 to 1.

    `pairs` and `pending_pairs` count (prompt token computed, token it attends to) of this request and of those ahead;
    `queued` are the requests there without a first token; `slots_short` says how many adapters have to leave a slot
    before this one's gets one; `room_short` is how many tokens of KV cache are held beyond what would fit;
    `overdue_ms` by how much the pod's next word is late.
    """

    uncached_tokens: float
    pending_tokens: float
    running: int
    foreign_waiting: int
    kv_usage: float
    residency: Residency
    pairs: float = 0.0
    pending_pairs: float = 0.0
    queued: int = 0
    slots_short: int = 0
    room_short: float = 0.0
    overdue_ms: float = 0.0


class Terms(msgspec.Struct, frozen=True, gc=False):
    """The expected cost in milliseconds, taken apart."""

    queue: float
    prefill: float
    adapter: float
    harm: float
    total: float
    silence: float = 0.0


def cost(work: Work, price: Coefficients) -> Terms:
    """The expected cost of a request on a pod; it never falls when any part of the work grows."""
    own = compute(work.uncached_tokens, work.pairs, price)
    queue = compute(work.pending_tokens, work.pending_pairs, price) + work.foreign_waiting * price.waiting_ms
    queue += work.room_short * price.room_ms_per_token
    prefill = price.base_ms + own
    adapter = ADAPTER_SHARE[work.residency] * price.adapter_load_ms + work.slots_short * price.slot_ms
    pressure = max(0.0, work.kv_usage - KV_PRESSURE_FROM) / (1.0 - KV_PRESSURE_FROM)
    disturbed = price.stream_ms + work.uncached_tokens * price.interference_ms_per_token
    harm = work.running * disturbed + pressure * price.preemption_ms + (work.queued + 1) * own
    silence = work.overdue_ms * price.silence_per_ms
    return Terms(queue, prefill, adapter, harm, queue + prefill + adapter + harm + silence, silence)


def compute(count: float, pairs: float, price: Coefficients) -> float:
    """Milliseconds of prefill for so many tokens and pairs."""
    return count * price.prefill_ms_per_token + pairs * price.attention_ms_per_pair


ADAPTER_SHARE: dict[Residency, float] = {"Resident": 0.0, "Loading": 0.5, "Absent": 1.0}


def tokens(size: float) -> float:
    """Estimated tokens of a prompt of `size` bytes."""
    return size / BYTES_PER_TOKEN


def pairs(uncached: float, cached: float) -> float:
    """(token computed, token it attends to) in the prefill of so many tokens after so many that are cached."""
    return uncached * (cached + uncached / 2.0)


class CostModel:
    """The coefficients of one pool of equal pods, and how observations move them."""

    _RATE = 0.05
    _CLIP = 3.0
    _BASE = (0.1, 10_000.0)
    _TOKEN = (0.001, 100.0)
    _PAIR = (0.0, 0.01)
    _LOAD = (1.0, 120_000.0)
    _PATIENCE = (250.0, 30_000.0)
    _SPREADS = 6.0
    _FADE = 0.999

    def __init__(self, prior: Coefficients | None = None) -> None:
        self.coefficients = prior or Coefficients()
        self._scale = 0.0
        found = self.coefficients
        self._least_whole = self._longest = found.whole_patience_ms
        self._late = [(0.0, found.patience_ms / self._SPREADS), (0.0, found.whole_patience_ms / self._SPREADS)]

    def observe_ttft(self, prefill_tokens: float, ttft_ms: float, pairs: float = 0.0) -> None:
        """Learn from a time to first token and what was prefilled before it (queue ahead and own, uncached)."""
        now = self.coefficients
        expected = now.base_ms + compute(prefill_tokens, pairs, now)
        residual = ttft_ms - expected
        bound = self._CLIP * (self._scale or max(expected, 1.0))
        clipped = min(max(residual, -bound), bound)
        self._scale = max(1.0, self._scale + self._RATE * (abs(clipped) - self._scale))
        hundreds, millions = prefill_tokens / 100.0, pairs / 1e6
        step = self._RATE * clipped / (1.0 + hundreds**2 + millions**2)
        self.coefficients = msgspec.structs.replace(
            now,
            base_ms=_within(now.base_ms + step, self._BASE),
            prefill_ms_per_token=_within(now.prefill_ms_per_token + step * hundreds / 100.0, self._TOKEN),
            attention_ms_per_pair=_within(now.attention_ms_per_pair + step * millions / 1e6, self._PAIR),
        )

    def observe_silence(self, late_ms: float, *, streams: bool) -> None:
        """Learn from how much longer than its work explains a pod was silent before it said something. Whole answers
        that take long are rare among many: the longest fades slowly, and never below the prior."""
        now, place, late = self.coefficients, 0 if streams else 1, max(0.0, late_ms)
        patience = now.patience_ms if streams else now.whole_patience_ms
        if not late and patience <= (self._PATIENCE[0] if streams else self._least_whole):
            return
        (mean, spread), clipped = self._late[place], min(late, self._CLIP * patience)
        spread += self._RATE * (abs(clipped - mean) - spread)
        mean += self._RATE * (clipped - mean)
        self._late[place] = mean, spread
        found = _within(mean + self._SPREADS * spread, self._PATIENCE)
        if not streams:
            self._longest = max(self._least_whole, _within(clipped, self._PATIENCE), self._longest * self._FADE)
            found = max(found, self._longest)
        name = "patience_ms" if streams else "whole_patience_ms"
        self.coefficients = msgspec.structs.replace(now, **{name: found})

    def observe_load(self, load_ms: float) -> None:
        """Learn from the time that loading an adapter took."""
        now = self.coefficients
        moved = now.adapter_load_ms + 0.2 * (_within(load_ms, self._LOAD) - now.adapter_load_ms)
        self.coefficients = msgspec.structs.replace(now, adapter_load_ms=_within(moved, self._LOAD))


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
