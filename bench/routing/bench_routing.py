"""Routing policies side by side on one trace in virtual time: `python bench/routing/bench_routing.py [--trace FILE]`.

The trace (TRACE=FILE, or generated conversations) is replayed on equal pods, with adapters drawn zipf for each
conversation, at shares of saturation. Saturation is what the pods complete when everything is asked at once under
least-request, which knows nothing of prefixes. Every repeat draws other adapters and ties; ratios are medians over the
repeats of ours by the best peer's, peers being judged by each figure separately. docs/simulator.md says how each peer
works. Ours hears the engines' KV events; `sheaf` is the same without them, which counts neither as ours nor as a peer.
The oracle sees every cache and follows the longest match whatever the load: the most hits that can be had.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import orjson
from rich.console import Console
from rich.table import Table
from sheaf.simulator.calls import Call
from sheaf.simulator.outcome import quantile
from sheaf.simulator.policies.registry import POLICIES
from sheaf.simulator.race import Race
from sheaf.simulator.traces import Chat, Shape, conversations, read_trace, shaped
from sheaf_engine.timing import PRESETS, TimingProfile

OURS, PREDICTED, ORACLE = "sheaf-events", "sheaf", "oracle"
RANK = 16
KV_TOKENS = 400_000
FLOOD = 1000.0


@dataclass(frozen=True)
class Row:
    """One policy at one load in one repeat; times are seconds, goodput requests a second within the bounds."""

    policy: str
    load: float
    seed: int
    p50: float
    p90: float
    p99: float
    goodput: float
    attained: float
    hit_rate: float
    tpot_p50: float
    us_per_request: float


def main() -> None:
    """Measure, print, write."""
    options = _options()
    profile = PRESETS[options.profile].with_changes(
        max_model_len=131_072, block_size=options.block, num_blocks=KV_TOKENS // options.block, max_cpu_loras=64
    )
    found = read_trace(options.trace) if options.trace else conversations(Chat(seconds=900.0, rate=20.0), 0)
    rate = _saturation(found, profile, options)
    print(f"saturation {rate:.2f} requests/s on {options.pods} pods ({profile.name})", flush=True)
    names = [name for name in options.policies.split(",") if name] or list(POLICIES)
    rows = []
    for load in options.loads:
        for seed in range(options.repeats):
            calls = _calls(found, rate * load, options, seed)
            for name in names:
                rows.append(_measure(name, calls, profile, options, load, seed))
                print(_line(rows[-1]), file=sys.stderr, flush=True)
    _report(rows, names, options, rate)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Routing policies side by side.")
    trace = os.environ.get("TRACE")
    parser.add_argument("--trace", type=Path, default=Path(trace) if trace else None)
    parser.add_argument("--pods", type=int, default=8)
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--loads", type=lambda text: [float(part) for part in text.split(",")], default=[0.7, 0.95])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=int, default=None, help="only the first so many requests")
    parser.add_argument("--profile", default="h100-8b", choices=sorted(PRESETS))
    parser.add_argument("--block", type=int, default=64, help="tokens of a KV block")
    parser.add_argument("--policies", default="")
    parser.add_argument("--ttft", type=float, default=2.0, help="bound of goodput, seconds")
    parser.add_argument("--tpot", type=float, default=0.1, help="bound of goodput, seconds")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    return parser.parse_args()


def _adapters(options: argparse.Namespace) -> list[str]:
    return [f"adapter-{place:02}" for place in range(options.adapters)]


def _calls(found: Sequence[Call], rate: float, options: argparse.Namespace, seed: int) -> list[Call]:
    kept = list(found)[: options.limit]
    natural = len(kept) / max(kept[-1].arrival, 1e-9)
    return shaped(kept, Shape(speed=rate / natural, adapters=_adapters(options), seed=seed))


def _saturation(found: Sequence[Call], profile: TimingProfile, options: argparse.Namespace) -> float:
    calls = _calls(found, FLOOD, options, 0)
    race = Race(POLICIES["least-request"](0), options.pods, profile, dict.fromkeys(_adapters(options), RANK))
    race.run(calls)
    return len(calls) / race.clock.now


def _measure(
    name: str, calls: list[Call], profile: TimingProfile, options: argparse.Namespace, load: float, seed: int
) -> Row:
    race = Race(POLICIES[name](seed), options.pods, profile, dict.fromkeys(_adapters(options), RANK))
    begin = time.process_time()
    outcome = race.run(calls)
    took = (time.process_time() - begin) / len(calls) * 1e6
    attained = outcome.attainment(options.ttft, options.tpot)
    p50, p90, p99 = (quantile(outcome.ttft, share) for share in (0.5, 0.9, 0.99))
    goodput = attained * len(calls) / calls[-1].arrival
    tpot = quantile(outcome.tpot, 0.5)
    return Row(name, load, seed, p50, p90, p99, goodput, attained, outcome.hit_rate, tpot, took)


def _line(row: Row) -> str:
    return (
        f"{row.load:.2f} {row.seed} {row.policy:20} p50 {row.p50:7.3f} p90 {row.p90:7.3f} p99 {row.p99:7.3f} "
        f"attained {row.attained:.3f} hit {row.hit_rate:.3f} {row.us_per_request:.0f} us"
    )


def _ratios(rows: Sequence[Row], loads: Sequence[float]) -> dict[str, float]:
    """For each load, then the worst of all loads under the plain names."""
    at = {load: _ratios_at([row for row in rows if row.load == load]) for load in loads}
    ratios = {f"{key}_at_{load * 100:.0f}": value for load, found in at.items() for key, value in found.items()}
    for key in next(iter(at.values())):
        worst = max if key.startswith("ttft") else min
        ratios[key] = worst(found[key] for found in at.values())
    return ratios


def _ratios_at(rows: Sequence[Row]) -> dict[str, float]:
    collected: dict[str, list[float]] = {}
    for seed in sorted({row.seed for row in rows}):
        own = next(row for row in rows if row.seed == seed and row.policy == OURS)
        peers = [row for row in rows if row.seed == seed and row.policy not in (OURS, PREDICTED, ORACLE)]
        oracle = [row for row in rows if row.seed == seed and row.policy == ORACLE]
        found = {
            "ttft_p50_vs_best_peer": own.p50 / min(row.p50 for row in peers),
            "ttft_p99_vs_best_peer": own.p99 / min(row.p99 for row in peers),
            "goodput_vs_best_peer": own.goodput / max(row.goodput for row in peers),
        }
        if oracle and oracle[0].hit_rate:
            found["hit_rate_vs_oracle"] = own.hit_rate / oracle[0].hit_rate
        for key, value in found.items():
            collected.setdefault(key, []).append(value)
    return {key: round(median(values), 4) for key, values in collected.items()}


def _spread(values: Sequence[float], unit: str = "") -> str:
    return f"{median(values):.3f}{unit} ({min(values):.3f} to {max(values):.3f})"


def _report(rows: list[Row], names: Sequence[str], options: argparse.Namespace, rate: float) -> None:
    console = Console(width=170)
    for load in options.loads:
        table = Table(
            f"{load:.0%} of saturation", "TTFT p50 s", "p90 s", "p99 s", "attained", "hit rate", "TPOT ms", box=None
        )
        for name in names:
            found = [row for row in rows if row.load == load and row.policy == name]
            series = ([getattr(row, key) for row in found] for key in ("p50", "p90", "p99", "attained", "hit_rate"))
            table.add_row(name, *map(_spread, series), f"{median(row.tpot_p50 for row in found) * 1000:.1f}")
        console.print(table)
    ratios = _ratios(rows, options.loads) if OURS in names and len(names) > 1 else {}
    for key, value in ratios.items():
        print(f"{key:36} {value:.3f}")
    content = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()},
        "command": " ".join(["python", *sys.argv]),
        "saturation_requests_s": rate,
        "rows": [vars(row) for row in rows],
        "ratios": ratios,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "routing.json").write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
