"""What a simulated request costs in processor time: `python bench/simulator/bench_speed.py [--pods N...] [--models N]`.

Every pod gets `--rate` requests a second: prompts of 800 tokens in the median that begin with one of 200 system
prompts, answers of 200 tokens on average, on the preset h100-8b. Starting the fleet is told apart. The digest is of
everything that callers saw: the same before and after a change that makes the simulator faster and nothing else.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from sheaf.simulator.calls import Call
from sheaf.simulator.policies.registry import POLICIES
from sheaf.simulator.world import Result, Setting, World
from sheaf_crds import Model

SYSTEM_TOKENS, LONGEST = 300, 8000
GOAL_US = 150.0


def main() -> None:
    """Measure, print, write."""
    options, rows = _options(), []
    for pods in sorted(options.pods):
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:
            rows.append(apart.submit(_row, options, pods).result())
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    content = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()},
        "command": " ".join(["python", *sys.argv]),
        "rows": rows,
        "ratios": _ratios(rows),
    }
    for key, value in content["ratios"].items():
        print(f"{key:24} {value}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "simulator-speed.json").write_text(json.dumps(content, indent=2))


def _row(options: argparse.Namespace, pods: int) -> dict[str, object]:
    """One size of fleet, in a process of its own."""
    models = [_model(place, pods // options.models) for place in range(options.models)]
    calls, load = _calls(options, pods), os.getloadavg()[0]
    seconds, started, result = min((_run(models, calls) for _ in range(options.repeat)), key=lambda run: run[0])
    return {
        "requests": len(calls),
        "models": options.models,
        "pods": pods,
        "start_s": round(started, 2),
        "us_a_request": round(seconds / len(calls) * 1e6, 1),
        "events_a_request": round(result.events / len(calls), 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "load": round(load, 2),
        "digest": _digest(result),
    }


def _ratios(rows: list[dict[str, object]]) -> dict[str, float]:
    """See docs/benchmarks.md."""
    costs = [float(str(row["us_a_request"])) for row in rows]
    return {"speed_vs_goal": round(GOAL_US / costs[-1], 4), "largest_vs_smallest": round(costs[-1] / costs[0], 4)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a simulated request costs in processor time.")
    parser.add_argument("--requests", type=int, default=0, help="of each fleet [default: 10,000, at least 30 a pod]")
    parser.add_argument("--models", type=int, default=1)
    parser.add_argument("--pods", type=int, nargs="+", default=[8, 100, 1000], help="of all Models together")
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second for each pod")
    parser.add_argument("--repeat", type=int, default=1, help="runs, of which the fastest counts")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    return parser.parse_args()


def _model(place: int, replicas: int) -> Model:
    spec = {"source": "hf://a/b", "accelerators": [{"type": "nvidia-h100"}], "replicas": replicas, "lora": {"slots": 0}}
    return Model.model_validate({"metadata": {"name": f"m{place}", "uid": f"u{place}", "generation": 1}, "spec": spec})


def _calls(options: argparse.Namespace, pods: int) -> list[Call]:
    draw, at, found = random.Random(1), 0.0, []
    for number in range(options.requests or max(10_000, 30 * pods)):
        at += draw.expovariate(options.rate * pods)
        tokens = min(max(16, int(draw.lognormvariate(0, 1) * 800)), LONGEST)
        name, common = f"m{draw.randrange(options.models)}", (draw.randrange(200), min(tokens, SYSTEM_TOKENS))
        fresh = ((1 << 40 | number, tokens - SYSTEM_TOKENS),) if tokens > SYSTEM_TOKENS else ()
        output = max(1, min(1500, int(draw.expovariate(1 / 200))))
        found.append(Call(at, name, (common, *fresh), tokens, output, session=number))
    return found


def _run(models: list[Model], calls: list[Call]) -> tuple[float, float, Result]:
    """Processor seconds of the requests and of the start, and what became of them."""
    begin = time.process_time()
    world = World(models, POLICIES["sheaf"](1), Setting(cold_start_s=60.0))
    world.clock.run(2 * 60.0 + 10.0)
    started = time.process_time()
    result = world.run(calls)
    return time.process_time() - started, started - begin, result


def _digest(result: Result) -> str:
    outcome, found = result.outcome, hashlib.sha256()
    for column in (outcome.arrival, outcome.ttft, outcome.tpot, outcome.prompt, outcome.cached, outcome.output):
        found.update(column.tobytes())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    main()
