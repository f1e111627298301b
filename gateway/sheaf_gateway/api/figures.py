"""What is asked of Models and how promises are kept, for those who scale, and for people."""

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic.alias_generators import to_camel

from sheaf_gateway.admission.admission import Demand
from sheaf_gateway.admission.attainment import LATENCIES, QUANTILES, Figures
from sheaf_gateway.admission.promised import window
from sheaf_gateway.api.metrics import Reading
from sheaf_gateway.logs import lost_lines

if TYPE_CHECKING:
    from sheaf_gateway.api.inference import Inference


def demand(core: "Inference") -> dict[str, Any]:
    """`models`: by Model what `admission.Demand` has, with `slots` and `readyPods`; `at`: Unix seconds."""
    fleet = core.store.fleet
    found = [
        {
            "model": model,
            "readyPods": fleet.ready.get(model, 0),
            "slots": core.slots(model),
            **{to_camel(name): value for name, value in msgspec.structs.asdict(of_model(core, model)).items()},
        }
        for model in sorted({served.model for served in fleet.served.values()})
    ]
    return {"at": time.time(), "models": found}


def of_model(core: "Inference", model: str) -> Demand:
    """The demand for one Model."""
    return core.admission.demand(model, core.now(), ready=bool(core.store.fleet.ready.get(model)))


def slos(core: "Inference") -> dict[str, Any]:
    """`slos`: by SLO its windows as `SLO.status.windows` has them; `at`: Unix seconds."""
    return told_slos(core.attainment.figures(core.now()))


def told_slos(found: Mapping[str, Mapping[str, Figures]]) -> dict[str, Any]:
    """The same of these figures."""
    return {"at": time.time(), "slos": [{"slo": name, "windows": _windows(kept)} for name, kept in found.items()]}


def readings(core: "Inference", models: Iterable[str]) -> Iterable[Reading]:
    """The gauges of both."""
    asked = {model: of_model(core, model) for model in models}
    yield (
        "held",
        "Requests held for a Model without a ready pod",
        ("model",),
        [((m,), d.held) for m, d in asked.items()],
    )
    yield "late", "Requests that wait and will be late", ("model",), [((m,), d.late) for m, d in asked.items()]
    yield "slots", "Requests that the pods take at once", ("model",), [((m,), core.slots(m)) for m in asked]
    yield "refused", "Requests refused for load since start", ("model",), [((m,), d.refused) for m, d in asked.items()]
    shared = core.shared
    yield "limits_unavailable", "Failures of the shared limits", (), [((), shared.failures if shared else 0)]
    lost = lost_lines(core.access.lost)
    yield "access_log_lost", "Lines of the log, the access log's among them, that nobody took", (), [((), lost)]
    mending = core.mending
    yield "continuations_waiting", "Streams that lost their engine and wait", ("model",), mending.waiting()
    yield "journal_bytes", "Bytes that the journals of streams hold", (), [((), mending.purse.used)]
    yield from _attained(core.attainment.figures(core.now()))


def _attained(kept: Mapping[str, Mapping[str, Figures]]) -> Iterable[Reading]:
    cells = [((slo, name), figures) for slo, windows in kept.items() for name, figures in windows.items()]
    labels = ("slo", "window")
    share = [(where, figures.attained) for where, figures in cells if figures.attained is not None]
    yield "slo_attained_ratio", "Share of requests that kept every promise", labels, share
    yield "slo_goodput", "Requests a second that kept every promise", labels, [(w, f.goodput) for w, f in cells]
    yield "slo_budget_burn", "Error budget used, 1: exactly", labels, [(w, f.burn) for w, f in cells]
    yield (
        "slo_latency_seconds",
        "Attained percentile of a latency",
        (*labels, "latency", "quantile"),
        [
            ((*where, latency, str(quantile)), seconds)
            for where, figures in cells
            for latency in LATENCIES
            for quantile, seconds in zip(QUANTILES, getattr(figures, latency), strict=True)
            if seconds is not None
        ],
    )


def _windows(kept: Mapping[str, Figures]) -> list[dict[str, Any]]:
    return [window(name, figures).to_wire() for name, figures in kept.items()]
