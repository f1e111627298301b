"""The operator on a fleet of 1,000 Models, 10,000 Adapters and 5,000 pods: `python bench/operator/bench_scale.py`.

API server, scheduler and controllers are real; nodes and kubelets are played by kwok, the agents of all pods by one
process (see scene.py, agents.py). A tenth of the fleet is measured first, then the whole, each in a namespace of its
own and by an operator of its own. docs/benchmarks.md explains rows and ratios. Needs root, as `make cluster` does.
"""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

import orjson
from fleet import Size
from gauges import machine, versions
from rich.console import Console
from rich.table import Table
from scene import MODULES, default_state, scene
from stage import CALMS, Row, Stage, quantile

FULL = Size(1_000, 10_000, 5_000)
QUICK = Size(40, 400, 200)
TENTH = 0.1
GOALS = {"converge": 600.0, "reaction_p99": 2.0, "memory_mib": 1536.0}
COLUMNS = (
    ("seconds", "s"), ("p50", "p50 s"), ("p99", "p99 s"), ("calls", "calls"), ("writes", "writes"), ("turns", "turns"),
    ("planning_ms", "plan ms"), ("cpu_ms", "cpu ms"), ("cpu_s", "cpu s"), ("cpu_share", "cpu share"),
    ("polls_per_second", "polls/s"), ("rss_mib", "MiB"), ("peak_mib", "peak MiB"),
)  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    options = _options()
    before = machine()
    try:
        small, full, quiet = asyncio.run(_measure(options))
    except TimeoutError as error:
        sys.exit(f"bench-operator: {error}")
    except KeyboardInterrupt:
        sys.exit("bench-operator: interrupted; the cluster that it had started has ended")
    rows = [*small.rows, *full.rows]
    _print(rows)
    report = {
        "machine": before,
        "versions": versions({module.name: module.version for module in MODULES}),
        "command": " ".join(["python", *sys.argv]),
        "rows": rows,
        "ratios": _ratios(small, full, quiet),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "operator.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    for name, ratio in report["ratios"].items():
        print(f"{name:24} {ratio}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The operator at scale.")
    parser.add_argument("--quick", action="store_true", help="40 Models, 400 Adapters, 200 pods, few changes")
    parser.add_argument("--models", type=int)
    parser.add_argument("--adapters", type=int)
    parser.add_argument("--pods", type=int)
    parser.add_argument("--changes", type=int, help="of each kind, at each size; default 30, with --quick 3")
    parser.add_argument("--quiet-minutes", type=float, help="default 10, with --quick 0.2")
    parser.add_argument("--converges", type=float, default=1800.0, help="give up after so many seconds")
    parser.add_argument("--profile", type=Path, help="sample the first operator of the whole fleet into this file")
    parser.add_argument("--state", type=Path, default=default_state().parent / "bench-operator", metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    options = parser.parse_args()
    base = QUICK if options.quick else FULL
    options.size = Size(options.models or base.models, options.adapters or base.adapters, options.pods or base.pods)
    options.changes = options.changes or (3 if options.quick else 30)
    if options.quiet_minutes is None:
        options.quiet_minutes = 0.2 if options.quick else 10.0
    options.profile = options.profile and options.profile.absolute()
    return options


async def _measure(options: argparse.Namespace) -> tuple[Stage, Stage, int]:
    async with scene(options.state.absolute(), options.size.pods) as made:
        calms = 4.0 if options.quick else CALMS
        small = Stage(made, "tenth", options.size.part(TENTH), options.converges, calms=calms)
        async with small.prepared(), small.operator() as daemon:
            await small.converge(daemon)
            await small.calm(daemon)
            await small.change(daemon, options.changes)
            small.remember_memory(daemon)
        full = Stage(made, "full", options.size, options.converges, options.profile, calms)
        async with full.prepared():
            quiet = await _whole(full, options)
        return small, full, quiet


async def _whole(full: Stage, options: argparse.Namespace) -> int:
    async with full.operator(profiled=True) as daemon:
        await full.converge(daemon)
        await full.calm(daemon)
        await full.change(daemon, options.changes)
        await full.calm(daemon)
        quiet = await full.rest(daemon, options.quiet_minutes)
        await full.keep_busy(daemon, 10.0 if options.quick else 60.0, max(3, options.changes // 3))
        full.remember_memory(daemon)
    await full.take_over()
    return quiet


def _ratios(small: Stage, full: Stage, quiet: int) -> dict[str, float]:
    converged = next(row["seconds"] for row in full.rows if row["what"] == "converge from nothing")
    found = {
        "converge_vs_goal": GOALS["converge"] / converged,
        "reaction_p99_vs_goal": GOALS["reaction_p99"] / quantile(full.times, 0.99),
        "memory_vs_goal": GOALS["memory_mib"] / full.peak,
        "calls_tenth_vs_full": small.work("calls") / full.work("calls"),
        "planning_tenth_vs_full": small.work("planning_ms") / full.work("planning_ms"),
        "cpu_tenth_vs_full": small.work("cpu_ms") / max(full.work("cpu_ms"), 0.001),
        "quiet": 0.0 if quiet else 1.0,
    }
    return {name: round(value, 3) for name, value in found.items()}


def _print(rows: list[Row]) -> None:
    table = Table(title="The operator at scale (changes: each, on average)")
    table.add_column("fleet")
    table.add_column("what")
    for _, title in COLUMNS:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(row["fleet"], row["what"], *(_shown(row.get(name)) for name, _ in COLUMNS))
    Console(width=200).print(table)


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


if __name__ == "__main__":
    main()
