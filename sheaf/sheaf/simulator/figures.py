"""The figures of a run: what is printed, compared and drawn."""

from __future__ import annotations

from dataclasses import dataclass

from sheaf_crds import SLO, KubeObject, Model

from sheaf.simulator.outcome import quantile
from sheaf.simulator.world import Result

DEFAULT_TTFT_S, DEFAULT_TPOT_S = 2.0, 0.1
_PROMISED = 0.95


@dataclass(frozen=True, slots=True)
class Bounds:
    """What counts as attained, seconds; `declared` says whether an SLO says so."""

    ttft: float = DEFAULT_TTFT_S
    tpot: float = DEFAULT_TPOT_S
    declared: bool = False


@dataclass(frozen=True, slots=True)
class Figures:
    """One run in numbers; times are seconds, shares from 0 to 1."""

    name: str
    requests: int
    refused: int
    moved: int
    broken: int
    attainment: float
    goodput: float
    ttft: tuple[float, float, float]
    tpot: tuple[float, float, float]
    hit_rate: float
    money: float
    pod_hours: float
    spot_share: float
    most_pods: int
    preemptions: int
    seconds: float


def bounds_of(objects: list[KubeObject]) -> Bounds:
    """The tightest bounds up to the 95th percentile that any SLO in use promises; 2 s and 100 ms where none does."""
    used = {item.spec.slo_ref.name for item in objects if isinstance(item, Model) and item.spec.slo_ref}
    slos = [item for item in objects if isinstance(item, SLO) and item.name in used]
    ttft = [seconds for slo in slos for share, seconds in slo.spec.ttft.bounds() if share <= _PROMISED]
    tpot = [seconds for slo in slos for share, seconds in slo.spec.tpot.bounds() if share <= _PROMISED]
    return Bounds(min(ttft, default=DEFAULT_TTFT_S), min(tpot, default=DEFAULT_TPOT_S), bool(ttft or tpot))


def figures(name: str, result: Result, bounds: Bounds) -> Figures:
    """Everything of a run that fits in a row."""
    outcome, bill = result.outcome, result.bill
    attainment = outcome.attainment(bounds.ttft, bounds.tpot)
    return Figures(
        name,
        outcome.asked,
        outcome.refused,
        outcome.moved,
        outcome.broken,
        attainment,
        attainment * outcome.asked / max(result.seconds, 1e-9),
        _three(outcome.ttft),
        _three(outcome.tpot),
        outcome.hit_rate,
        bill.money,
        bill.pod_seconds / 3600.0,
        bill.spot_seconds / bill.pod_seconds if bill.pod_seconds else 0.0,
        max((sample.ready for sample in result.samples), default=0),
        bill.preemptions,
        result.seconds,
    )


def _three(values: object) -> tuple[float, float, float]:
    found = sorted(values)  # type: ignore[call-overload]
    return quantile(found, 0.5), quantile(found, 0.95), quantile(found, 0.99)
