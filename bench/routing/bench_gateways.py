"""What several gateways lose by deciding apart: `python bench/routing/bench_gateways.py [--trace FILE]`.

The trace is replayed on equal pods through one gateway, through several that tell each other of their requests, and
through several that do not. Each row is one of them; medians over repeats that draw other adapters and other gateways.
The Mooncake trace is recorded in ticks of 3 s, about ten requests at one instant each, of which no gateway could have
told another in time. So requests are spread over the time until the next instant; with TICKS=1 they are not.
"""

import argparse
import os
import platform
import random
import sys
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import median

import orjson
from bench_routing import KV_TOKENS, _calls, _options, _saturation
from rich.console import Console
from rich.table import Table
from sheaf.simulator.calls import Call
from sheaf.simulator.outcome import quantile
from sheaf.simulator.policies.gateways import Gateways
from sheaf.simulator.policies.product import Product
from sheaf.simulator.race import Race
from sheaf.simulator.traces import Chat, conversations, read_trace
from sheaf_engine.timing import PRESETS, TimingProfile

RANK = 16
DELAY_S = 0.001
KINDS = {
    "1": Product,
    **{f"{count}, told": partial(Gateways, count=count, delay=DELAY_S) for count in (2, 4)},
    **{f"{count}, told 50 ms late": partial(Gateways, count=count, delay=0.05) for count in (4,)},
    **{f"{count}, apart": partial(Gateways, count=count, delay=None) for count in (2, 4)},
}
Figures = dict[str, float]


def main() -> None:
    """Measure, print, write."""
    options = _options()
    profile = PRESETS[options.profile].with_changes(
        max_model_len=131_072, block_size=options.block, num_blocks=KV_TOKENS // options.block, max_cpu_loras=64
    )
    found = read_trace(options.trace) if options.trace else conversations(Chat(seconds=900.0, rate=20.0), 0)
    found = found if os.environ.get("TICKS") else _spread(list(found)[: options.limit])
    rate = _saturation(found, profile, options)
    rows = []
    for load in options.loads:
        for kind in KINDS:
            repeats = []
            for seed in range(options.repeats):
                repeats.append(_measure(kind, _calls(found, rate * load, options, seed), profile, options, seed))
                print(load, kind, repeats[-1], file=sys.stderr, flush=True)
            rows.append({"load": load, "gateways": kind, **{key: _middle(repeats, key) for key in repeats[0]}})
    _report(rows, options)


def _spread(calls: Sequence[Call]) -> list[Call]:
    """The calls of one instant at random moments before the next instant."""
    draw, instants = random.Random(0), [list(same) for _, same in groupby(calls, key=lambda call: call.arrival)]
    ends = [same[0].arrival for same in instants[1:]] + [instants[-1][0].arrival + 1.0]
    moments = [
        call.at(moment)
        for same, end in zip(instants, ends, strict=True)
        for call, moment in zip(same, sorted(draw.uniform(same[0].arrival, end) for _ in same), strict=True)
    ]
    return sorted(moments, key=lambda call: call.arrival)


def _measure(kind: str, calls: list[Call], profile: TimingProfile, options: argparse.Namespace, seed: int) -> Figures:
    adapters = {f"adapter-{place:02}": RANK for place in range(options.adapters)}
    outcome = Race(KINDS[kind](seed), options.pods, profile, adapters).run(calls)
    p50, p99 = quantile(outcome.ttft, 0.5), quantile(outcome.ttft, 0.99)
    return {"p50_s": p50, "p99_s": p99, "hit_rate": outcome.hit_rate}


def _middle(repeats: list[Figures], key: str) -> float:
    return round(median(repeat[key] for repeat in repeats), 4)


def _report(rows: list[Figures], options: argparse.Namespace) -> None:
    table = Table("load", "gateways", "TTFT p50 s", "p99 s", "hit rate", box=None)
    for row in rows:
        table.add_row(f"{row['load']:.0%}", *(str(row[key]) for key in ("gateways", "p50_s", "p99_s", "hit_rate")))
    Console(width=100).print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": {"processor": platform.processor() or platform.machine()},
        "versions": {"python": platform.python_version()},
        "command": " ".join(["python", *sys.argv]),
        "rows": rows,
        "ratios": {
            f"{key}_{count}_told_vs_1": _ratio(rows, f"{count}, told", key)
            for key in ("p50_s", "p99_s", "hit_rate")
            for count in (2, 4)
        },
    }
    (Path(options.out) / "gateways.json").write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


def _ratio(rows: list[Figures], kind: str, key: str) -> float:
    """The median over the loads of theirs by one gateway's."""
    loads = sorted({row["load"] for row in rows})
    found = {(row["load"], row["gateways"]): row[key] for row in rows}
    return round(median(found[load, kind] / found[load, "1"] for load in loads), 4)


if __name__ == "__main__":
    main()
