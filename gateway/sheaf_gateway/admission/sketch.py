"""A sketch of latencies in bounded memory: counts in buckets whose bounds grow by 4 %, so that every quantile is right
within 2 % of its value (DDSketch: Masson, Rim and Lee, VLDB 2019). Two sketches merge by adding."""

import math
from collections.abc import Iterable

_GROWTH = 1.04
_LOG = math.log(_GROWTH)
_SHORTEST, _LONGEST = 1e-4, 1e5

Sketch = dict[int, int]


def bucket(seconds: float) -> int:
    """The bucket of a latency in seconds; what lies outside 0.1 ms to 28 h counts as that."""
    return math.ceil(math.log(min(max(seconds, _SHORTEST), _LONGEST)) / _LOG)


def merged(sketches: Iterable[Sketch]) -> Sketch:
    """One sketch of all observations."""
    total: Sketch = {}
    for sketch in sketches:
        for key, count in sketch.items():
            total[key] = total.get(key, 0) + count
    return total


def quantiles(sketch: Sketch, wanted: Iterable[float]) -> list[float | None]:
    """The latencies in seconds at these quantiles (in rising order, from 0 to 1); None where nothing was observed."""
    size = sum(sketch.values())
    ordered = iter(sorted(sketch.items()))
    found: list[float | None] = []
    key, seen = 0, 0
    for quantile in wanted:
        rank = max(1, math.ceil(quantile * size))
        while size and seen < rank:
            key, count = next(ordered)
            seen += count
        found.append(_middle(key) if size else None)
    return found


def _middle(key: int) -> float:
    """The value in a bucket whose distance to both bounds is the same share of them."""
    return 2.0 * math.exp(key * _LOG) / (_GROWTH + 1.0)
