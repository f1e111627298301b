"""What the gateway measures, in Prometheus' terms. Labels are declared names, pods of the fleet, and words
from fixed sets.

Meters of a served name are resolved once and kept; they go when the name is no longer declared, so that the
number of series stays bounded by the fleet.
"""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 30.0, 60.0, 120.0, 300.0)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5)


class Meters:
    """The series of one served name."""

    def __init__(self, metrics: "Metrics", served: str) -> None:
        self._metrics = metrics
        self._served = served
        self._requests: dict[int, Callable[[], None]] = {}
        self.ttft = metrics.ttft.labels(served).observe
        self.tpot = metrics.tpot.labels(served).observe
        self.duration = metrics.duration.labels(served).observe
        self.prompt_tokens = metrics.tokens.labels(served, "prompt").inc
        self.cached_tokens = metrics.tokens.labels(served, "cached").inc
        self.output_tokens = metrics.tokens.labels(served, "output").inc

    def requested(self, status: int) -> None:
        """Count a request by its final status (499: the client went away)."""
        count = self._requests.get(status)
        if count is None:
            count = self._requests[status] = self._metrics.requests.labels(self._served, str(status)).inc
        count()

    def remove(self) -> None:
        """Drop the series."""
        for status in self._requests:
            self._metrics.requests.remove(self._served, str(status))
        for family in (self._metrics.ttft, self._metrics.tpot, self._metrics.duration):
            family.remove(self._served)
        for kind in ("prompt", "cached", "output"):
            self._metrics.tokens.remove(self._served, kind)


class Metrics:
    """Every family, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by final status", "served", "status")
        self.errors = self._counter("errors", "Requests that the gateway answered with an error", "code")
        self.retries = self._counter("retries", "Attempts after the first", "reason")
        self.retries_denied = self._counter("retries_denied", "Retries that the budget did not allow")
        self.broken_streams = self._counter("broken_streams", "Streams that ended with an error after the first byte")
        self.tokens = self._counter("tokens", "Tokens that engines reported", "served", "kind")
        self.ttft = self._histogram("ttft_seconds", "Time to the first body byte of a stream", _LATENCY)
        self.tpot = self._histogram("tpot_seconds", "Time for each token after the first of a stream", _PER_TOKEN)
        self.duration = self._histogram("request_seconds", "Time from request to the end of the answer", _LATENCY)
        self._meters: dict[str, Meters] = {}

    def of(self, served: str) -> Meters:
        """The meters of a declared name."""
        found = self._meters.get(served)
        if found is None:
            found = self._meters[served] = Meters(self, served)
        return found

    def keep(self, served: Iterable[str]) -> None:
        """Drop the series of names that are not declared any more."""
        alive = set(served)
        for name in [name for name in self._meters if name not in alive]:
            self._meters.pop(name).remove()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"sheaf_gateway_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"sheaf_gateway_{name}", text, ("served",), buckets=buckets, registry=self.registry)


Reading = tuple[str, str, tuple[str, ...], Iterable[tuple[tuple[str, ...], float]]]


class StateCollector(Collector):
    """Gauges read from the gateway's state when they are asked for: (name, text, labels, values)."""

    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
        self._read = read

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """See `prometheus_client.registry.Collector`."""
        for name, text, labels, values in self._read():
            family = GaugeMetricFamily(f"sheaf_gateway_{name}", text, labels=labels)
            for where, value in values:
                family.add_metric(where, value)
            yield family
