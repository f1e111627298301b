"""What an SLO promises, as admission and those who measure it read it; and one window in the words of the API: pure."""

from collections.abc import Iterable

import msgspec
from sheaf_crds import SLO
from sheaf_crds.slo import Observed, SLOWindow

from sheaf_gateway.admission.attainment import LATENCIES, Bound, Figures
from sheaf_gateway.admission.terms import PLAIN, Terms
from sheaf_gateway.fleet.view import Promise, Rate

_ORDERED_BY = 0.95
_NAMES = ("p50", "p90", "p95", "p99")


def terms(slo: SLO | None, *, wakes: bool) -> Terms:
    """The terms of an SLO; `wakes` says that an AutoscalingPolicy may start pods for who waits."""
    if slo is None:
        return msgspec.structs.replace(PLAIN, wakes=wakes)
    spec = slo.spec
    promised = spec.ttft.bounds()
    within = [seconds for quantile, seconds in promised if quantile <= _ORDERED_BY]
    return Terms(
        policy=spec.fairness.policy,
        weights=spec.fairness.weights,
        ttft=within[-1] if within else (promised[0][1] if promised else None),
        ttft_limit=promised[-1][1] if promised else None,
        interactive=spec.class_ == "Interactive",
        wakes=wakes,
    )


def bounds(slo: SLO) -> tuple[Bound, ...]:
    """Every promise of an SLO."""
    spec = slo.spec
    return (
        *(Bound("ttft", quantile, seconds) for quantile, seconds in spec.ttft.bounds()),
        *(Bound("tpot", quantile, seconds) for quantile, seconds in spec.tpot.bounds()),
        *(Bound("e2e", quantile, seconds) for quantile, seconds in spec.e2e.bounds()),
    )


def promise(slo: SLO) -> Promise:
    """What admission reads of an SLO object."""
    spec = slo.spec
    limits = Rate(
        requests_per_minute=spec.limits.requests_per_minute,
        tokens_per_minute=spec.limits.tokens_per_minute,
        max_concurrent=spec.limits.max_concurrent,
    )
    return Promise(
        name=slo.name,
        interactive=spec.class_ == "Interactive",
        max_queue=spec.queue.max_requests,
        max_wait=spec.queue.max_wait,
        limits=limits,
    )


def window(name: str, figures: Figures) -> SLOWindow:
    """One window in the words of the API."""
    return SLOWindow(
        window=name,
        requests=figures.requests,
        failed=figures.failed,
        attained_percent=None if figures.attained is None else round(100.0 * figures.attained, 3),
        goodput=round(figures.goodput, 3),
        burn=round(figures.burn, 3),
        **{latency: _observed(getattr(figures, latency)) for latency in LATENCIES},
    )


def _observed(values: Iterable[float | None]) -> Observed:
    return Observed(**dict(zip(_NAMES, values, strict=True)))
