"""Rules on SLOs."""

from sheaf_crds.base import NAME_PATTERN
from sheaf_crds.rules.rule import Rule

_PERCENTILES = ("p50", "p90", "p95", "p99")
_LATENCIES = ("ttft", "tpot", "e2e")


def _rising(latency: str, low: str, high: str) -> Rule:
    return Rule(
        ("SLO",),
        ("spec", latency),
        f"!has(self.{low}) || !has(self.{high}) || duration(self.{low}) <= duration(self.{high})",
        f"{low} is longer than {high}, and percentiles cannot fall",
        f"lower {low} or raise {high}",
        low,
    )


def _positive(latency: str, percentile: str) -> Rule:
    return Rule(
        ("SLO",),
        ("spec", latency, percentile),
        "duration(self) > duration('0s')",
        "no answer takes no time at all",
        "write a time above zero, such as 800ms, or leave it out to promise nothing",
    )


def _whole_after_first(percentile: str) -> Rule:
    return Rule(
        ("SLO",),
        ("spec",),
        f"!has(self.ttft.{percentile}) || !has(self.e2e.{percentile}) || "
        f"duration(self.ttft.{percentile}) <= duration(self.e2e.{percentile})",
        f"e2e.{percentile} is shorter than ttft.{percentile}, but the last token cannot come before the first",
        f"raise e2e.{percentile} or lower ttft.{percentile}",
        f"e2e.{percentile}",
    )


_PAIRS = tuple((low, high) for i, low in enumerate(_PERCENTILES) for high in _PERCENTILES[i + 1 :])
SLO = (
    *(_rising(latency, low, high) for latency in _LATENCIES for low, high in _PAIRS),
    *(_positive(latency, percentile) for latency in _LATENCIES for percentile in _PERCENTILES),
    *(_whole_after_first(percentile) for percentile in _PERCENTILES),
    Rule(
        ("SLO",),
        ("spec", "fairness", "weights"),
        f"self.all(tenant, size(tenant) <= 63 && tenant.matches('{NAME_PATTERN}'))",
        "the name of a tenant is not a DNS label",
        "write at most 63 lower-case letters, digits and '-', such as team-a: 4",
    ),
    Rule(
        ("SLO",),
        ("spec", "fairness"),
        "self.policy != 'None' || size(self.weights) == 0",
        "weights have no effect with policy None",
        "remove weights or set policy to VTC or DLPM",
        "weights",
    ),
)
