"""Capacity policies side by side over weeks of a spot market: `python bench/spot/bench_spot.py [--spot PATH...]`.

Spot traces (--spot: files or folders, SkyPilot's format) are grouped into markets by name, zones apart; without any, a
documented generator makes markets up. The demand is a real arrival trace (TRACE=FILE or --trace; else generated chats)
repeated end to end. Replicas are simulated one by one and requests as a fluid, by `sheaf.simulator.spot`, over the
operator's own decision functions. docs/spot.md says what is modelled, and what each policy does.
"""

import argparse
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import fmean

import orjson
from rich.console import Console
from rich.table import Table
from sheaf.simulator.calls import Call
from sheaf.simulator.market import Zone, read_zone
from sheaf.simulator.spot import (
    AllOnDemand,
    Demand,
    Outlook,
    Pool,
    PureSpot,
    Sheaf,
    SkyServe,
    Summary,
    Weather,
    demand_of,
    omniscient,
    weather,
)
from sheaf.simulator.traces import Chat, conversations, read_trace

PEER = "skyserve-1"
WARM_S = 3600.0
ZONE = re.compile(r"[a-z]+-[a-z]+-?[0-9]+-?[a-z]$")
CLIMATES = tuple(Weather(*hours) for hours in ((1.5, 2), (3, 2), (6, 2), (10, 1.5), (24, 2), (5, 5), (12, 1), (18, 2)))


@dataclass(frozen=True)
class Market:
    """Zones over time, and what to call them."""

    name: str
    zones: tuple[Zone, ...]

    @property
    def seconds(self) -> float:
        """How long all zones are known."""
        return min(len(zone.counts) * zone.gap_s for zone in self.zones)

    def copies(self, count: int) -> "Market":
        """The same with so many instances for each one."""
        zones = tuple(replace(zone, counts=tuple(count * one for one in zone.counts)) for zone in self.zones)
        return self if count == 1 else Market(f"{self.name} x{count}", zones)


@dataclass(frozen=True)
class Row:
    """One policy in one case; money, hours of replicas, shares from 0 to 1."""

    market: str
    trace: str
    policy: str
    money: float
    attainment: float
    answered: float
    spot_hours: float
    on_demand_hours: float
    short_hours: float
    preemptions: int
    launches: int
    seconds: float


def main() -> None:
    """Simulate, print, write."""
    options = _options()
    traces = [(path.stem, read_trace(path)) for path in options.trace] or [("chats", list(conversations(Chat(), 0)))]
    rows: list[Row] = []
    for market in _markets(options):
        for name, calls in traces:
            rows += _case(market, name, calls, options)
            _show([row for row in rows if (row.market, row.trace) == (market.name, name)])
    _report(rows, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Capacity policies side by side.")
    trace = os.environ.get("TRACE")
    parser.add_argument("--spot", type=Path, nargs="*", default=[], help="spot traces, or folders of them")
    parser.add_argument("--trace", type=Path, nargs="*", default=[Path(trace)] if trace else [])
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3], help="of markets that are made up")
    parser.add_argument("--days", type=float, default=14.0, help="length of markets that are made up")
    parser.add_argument("--copies", type=int, nargs="*", default=[1], help="instances for each one of the traces")
    parser.add_argument("--share", type=float, default=1 / 3, help="mean replicas, by the instances there can be")
    parser.add_argument("--utilisation", type=float, default=0.8, help="at which the autoscaler aims")
    parser.add_argument("--cold-start", type=float, default=180.0)
    parser.add_argument("--on-demand", type=float, default=3.06, help="money an hour (p3.2xlarge)")
    parser.add_argument("--spot-price", type=float, default=0.9701, help="money an hour (p3.2xlarge)")
    parser.add_argument("--tpot", type=float, default=0.04, help="seconds for a token, for the length of streams")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    return parser.parse_args()


def _markets(options: argparse.Namespace) -> Iterator[Market]:
    found = list(_recorded(options.spot)) if options.spot else list(_made_up(options))
    for copies in options.copies:
        yield from (market.copies(copies) for market in found)


def _recorded(paths: Sequence[Path]) -> Iterator[Market]:
    files = sorted(file for path in paths for file in (path.rglob("*.json") if path.is_dir() else [path]))
    if not files:
        raise SystemExit(f"{paths[0]}: holds no spot trace (*.json); name files or folders that do")
    for key, group in groupby(sorted(files, key=_market_name), key=_market_name):
        zones = tuple(read_zone(file) for file in group)
        yield Market(key, zones)


def _market_name(file: Path) -> str:
    parts = file.stem.split("_")
    return "_".join(part for part in parts if not ZONE.match(part))


def _made_up(options: argparse.Namespace) -> Iterator[Market]:
    for seed in options.seeds:
        yield Market(f"made-up-{seed}", weather(CLIMATES, options.days * 24, seed))


def _case(market: Market, name: str, calls: Sequence[Call], options: argparse.Namespace) -> list[Row]:
    instances = sum(max(zone.counts) for zone in market.zones)
    first = calls[0].arrival
    arrivals = [call.arrival - first for call in calls]
    demand = demand_of(arrivals, market.seconds, max(1.0, instances * options.share), options.utilisation)
    spot = {zone.name: options.spot_price for zone in market.zones}
    outlook = Outlook(
        tuple(spot),
        options.on_demand,
        spot,
        cold_start=options.cold_start,
        utilisation=options.utilisation,
        stream=fmean(call.output_tokens for call in calls) * options.tpot,
    )
    policies = (Sheaf(), SkyServe(0), SkyServe(1), SkyServe(2), PureSpot(), AllOnDemand())
    rows = []
    for policy in policies:
        begin = time.process_time()
        summary = Pool(market.zones, demand, outlook, policy, WARM_S).run()
        rows.append(_row(market, name, summary, time.process_time() - begin))
    return [*rows, *_bounds(market, name, demand, outlook, rows[0].short_hours)]


def _row(market: Market, trace: str, found: Summary, seconds: float) -> Row:
    return Row(
        market.name,
        trace,
        found.name,
        found.money,
        found.attainment,
        found.answered,
        found.spot_hours,
        found.on_demand_hours,
        found.short_hours,
        found.preemptions,
        found.launches,
        seconds,
    )


def _bounds(market: Market, trace: str, demand: Demand, outlook: Outlook, short: float) -> list[Row]:
    """The least that never being short could cost, and the least that being as short as Sheaf could."""
    rows = []
    for name, allowed in (("omniscient", 0.0), ("omniscient-as-short", short)):
        begin = time.process_time()
        money, hours = omniscient(market.zones, demand, outlook, allowed, WARM_S)
        took = time.process_time() - begin
        rows.append(Row(market.name, trace, name, money, 1.0, 1.0, 0.0, 0.0, hours, 0, 0, took))
    return rows


def _show(rows: Sequence[Row]) -> None:
    own = rows[0]
    table = Table(
        f"{own.market}, {own.trace}", "money", "ours by it", "attained", "answered", "spot h", "on-demand h", "short h",
        "preempted", "launches", box=None,
    )  # fmt: skip
    for row in rows:
        known = not row.policy.startswith("omniscient")
        table.add_row(
            row.policy,
            f"{row.money:.0f}",
            f"{own.money / row.money:.3f}",
            *((f"{row.attainment:.5f}", f"{row.answered:.5f}") if known else ("", "")),
            *((f"{row.spot_hours:.0f}", f"{row.on_demand_hours:.0f}") if known else ("", "")),
            f"{row.short_hours:.1f}",
            *((str(row.preemptions), str(row.launches)) if known else ("", "")),
        )
    Console(width=150).print(table)


def _ratios(rows: Sequence[Row]) -> dict[str, float]:
    """The worst of all cases under the plain names, means beside them."""
    cases = {(row.market, row.trace) for row in rows}
    found: dict[str, list[float]] = {}
    for case in sorted(cases):
        by = {row.policy: row for row in rows if (row.market, row.trace) == case}
        own, peer = by["sheaf"], by[PEER]
        for key, value in (
            ("cost_vs_skyserve", own.money / peer.money),
            ("attainment_minus_skyserve", own.attainment - peer.attainment),
            ("answered_minus_skyserve", own.answered - peer.answered),
            ("cost_vs_omniscient", own.money / by["omniscient"].money),
            ("cost_vs_omniscient_as_short", own.money / by["omniscient-as-short"].money),
            ("cost_vs_on_demand", own.money / by["on-demand"].money),
        ):
            found.setdefault(key, []).append(value)
    worst = {key: (min if key.endswith("minus_skyserve") else max)(values) for key, values in found.items()}
    means = {f"{key}_mean": fmean(values) for key, values in found.items()}
    return {key: round(value, 5) for key, value in (worst | means).items()}


def _report(rows: list[Row], options: argparse.Namespace) -> None:
    ratios = _ratios(rows)
    for key, value in ratios.items():
        print(f"{key:36} {value:.4f}")
    content = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()},
        "command": " ".join(["python", *sys.argv]),
        "rows": [asdict(row) for row in rows],
        "ratios": ratios,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "spot.json").write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
