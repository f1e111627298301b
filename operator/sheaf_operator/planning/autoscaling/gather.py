"""What gateways said, put together: sums over all of them, and what may be concluded while one is silent.

A gateway's last word counts fully for FRESH_S seconds, and for KEPT_S as the least that it may have: the sum is marked
incomplete then, and no replica is taken away on it. Later it counts for nothing, and where no gateway counts, nobody
knows. Latencies of several gateways are means weighted by their requests. What the pods take at once is no sum: every
gateway tells it of all of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sheaf_crds.slo import Observed, SLOWindow

from sheaf_operator.planning.autoscaling.facts import Demand, Work

FRESH_S = 15.0
KEPT_S = 60.0

Windows = tuple[SLOWindow, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """One gateway's answer: when it came (Unix seconds), the demand by Model, the windows by SLO."""

    at: float
    demands: Mapping[str, Demand] = field(default_factory=dict)
    windows: Mapping[str, Windows] = field(default_factory=dict)


Reports = Mapping[str, Report | None]


def demand_of(model: str, reports: Reports, now: float) -> Demand | None:
    """What is asked of a Model in all; None where nobody knows.

    Args:
        model: name of the Model.
        reports: the last answer of every gateway that there is; None: it never answered.
        now: Unix seconds.
    """
    known = [report for report in reports.values() if report is not None and now - report.at <= KEPT_S]
    found = [report.demands[model] for report in known if model in report.demands]
    if not found:
        return None
    fresh = [report for report in known if now - report.at <= FRESH_S and model in report.demands]
    return _sum(found, complete=len(fresh) == len(reports))


def windows_of(slo: str, reports: Reports, now: float) -> Windows:
    """How an SLO was kept, over all gateways that have answered lately."""
    known = [report for report in reports.values() if report is not None and now - report.at <= KEPT_S]
    found = [report.windows[slo] for report in known if slo in report.windows]
    by_window: dict[str, list[SLOWindow]] = {}
    for windows in found:
        for window in windows:
            by_window.setdefault(window.window, []).append(window)
    return tuple(_joined(same) for _, same in sorted(by_window.items(), reverse=True))


def meaningful(old: Sequence[SLOWindow], new: Sequence[SLOWindow]) -> bool:
    """Whether the difference is worth a write: another window, or a figure that moved by a tenth or half a point."""
    if [window.window for window in old] != [window.window for window in new]:
        return bool(new)
    return any(_moved(before, after) for before, after in zip(old, new, strict=True))


def _sum(found: Sequence[Demand], *, complete: bool) -> Demand:
    if len(found) == 1:
        one = found[0]
        return replace(one, complete=complete)
    weights = [demand.rate for demand in found]
    return Demand(
        running=sum(demand.running for demand in found),
        waiting=sum(demand.waiting for demand in found),
        held=sum(demand.held for demand in found),
        rate=sum(weights),
        service_s=_mean([(d.service_s, d.rate) for d in found if d.service_s]),
        slots=max(demand.slots for demand in found),
        work=_work([(d.work, d.rate) for d in found if d.work is not None]),
        kv_use=max(demand.kv_use for demand in found),
        burn=max((demand.burn for demand in found if demand.burn is not None), default=None),
        quiet_s=min((demand.quiet_s for demand in found if demand.quiet_s is not None), default=None),
        complete=complete,
    )


def _work(found: Sequence[tuple[Work, float]]) -> Work | None:
    if not found:
        return None
    return Work(
        _mean([(work.prompt, weight) for work, weight in found]),
        _mean([(work.uncached, weight) for work, weight in found]),
        _mean([(work.output, weight) for work, weight in found]),
        _mean([(work.spread, weight) for work, weight in found]),
        _mean([(work.context, weight) for work, weight in found if work.context]),
        _mean([(work.context_spread, weight) for work, weight in found if work.context]),
    )


def _joined(windows: Sequence[SLOWindow]) -> SLOWindow:
    if len(windows) == 1:
        return windows[0]
    attained = [(w.attained_percent, float(w.requests)) for w in windows if w.attained_percent is not None]
    return SLOWindow(
        window=windows[0].window,
        requests=sum(window.requests for window in windows),
        failed=sum(window.failed for window in windows),
        attained_percent=round(_mean(attained), 3) if attained else None,
        goodput=round(sum(window.goodput for window in windows), 3),
        burn=round(_mean([(window.burn, float(window.requests)) for window in windows]), 3),
        ttft=_observed([(window.ttft, window.requests) for window in windows]),
        tpot=_observed([(window.tpot, window.requests) for window in windows]),
        e2e=_observed([(window.e2e, window.requests) for window in windows]),
    )


def _observed(found: Sequence[tuple[Observed, int]]) -> Observed:
    values = {
        name: [(float(seconds), float(weight)) for one, weight in found if (seconds := getattr(one, name)) is not None]
        for name in ("p50", "p90", "p95", "p99")
    }
    return Observed(**{name: round(_mean(some), 6) for name, some in values.items() if some})


def _mean(pairs: Iterable[tuple[float, float]]) -> float:
    """Mean by weight, the plain one where nothing weighs; 0 of nothing."""
    some = list(pairs)
    total = sum(weight for _, weight in some)
    if total > 0.0:
        return sum(value * weight for value, weight in some) / total
    return sum(value for value, _ in some) / len(some) if some else 0.0


def _moved(old: SLOWindow, new: SLOWindow) -> bool:
    if (old.requests == 0) != (new.requests == 0):
        return True
    shares = old.attained_percent, new.attained_percent
    if None not in shares and abs((shares[0] or 0.0) - (shares[1] or 0.0)) >= 0.5:
        return True
    return any(_differs(before, after) for before, after in zip(_figures(old), _figures(new), strict=True))


def _figures(window: SLOWindow) -> list[float]:
    latencies = [getattr(one, name) or 0.0 for one in (window.ttft, window.tpot, window.e2e) for name in ("p50", "p95")]
    return [float(window.requests), window.goodput, window.burn, *latencies]


def _differs(before: float, after: float) -> bool:
    return abs(after - before) > 0.1 * max(abs(before), abs(after))
