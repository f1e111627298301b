"""What the gateway measures, in Prometheus' terms. Labels are declared names, pods of the fleet, and words
from fixed sets.

What every request counts is plain numbers, written by the one event loop and read when Prometheus asks: a
counter of the client library costs more than a routing decision. Meters of a served name go when the name is
no longer declared, so that the number of series stays bounded by the fleet.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 30.0, 60.0, 120.0, 300.0)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5)
_HISTOGRAMS = {
    "ttft": ("ttft_seconds", "Time to the first body byte of a stream", _LATENCY),
    "tpot": ("tpot_seconds", "Time for each token after the first of a stream", _PER_TOKEN),
    "duration": ("request_seconds", "Time from request to the end of the answer", _LATENCY),
}


class Tally:
    """One histogram: `counts[i]` observations up to `bounds[i]`, the last count is of those beyond."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value in seconds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts, as Prometheus wants them."""
        summed, found = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            summed += count
            found.append((bound, float(summed)))
        return found


class Meters:
    """The numbers of one served name."""

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.tokens = {"prompt": 0, "cached": 0, "output": 0}
        self.tallies = {key: Tally(bounds) for key, (_, _, bounds) in _HISTOGRAMS.items()}
        self.ttft = self.tallies["ttft"].observe
        self.tpot = self.tallies["tpot"].observe
        self._duration = self.tallies["duration"]

    def requested(self, status: int, seconds: float) -> None:
        """Count a request by its final status (499: the client went away) and by how long it took."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        duration = self._duration
        duration.counts[bisect_left(_LATENCY, seconds)] += 1
        duration.total += seconds

    def reported(self, prompt: int, cached: int, output: int) -> None:
        """Count tokens as an engine reported them."""
        self.tokens["prompt"] += prompt
        self.tokens["cached"] += cached
        self.tokens["output"] += output


class Metrics(Collector):
    """Every family, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.errors = self._counter("errors", "Requests that the gateway answered with an error", "code")
        self.retries = self._counter("retries", "Attempts after the first", "reason")
        self.retries_denied = self._counter("retries_denied", "Retries that the budget did not allow")
        self.broken_streams = self._counter("broken_streams", "Streams that ended with an error after the first byte")
        self.continued = self._counter("streams_continued", "Times that a stream went on from another engine")
        self.not_continued = self._counter("streams_not_continued", "Streams that could not be continued", "reason")
        self.warmed = self._counter("warmed_prefixes", "Requests sent to warm a replacement", "result")
        self.warmed_tokens = self._counter("warmed_tokens", "Tokens of prompts that replacements were warmed with")
        self.continuation_gap = Tally(_LATENCY)
        self._meters: dict[str, Meters] = {}
        self.registry.register(self)

    def of(self, served: str) -> Meters:
        """The meters of a declared name."""
        found = self._meters.get(served)
        if found is None:
            found = self._meters[served] = Meters()
        return found

    def keep(self, served: Iterable[str]) -> None:
        """Drop the series of names that are not declared any more."""
        alive = set(served)
        self._meters = {name: meters for name, meters in self._meters.items() if name in alive}

    def collect(self) -> Iterable[Family]:
        """See `prometheus_client.registry.Collector`."""
        requests = CounterMetricFamily(
            "sheaf_gateway_requests", "Requests by final status", labels=("served", "status")
        )
        tokens = CounterMetricFamily("sheaf_gateway_tokens", "Tokens that engines reported", labels=("served", "kind"))
        for name, meters in self._meters.items():
            for status, count in meters.statuses.items():
                requests.add_metric((name, str(status)), count)
            for kind, count in meters.tokens.items():
                tokens.add_metric((name, kind), count)
        yield from (requests, tokens)
        yield from (self._histogram(key) for key in _HISTOGRAMS)
        text = "Time from the loss of a stream's engine to the next byte from another"
        gaps = HistogramMetricFamily("sheaf_gateway_continuation_gap_seconds", text)
        gaps.add_metric((), self.continuation_gap.buckets(), self.continuation_gap.total)
        yield gaps

    def _histogram(self, key: str) -> HistogramMetricFamily:
        name, text, _ = _HISTOGRAMS[key]
        family = HistogramMetricFamily(f"sheaf_gateway_{name}", text, labels=("served",))
        for served, meters in self._meters.items():
            tally = meters.tallies[key]
            family.add_metric((served,), tally.buckets(), tally.total)
        return family

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"sheaf_gateway_{name}", text, labels, registry=self.registry)


def _family(name: str, text: str, label: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"sheaf_gateway_{name}", text, labels=("served", label))


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
