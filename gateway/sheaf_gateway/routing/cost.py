"""What a request is expected to cost on a pod, in milliseconds until its first token, term by term.

    queue    = pending_tokens * prefill_ms_per_token + foreign_waiting * waiting_ms
    prefill  = base_ms + uncached_tokens * prefill_ms_per_token
    adapter  = 0 where resident, adapter_load_ms / 2 where it is loading, adapter_load_ms otherwise
    harm     = running * (stream_ms + uncached_tokens * interference_ms_per_token) + kv_pressure * preemption_ms

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
    waiting_ms: float = 50.0
    adapter_load_ms: float = 400.0
    stream_ms: float = 2.0
    interference_ms_per_token: float = 0.002
    preemption_ms: float = 500.0


class Work(msgspec.Struct, frozen=True, gc=False):
    """What a request would meet on a pod. Tokens are estimates; `kv_usage` is a share from 0 to 1."""

    uncached_tokens: float
    pending_tokens: float
    running: int
    foreign_waiting: int
    kv_usage: float
    residency: Residency


class Terms(msgspec.Struct, frozen=True, gc=False):
    """The expected cost in milliseconds, taken apart."""

    queue: float
    prefill: float
    adapter: float
    harm: float
    total: float


def cost(work: Work, price: Coefficients) -> Terms:
    """The expected cost of a request on a pod; it never falls when any part of the work grows."""
    queue = work.pending_tokens * price.prefill_ms_per_token + work.foreign_waiting * price.waiting_ms
    prefill = price.base_ms + work.uncached_tokens * price.prefill_ms_per_token
    adapter = _ADAPTER_SHARE[work.residency] * price.adapter_load_ms
    pressure = max(0.0, work.kv_usage - KV_PRESSURE_FROM) / (1.0 - KV_PRESSURE_FROM)
    disturbed = price.stream_ms + work.uncached_tokens * price.interference_ms_per_token
    harm = work.running * disturbed + pressure * price.preemption_ms
    return Terms(queue, prefill, adapter, harm, queue + prefill + adapter + harm)


_ADAPTER_SHARE: dict[Residency, float] = {"Resident": 0.0, "Loading": 0.5, "Absent": 1.0}


def tokens(size: float) -> float:
    """Estimated tokens of a prompt of `size` bytes."""
    return size / BYTES_PER_TOKEN


class CostModel:
    """The coefficients of one pool of equal pods, and how observations move them."""

    _RATE = 0.05
    _CLIP = 3.0
    _BASE = (0.1, 10_000.0)
    _TOKEN = (0.001, 100.0)
    _LOAD = (1.0, 120_000.0)

    def __init__(self, prior: Coefficients | None = None) -> None:
        self.coefficients = prior or Coefficients()
        self._scale = 0.0

    def observe_ttft(self, prefill_tokens: float, ttft_ms: float) -> None:
        """Learn from a time to first token and the tokens prefilled before it (queue ahead and own, uncached)."""
        now = self.coefficients
        residual = ttft_ms - now.base_ms - prefill_tokens * now.prefill_ms_per_token
        bound = self._CLIP * (self._scale or max(ttft_ms - residual, 1.0))
        clipped = min(max(residual, -bound), bound)
        self._scale = max(1.0, self._scale + self._RATE * (abs(clipped) - self._scale))
        step = self._RATE * clipped / (1.0 + (prefill_tokens / 100.0) ** 2)
        self.coefficients = msgspec.structs.replace(
            now,
            base_ms=_within(now.base_ms + step, self._BASE),
            prefill_ms_per_token=_within(now.prefill_ms_per_token + step * prefill_tokens / 10_000.0, self._TOKEN),
        )

    def observe_load(self, load_ms: float) -> None:
        """Learn from the time that loading an adapter took."""
        now = self.coefficients
        moved = now.adapter_load_ms + 0.2 * (_within(load_ms, self._LOAD) - now.adapter_load_ms)
        self.coefficients = msgspec.structs.replace(now, adapter_load_ms=_within(moved, self._LOAD))


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
