"""Autoscalers side by side on one trace in virtual time: `make bench-autoscaling TRACE=FILE`.

Every autoscaler runs the same fleet, admission and router on the same requests. Sheaf's has the SLO and no target to
choose. The peers (sheaf/sheaf/simulator/peers.py) are run over a range of targets; of each peer the run counts that
needs the fewest GPU hours among those that attain the SLO: the promised share of requests, or what Sheaf attained where
that is less. So peers have a target chosen in hindsight on this very trace. `gpu_hours_vs_best_peer` is Sheaf's GPU
hours by the fewest of those. The row `hindsight` is the cheapest schedule found by one who knows the trace
(hindsight.py), so it says how much there is to be had. docs/autoscaling.md explains the settings, and what was seen of
which trace.
"""

import argparse
import math
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean

import orjson
from hindsight import Planned, Schedule, Search, Trial
from rich.console import Console
from rich.table import Table
from sheaf.simulator.calls import Call
from sheaf.simulator.outcome import Outcome, quantile
from sheaf.simulator.peers import Apa, Hpa, Kpa, PeerScaler, Rule
from sheaf.simulator.policies.registry import POLICIES
from sheaf.simulator.scaling import Autoscaler
from sheaf.simulator.traces import read_trace
from sheaf.simulator.world import Setting, World
from sheaf_crds import SLO, AutoscalingPolicy, KubeObject, Model
from sheaf_engine.timing import TimingProfile
from sheaf_operator.planning import FleetIndex

OURS = "sheaf"
BOUND = "hindsight"
PEERS: Mapping[str, Callable[[float], Rule]] = {
    "hpa": Hpa,
    "hpa-60s": lambda target: Hpa(target, stabilization=60.0),
    "kpa": Kpa,
    "kpa-180s": lambda target: Kpa(target, stable=180.0, panic=60.0),
    "apa": Apa,
    "apa-60s": lambda target: Apa(target, cooldown=60.0),
}
PEERS_LOOK_S = 2.0
AHEAD_S = 10.0
PROMISED = 0.95


@dataclass(frozen=True)
class Stage:
    """A fleet that suits a trace: accelerator, promises (seconds), and the peers' targets (requests a replica)."""

    accelerator: str
    arguments: tuple[str, ...]
    ttft: float
    tpot: float
    targets: tuple[float, ...]


CHAT = Stage("nvidia-l4", (), 3.0, 0.25, (8, 12, 16, 20, 24, 28))
LONG = Stage("nvidia-a100", ("--max-model-len=131072", "--block-size=64"), 30.0, 0.5, (2, 3, 4, 6, 8, 12))


@dataclass(frozen=True)
class Row:
    """One run; times are seconds, shares of requests; `turns` are changes of direction an hour."""

    scaler: str
    target: float
    gpu_hours: float
    attained: float
    ttft_p50: float
    ttft_p95: float
    tpot_p95: float
    refused: int
    replicas_mean: float
    replicas_most: int
    turns: float
    moves: int
    seconds: float


def main() -> None:
    """Measure, print, write."""
    options = _options()
    calls = _calls(options)
    stage = _stage(calls, options)
    rows = [_measure(OURS, 0.0, calls, stage, options)]
    print(_line(rows[-1]), file=sys.stderr, flush=True)
    for name in [name for name in options.peers.split(",") if name] or list(PEERS):
        rows += _sweep(name, _floor(rows[0]), calls, stage, options)
    bound = _hindsight(rows[0], calls, stage, options) if options.bound_runs else None
    rows += [bound] if bound else []
    _report(rows, calls, stage, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Autoscalers side by side.")
    trace = os.environ.get("TRACE")
    parser.add_argument("--trace", type=Path, default=Path(trace) if trace else None)
    parser.add_argument("--begin", type=float, default=0.0, help="skip so many seconds of the trace")
    parser.add_argument("--seconds", type=float, default=3600.0, help="use so many seconds of the trace")
    parser.add_argument("--times", type=int, default=1, help="each request so many times, within half a minute")
    parser.add_argument("--cold-start", type=float, default=120.0)
    parser.add_argument("--stabilization", type=float, default=300.0, help="scaleDown.stabilization of our policy")
    parser.add_argument("--peers", default="")
    parser.add_argument("--targets", type=lambda text: tuple(map(float, text.split(","))), default=None)
    parser.add_argument("--ttft", type=float, default=None)
    parser.add_argument("--tpot", type=float, default=None)
    parser.add_argument("--most", type=int, default=40, help="maxReplicas of all")
    parser.add_argument("--begin-with", type=int, default=0, help="replicas at the start; default: what suits all")
    parser.add_argument("--pattern", choices=("rough", "smooth"), default="rough", help="of generated load")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bound-runs", type=int, default=24, help="runs of the search for the best schedule; 0: none")
    parser.add_argument("--block", type=float, default=300.0, help="seconds for which such a schedule keeps a number")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    return parser.parse_args()


def _calls(options: argparse.Namespace) -> list[Call]:
    found = read_trace(options.trace) if options.trace else generated(options.seed, PATTERNS[options.pattern])
    end = options.begin + options.seconds
    kept = [call for call in found if options.begin <= call.arrival < end]
    rng = random.Random(options.seed)
    copies = [_moved(call, options.begin, copy, rng) for call in kept for copy in range(options.times)]
    return sorted(copies, key=lambda call: call.arrival)


def _moved(call: Call, begin: float, copy: int, rng: random.Random) -> Call:
    """The request on the trace's own time, its copies a little later."""
    return replace(call, arrival=call.arrival - begin + (rng.uniform(0.0, 30.0) if copy else 0.0), model="chat")


def generated(seed: int, rate_at: Callable[[float], float]) -> list[Call]:
    """An hour of chat: arrivals at random, at a rate that changes."""
    rng = random.Random(seed)
    calls, now = [], 0.0
    while now < 3600.0:
        now += rng.expovariate(rate_at(now))
        prompt = min(6000, max(16, int(rng.lognormvariate(6.6, 0.9))))
        output = min(1000, max(4, int(rng.lognormvariate(5.0, 0.8))))
        calls.append(Call(now, "chat", ((len(calls) + 1, prompt),), prompt, output))
    return calls


def _rough(now: float) -> float:
    """Requests a second: 6, up to 12 in the middle of the hour, 5 more for ten minutes, and a burst of one minute."""
    wave = 6.0 + 6.0 * max(0.0, 1.0 - abs(now - 1800.0) / 1500.0)
    step = 5.0 if 2400.0 <= now < 3000.0 else 0.0
    return wave + step + (12.0 if 600.0 <= now < 660.0 else 0.0)


def _smooth(now: float) -> float:
    """Requests a second: 6, more and less by a fifth within 40 minutes, and by a tenth within 11."""
    return 6.0 * (1.0 + 0.2 * math.sin(now * math.tau / 2400.0) + 0.1 * math.sin(now * math.tau / 660.0))


PATTERNS: Mapping[str, Callable[[float], float]] = {"rough": _rough, "smooth": _smooth}


def _stage(calls: Sequence[Call], options: argparse.Namespace) -> Stage:
    stage = LONG if mean(call.input_tokens for call in calls) > 4000 else CHAT
    targets = options.targets or stage.targets
    return replace(stage, ttft=options.ttft or stage.ttft, tpot=options.tpot or stage.tpot, targets=targets)


def _objects(stage: Stage, options: argparse.Namespace, replicas: int) -> list[KubeObject]:
    def meta(name: str) -> dict[str, object]:
        return {"name": name, "uid": f"uid-{name}", "generation": 1}

    return [
        Model.model_validate(
            {
                "metadata": meta("chat"),
                "spec": {
                    "source": "hf://org/chat",
                    "engine": {"name": "vllm", "args": list(stage.arguments)},
                    "accelerators": [{"type": stage.accelerator}],
                    "lora": {"slots": 0},
                    "replicas": replicas,
                    "sloRef": {"name": "chat"},
                    "autoscalingPolicyRef": {"name": "chat"},
                },
            }
        ),
        SLO.model_validate(
            {
                "metadata": meta("chat"),
                "spec": {
                    "ttft": {"p95": f"{stage.ttft:g}s"},
                    "tpot": {"p95": f"{stage.tpot * 1000:.0f}ms"},
                    "queue": {"maxWait": "10m", "maxRequests": 100_000},
                },
            }
        ),
        AutoscalingPolicy.model_validate(
            {
                "metadata": meta("chat"),
                "spec": {
                    "signal": "SLO",
                    "maxReplicas": options.most,
                    "scaleDown": {"stabilization": f"{options.stabilization:g}s"},
                },
            }
        ),
    ]


def _measure(name: str, target: float, calls: Sequence[Call], stage: Stage, options: argparse.Namespace) -> Row:
    def peer(index: FleetIndex, profiles: Mapping[str, TimingProfile], _: float) -> Autoscaler:
        return PeerScaler(index, {model: PEERS[name](target) for model in profiles})

    setting = Setting(cold_start_s=options.cold_start)
    if name != OURS:
        setting = replace(setting, scaler=peer, scale_every_s=PEERS_LOOK_S)
    return _run((name, target), calls, stage, options, options.begin_with or 8, setting)[0]


def _run(
    name: tuple[str, float],
    calls: Sequence[Call],
    stage: Stage,
    options: argparse.Namespace,
    start: int,
    setting: Setting,
) -> tuple[Row, Outcome]:
    began = time.process_time()
    world = World(_objects(stage, options, start), POLICIES["sheaf"](options.seed), setting)
    wanted: list[int] = []
    _record(world, wanted)
    result = world.run(list(calls))
    took = time.process_time() - began
    outcome = result.outcome
    hours = calls[-1].arrival / 3600.0
    row = Row(
        *name,
        result.bill.pod_seconds / 3600.0,
        outcome.attainment(stage.ttft, stage.tpot),
        quantile(outcome.ttft, 0.5),
        quantile(outcome.ttft, 0.95),
        quantile(outcome.tpot, 0.95),
        outcome.refused,
        mean(sample.ready for sample in result.samples),
        max(sample.ready for sample in result.samples),
        turns(wanted) / hours,
        sum(a != b for a, b in pairwise(wanted)),
        took,
    )
    return row, outcome


def _hindsight(own: Row, calls: Sequence[Call], stage: Stage, options: argparse.Namespace) -> Row | None:
    """The cheapest schedule found by one who knows the trace, at the SLO or what Sheaf attained."""
    begin = 2 * options.cold_start + 10.0
    rows: dict[Schedule, Row] = {}

    def measure(schedule: Schedule) -> Trial:
        def planned(index: FleetIndex, _: Mapping[str, TimingProfile], __: float) -> Autoscaler:
            return Planned(index, schedule, begin)

        setting = Setting(cold_start_s=options.cold_start, scaler=planned)
        row, outcome = _run((BOUND, 0.0), calls, stage, options, schedule.numbers[0], setting)
        rows[schedule] = row
        print(_line(row), schedule.numbers, file=sys.stderr, flush=True)
        return Trial(schedule, row.attained, _blocks(outcome, stage, begin, schedule), row.gpu_hours)

    ahead = options.cold_start + AHEAD_S
    search = Search(measure, calls[-1].arrival, options.block, ahead, _floor(own), options.bound_runs)
    found = search.best(max(1, round(own.replicas_mean) - 1))
    return rows[found.schedule] if found else None


def _blocks(outcome: Outcome, stage: Stage, begin: float, schedule: Schedule) -> tuple[float, ...]:
    """The share of the requests of each block within the bounds; 1 where none came."""
    asked, kept = [0] * len(schedule.numbers), [0] * len(schedule.numbers)
    for arrival, ttft, tpot in zip(outcome.arrival, outcome.ttft, outcome.tpot, strict=True):
        block = min(int((arrival - begin) // schedule.block_s), len(asked) - 1)
        asked[block] += 1
        kept[block] += ttft <= stage.ttft and tpot <= stage.tpot
    return tuple(good / count if count else 1.0 for good, count in zip(kept, asked, strict=True))


def _record(world: World, wanted: list[int]) -> None:
    """Take down the number wanted, every five seconds."""

    def look(_: object) -> None:
        found = world.fleet.index.scaling("chat")
        if found is not None:
            wanted.append(found.replicas)
        world.clock.at(world.clock.now + 5.0, look)

    world.clock.at(0.0, look)


def turns(wanted: Iterable[int]) -> int:
    """How often a rise follows a fall or a fall a rise."""
    numbers = list(wanted)
    moves = [after - before for before, after in pairwise(numbers) if after != before]
    return sum((a > 0) != (b > 0) for a, b in pairwise(moves))


def _sweep(name: str, attained: float, calls: Sequence[Call], stage: Stage, options: argparse.Namespace) -> list[Row]:
    """Targets from the most careful on, until three in a row attain too little."""
    rows: list[Row] = []
    for target in stage.targets:
        rows.append(_measure(name, target, calls, stage, options))
        print(_line(rows[-1]), file=sys.stderr, flush=True)
        if len(rows) >= 3 and all(row.attained < attained for row in rows[-3:]):
            break
    return rows


def _line(row: Row) -> str:
    return (
        f"{row.scaler:9} {row.target:5.1f} GPU h {row.gpu_hours:7.2f} attained {row.attained:.4f} "
        f"TTFT p95 {row.ttft_p95:7.2f} TPOT p95 {row.tpot_p95:.3f} replicas {row.replicas_mean:5.1f} "
        f"(most {row.replicas_most}) turns/h {row.turns:4.1f} moves {row.moves} refused {row.refused} "
        f"{row.seconds:.0f} s"
    )


def _floor(own: Row) -> float:
    """What a peer must attain to be compared."""
    return min(own.attained, PROMISED)


def best(rows: Iterable[Row], attained: float) -> dict[str, Row]:
    """Of each peer the run with the fewest GPU hours among those that attain as much."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.scaler not in (OURS, BOUND) and row.attained >= attained:
            kept = found.get(row.scaler)
            found[row.scaler] = row if kept is None or row.gpu_hours < kept.gpu_hours else kept
    return found


def _report(rows: list[Row], calls: Sequence[Call], stage: Stage, options: argparse.Namespace) -> None:
    own = rows[0]
    peers = best(rows, _floor(own))
    table = Table("autoscaler", "target", "GPU h", "attained", "TTFT p95 s", "TPOT p95 s", "turns/h", "ratio", box=None)
    bound = [row for row in rows if row.scaler == BOUND]
    for row in (own, *peers.values(), *bound):
        table.add_row(
            row.scaler,
            f"{row.target:g}" if row.target else "",
            f"{row.gpu_hours:.2f}",
            f"{row.attained:.4f}",
            f"{row.ttft_p95:.2f}",
            f"{row.tpot_p95:.3f}",
            f"{row.turns:.1f}",
            f"{own.gpu_hours / row.gpu_hours:.3f}",
        )
    Console(width=120).print(table)
    ratios = {"direction_changes_per_hour": round(own.turns, 2), "attained": round(own.attained, 4)}
    if peers:
        ratios["gpu_hours_vs_best_peer"] = round(own.gpu_hours / min(row.gpu_hours for row in peers.values()), 4)
        if bound:
            least = bound[0].gpu_hours
            ratios["gpu_hours_vs_hindsight"] = round(own.gpu_hours / least, 4)
            ratios["hindsight_vs_best_peer"] = round(least / min(row.gpu_hours for row in peers.values()), 4)
        print(f"gpu_hours_vs_best_peer {ratios['gpu_hours_vs_best_peer']:.3f}")
    content = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()},
        "command": " ".join(["python", *sys.argv]),
        "trace": options.trace.name if options.trace else "generated",
        "requests": len(calls),
        "stage": asdict(stage),
        "rows": [asdict(row) for row in rows],
        "ratios": ratios,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "autoscaling.json").write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
