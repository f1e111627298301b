"""Capacity and prices: what the cloud has, what it takes back, and what an hour costs.

A spot trace is a JSON object `{"metadata": {"gap_seconds": S}, "data": [n, ...]}`: instances that can be had in one
zone at each tick (the format of SkyPilot's public traces). Prices are `{"TYPE": {"onDemand": X, "spot": Y}, ...}`,
money an hour for one accelerator of that type; `cpu` stands for pods without one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from sheaf.simulator.traces.errors import TraceError

MOST_TICKS = 10_000_000
UNLIMITED = 1 << 30
MOST_MONEY = 1e9


@dataclass(frozen=True, slots=True)
class Price:
    """Money an hour."""

    on_demand: float
    spot: float


DEFAULT_PRICES: Mapping[str, Price] = {
    "cpu": Price(0.2, 0.08),
    "nvidia-l4": Price(0.7, 0.28),
    "nvidia-a100": Price(3.7, 1.5),
    "nvidia-h100": Price(7.0, 2.8),
}


@dataclass(frozen=True, slots=True)
class Zone:
    """Spot instances that one zone has, from tick to tick; after the last tick as at the last."""

    name: str
    gap_s: float = 1.0
    counts: Sequence[int] = (UNLIMITED,)

    def at(self, time: float) -> int:
        """How many there are."""
        return self.counts[min(int(time / self.gap_s), len(self.counts) - 1)]

    def changes(self) -> list[tuple[float, int]]:
        """When the number changes, and to what."""
        pairs = zip(self.counts, self.counts[1:], strict=False)
        return [(tick * self.gap_s, new) for tick, (old, new) in enumerate(pairs, start=1) if new != old]


@dataclass(frozen=True, slots=True)
class Market:
    """Zones and prices.

    Attributes:
        zones: where spot pods may run.
        prices: by accelerator type.
        notice_s: warning before a spot pod is taken, seconds; 0 is none.
    """

    zones: Sequence[Zone] = (Zone("zone"),)
    prices: Mapping[str, Price] = field(default_factory=lambda: DEFAULT_PRICES)
    notice_s: float = 30.0

    def price(self, kind: str, *, spot: bool) -> float:
        """Money an hour of one accelerator; an unknown type costs nothing."""
        found = self.prices.get(kind)
        return 0.0 if found is None else (found.spot if spot else found.on_demand)


def read_zone(path: Path, offset_s: float = 0.0) -> Zone:
    """The zone of a spot trace, from `offset_s` on.

    Raises:
        TraceError: naming file and remedy.
    """
    content = _read(path)
    metadata = content.get("metadata")
    gap = metadata.get("gap_seconds") if isinstance(metadata, dict) else None
    data = content.get("data")
    if isinstance(gap, bool) or not isinstance(gap, (int, float)) or not 0 < gap < 1e9:
        raise TraceError(path, 1, f"metadata.gap_seconds is {gap!r}", "give the seconds of a tick")
    if not isinstance(data, list) or not data or len(data) > MOST_TICKS:
        raise TraceError(path, 1, "data is no list of instance counts", "give one for each tick")
    if not all(type(count) is int and count >= 0 for count in data):
        raise TraceError(path, 1, "data has something else than whole numbers", "give instances alive at each tick")
    first = min(int(offset_s / gap), len(data) - 1)
    return Zone(path.stem, float(gap), tuple(data[first:]))


def read_prices(path: Path) -> dict[str, Price]:
    """Prices from a file, over the defaults.

    Raises:
        TraceError: naming file and remedy.
    """
    return {**DEFAULT_PRICES, **{name: _price(path, name, value) for name, value in _read(path).items()}}


def _price(path: Path, name: str, value: object) -> Price:
    found = value if isinstance(value, dict) else {}
    try:
        price = Price(float(found["onDemand"]), float(found["spot"]))
    except (KeyError, TypeError, ValueError):
        price = Price(-1.0, -1.0)
    if not (0 <= price.on_demand < MOST_MONEY and 0 <= price.spot < MOST_MONEY):
        raise TraceError(path, 1, f"{name} has no price", 'write {"onDemand": 3.7, "spot": 1.5}, money an hour')
    return price


def _read(path: Path) -> dict[str, Any]:
    try:
        value = orjson.loads(path.read_bytes())
    except OSError as error:
        raise TraceError(path, 0, f"cannot be read: {error.strerror}", "name a readable file") from error
    except orjson.JSONDecodeError as error:
        raise TraceError(
            path, error.lineno, f"is no JSON: {error.msg}", "docs/simulator.md shows the format"
        ) from error
    if not isinstance(value, dict):
        raise TraceError(path, 1, "is no JSON object", "docs/simulator.md shows the format")
    return value
