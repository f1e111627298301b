"""One answer for all workers: figures that are summed, metrics side by side, and decisions wherever they were made.

Metrics are not summed: each series has the label `worker`, so that a worker which starts again is one counter that
begins anew, as Prometheus expects, and not a fall of a sum. They are gathered when they are asked for, because the
client library's files for several processes cost each request more than the rest of its accounts.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import orjson
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from sheaf_gateway.admission.attainment import Tally, summed
from sheaf_gateway.api import figures
from sheaf_gateway.api.errors import ApiError
from sheaf_gateway.api.records import told

if TYPE_CHECKING:
    from sheaf_gateway.api.inference import Inference

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SUMS = frozenset({"running", "waiting", "held", "late", "batch", "arrivalRate", "refused"})
_HIGHEST = frozenset({"oldestWaitS", "slots", "readyPods"})
_LEAST = frozenset({"quietS"})

Family = tuple[str, str, str, list[tuple[str, dict[str, str], float]]]
Metrics = tuple[int, list[Family]]
Tallies = dict[str, dict[str, Tally]]


class Colleagues(Protocol):
    """The other workers (see `workers.asking`); `open`: this one still answers for itself."""

    index: int
    open: bool

    async def ask(self, question: str, *, all_of_them: bool = False) -> list[bytes]:
        """What each of them answers; TimeoutError where one of `all_of_them` does not."""


def answer(core: "Inference", question: str) -> bytes:
    """What this worker alone knows, for a colleague that asks; nothing where it does not."""
    word, _, rest = question.partition(" ")
    if word == "metrics" and core.colleagues is not None:
        return msgspec.msgpack.encode((core.colleagues.index, _families(core)))
    if word == "demand":
        return orjson.dumps(figures.demand(core))
    if word == "slos":
        return msgspec.msgpack.encode(core.attainment.tallies(core.now()))
    record = core.records.get(rest) if word == "decision" else None
    return b"" if record is None else told(record)


async def metrics(core: "Inference") -> bytes:
    """Everything that Prometheus may want to know."""
    colleagues = core.colleagues
    if colleagues is None:
        return generate_latest(REGISTRY) + generate_latest(core.metrics.registry)
    found: list[Metrics] = [(colleagues.index, _families(core))] if colleagues.open else []
    found += [msgspec.msgpack.decode(each, type=Metrics) for each in await colleagues.ask("metrics")]
    return generate_latest(_SideBySide(found))


async def demand(core: "Inference") -> dict[str, Any]:
    """What is asked of each Model, of all workers together.

    Raises:
        ApiError: A worker does not say what is asked of it: who scales down by what the others say would be misled.
    """
    own = figures.demand(core)
    if core.colleagues is None:
        return own
    try:
        others = [orjson.loads(each) for each in await core.colleagues.ask("demand", all_of_them=True)]
    except TimeoutError as error:
        raise ApiError(503, "demand_incomplete", f"The demand is not known in full: {error}.", retry_after=1) from None
    return {**own, "models": together([own["models"], *(other["models"] for other in others)])}


async def slos(core: "Inference") -> dict[str, Any]:
    """How each SLO was kept, by all workers together."""
    if core.colleagues is None:
        return figures.slos(core)
    found: list[Tallies] = [core.attainment.tallies(core.now())]
    found += [msgspec.msgpack.decode(each, type=Tallies) for each in await core.colleagues.ask("slos")]
    return figures.told_slos(core.attainment.figured(_merged(found)))


async def decision(core: "Inference", request_id: str) -> bytes | None:
    """Why a recent request went where it went, whichever worker decided it, as JSON."""
    record = core.records.get(request_id)
    if record is not None or core.colleagues is None:
        return None if record is None else told(record)
    return next((each for each in await core.colleagues.ask(f"decision {request_id}") if each), None)


def together(workers: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The demand of all workers: counts and rates are summed, of what each of them sees alike the highest counts, of
    how long nobody came the shortest, and means are weighted by arrivals."""
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for models in workers:
        for entry in models:
            by_model.setdefault(str(entry["model"]), []).append(entry)
    return [{key: _of_all(key, found) for key in found[0]} for _, found in sorted(by_model.items())]


def _of_all(key: str, found: Sequence[Mapping[str, Any]]) -> Any:
    values = [entry[key] for entry in found if key in entry]
    if key in _SUMS:
        return sum(values)
    if key in _HIGHEST or isinstance(values[0], str):
        return max(values)
    if key in _LEAST:
        return min((value for value in values if value is not None), default=None)
    weights = [entry.get("arrivalRate", 0.0) for entry in found if key in entry]
    total = sum(weights)
    return sum(map(float.__mul__, map(float, values), weights)) / total if total else max(values)


def _merged(found: Iterable[Tallies]) -> Tallies:
    gathered: dict[str, dict[str, list[Tally]]] = {}
    for tallies in found:
        for slo, windows in tallies.items():
            for window, tally in windows.items():
                gathered.setdefault(slo, {}).setdefault(window, []).append(tally)
    return {slo: {window: summed(parts) for window, parts in windows.items()} for slo, windows in gathered.items()}


def _families(core: "Inference") -> list[Family]:
    return [
        (family.name, family.documentation, family.type, [(s.name, dict(s.labels), s.value) for s in family.samples])
        for registry in (REGISTRY, core.metrics.registry)
        for family in registry.collect()
    ]


class _SideBySide(Collector):
    """The families of all workers as one registry, each series with its worker's number."""

    def __init__(self, workers: Iterable[Metrics]) -> None:
        self._families: dict[str, Metric] = {}
        for index, families in sorted(workers, key=lambda worker: worker[0]):
            for name, text, kind, samples in families:
                family = self._families.setdefault(name, Metric(name, text, kind))
                for sample, labels, value in samples:
                    family.add_sample(sample, {**labels, "worker": str(index)}, value)

    def collect(self) -> Iterable[Metric]:
        """See `prometheus_client.registry.Collector`."""
        return self._families.values()
