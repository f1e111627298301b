"""Rows of measurements, and the ratios of ours by the peers'. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

US, DIRECT = "sheaf", "direct"
Belongs = Callable[[str], bool]


@dataclass(frozen=True)
class Row:
    """One target in one repeat: good answers or chunks a second, CPU in µs for each, latency in ms; bad: answers other
    than 200 and broken streams; others: share of the target's core that went to other processes, which spoils a rate
    more than a CPU time; load: share of the other core that was busy: near 1, the rate is the load's, not the target's.
    """

    target: str
    case: str
    repeat: int
    rate: float
    cpu_us: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    bad: float = 0
    others: float = 0.0
    load: float = 0.0


def ratios(rows: list[Row]) -> dict[str, float | None]:
    """One for each goal; None where one of both is missing."""
    return {
        "rps_vs_sglang_cache_aware": _ratio(rows, "2k", _sglang, "max", "rate"),
        "rps_vs_vllm_router_best": _ratio(rows, "2k", _vllm, "max", "rate"),
        "rps_vs_nginx": _ratio(rows, "2k", _nginx, "max", "rate"),
        "rps_vs_litellm": _ratio(rows, "2k", _litellm, "max", "rate"),
        "rps_vs_production_stack": _ratio(rows, "2k", _stack, "max", "rate"),
        "rps_32k_vs_sglang_cache_aware": _ratio(rows, "32k", _sglang, "max", "rate"),
        "cpu_per_chunk_vs_best_rust": _ratio(rows, "stream", _rust, "min", "cpu_us"),
        "added_p50_vs_best_rust": _added(rows, "paced", _rust, "p50_ms"),
        "added_p99_vs_best_rust": _added(rows, "paced", _rust, "p99_ms"),
        "chunk_delay_p99_ms_over_nginx": _over(rows, "chunk", "nginx", "p99_ms"),
    }


def cpu_ratios(rows: list[Row]) -> dict[str, float | None]:
    """Processor time for a request in place of requests a second."""
    peers = {"sglang_cache_aware": _sglang, "vllm_router_best": _vllm, "nginx": _nginx}
    return {
        f"cpu_{case}_vs_{name}": _ratio(rows, case, belongs, "min", "cpu_us")
        for case in ("2k", "32k")
        for name, belongs in peers.items()
    }


def _sglang(name: str) -> bool:
    return name == "sglang_router/cache_aware"


def _vllm(name: str) -> bool:
    return name.startswith("vllm_router/")


def _rust(name: str) -> bool:
    return name.startswith(("vllm_router/", "sglang_router/"))


def _nginx(name: str) -> bool:
    return name == "nginx"


def _litellm(name: str) -> bool:
    return name == "litellm"


def _stack(name: str) -> bool:
    return name.startswith("production_stack/")


def _ratio(rows: list[Row], case: str, belongs: Belongs, best: str, value: str) -> float | None:
    """Median over the repeats of ours by the best of these peers."""
    found = []
    for repeat in sorted({row.repeat for row in rows}):
        at = {row.target: getattr(row, value) for row in rows if row.case == case and row.repeat == repeat and row.rate}
        theirs = [figure for name, figure in at.items() if belongs(name)]
        if US in at and theirs:
            found.append(at[US] / (max(theirs) if best == "max" else min(theirs)))
    return round(median(found), 3) if found else None


def _added(rows: list[Row], case: str, belongs: Belongs, value: str) -> float | None:
    """Median over the repeats of what we add by what the best of these peers adds."""
    direct = _by_repeat(rows, DIRECT, case, value)
    some = [row for row in rows if row.case == case and row.target != DIRECT and row.rate]
    added = [replace(row, **{value: max(0.001, getattr(row, value) - direct[row.repeat])}) for row in some]
    return _ratio(added, case, belongs, "min", value)


def _over(rows: list[Row], case: str, peer: str, value: str) -> float | None:
    """Median over the repeats of ours less the peer's, in the unit of the value."""
    ours, theirs = _by_repeat(rows, US, case, value), _by_repeat(rows, peer, case, value)
    both = [ours[repeat] - theirs[repeat] for repeat in ours.keys() & theirs.keys()]
    return round(median(both), 3) if both else None


def _by_repeat(rows: list[Row], target: str, case: str, value: str) -> dict[int, float]:
    return {row.repeat: getattr(row, value) for row in rows if (row.target, row.case) == (target, case)}
