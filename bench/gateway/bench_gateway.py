"""Gateways side by side on one core: `python bench/gateway/bench_gateway.py [--quick]` (needs wrk and nginx).

The target has core 0 for itself, load and engines have core 1. Chat bodies of 2 KB and of 32 KB (eight system prompts,
many users) go to it from 32 connections with wrk; 64 streams get a chunk every 10 ms. Beside the rate stands the CPU
time of the target's processes for each request and chunk, which a busy machine moves less. What a target adds to a
latency at 200 requests a second, and to the way of a chunk with 12 streams, is its figure less that of the engine asked
directly. LiteLLM and the production stack, which carry far less, get fewer connections, 20 requests a second too, and
half the time (peers.py). Figures are medians over repeats, in each of which every target is started anew, another one
first; ratios are medians over the repeats of ours by the peer's.
"""

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Coroutine, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import orjson
import uvloop
from closed import SIZES, ask, script
from engines import engines
from paced import answered, chunks, delays, percentile
from peers import FULL, Target, versions
from processes import OTHER_CORE, Meter
from ratios import DIRECT, Row, cpu_ratios, ratios
from rich.console import Console
from rich.table import Table
from targets import started, targets

PACE_MS = 10.0
RATES = {200: "paced", 20: "paced_20"}
CASES = (*SIZES, "stream", *RATES.values(), "chunk")
OUT = Path("bench-out")
T = TypeVar("T")


def main() -> None:
    """Measure, print, write; end what was started also where somebody ends this."""
    for told in (signal.SIGINT, signal.SIGTERM):
        signal.signal(told, _interrupted)
    try:
        _main(_options())
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing is written")


def _interrupted(_number: int, _frame: object) -> None:
    for told in (signal.SIGINT, signal.SIGTERM):
        signal.signal(told, signal.SIG_IGN)
    raise KeyboardInterrupt


def _main(options: argparse.Namespace) -> None:
    if not shutil.which("wrk") or not shutil.which("nginx"):
        sys.exit("bench-gateway needs wrk and nginx: apt-get install wrk nginx-light")
    chosen = _chosen(options.only)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for case, size in SIZES.items():
            (folder / f"{case}.lua").write_text(script(size))
        for repeat in range(options.repeats):
            rows += _direct(folder, repeat, options.seconds)
            for place in range(len(chosen)):
                target = chosen[(place + repeat) % len(chosen)]
                rows += _measured(target, folder, repeat, options.seconds)
    _report(rows, [DIRECT, *(target.name for target in chosen)], options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Gateways side by side on one core.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--only", default="", help="targets, by name, with commas")
    parser.add_argument("--quick", action="store_const", dest="repeats", const=1)
    return parser.parse_args()


def _chosen(only: str) -> list[Target]:
    found, missing = targets()
    names = [name for name in only.split(",") if name]
    unknown = sorted(set(names) - {target.name for target in found})
    if unknown:
        sys.exit(f"no target {', '.join(unknown)} here; there are {', '.join(target.name for target in found)}")
    for line in missing if not names else []:
        print(line, file=sys.stderr)
    return [target for target in found if not names or target.name in names]


@dataclass
class Subject:
    """A target that runs, in one repeat; pid 0: the engine itself."""

    name: str
    repeat: int
    pid: int
    port: int

    def requests(self, case: str, folder: Path, connections: int, seconds: float) -> Row:
        """As many requests as it takes, after a second to warm up."""
        ask(folder / f"{case}.lua", self.port, connections, 1.0)
        meter = Meter(self.pid)
        found = ask(folder / f"{case}.lua", self.port, connections, seconds)
        figures = {"p50_ms": found.p50_ms, "p99_ms": found.p99_ms, "bad": found.bad}
        return Row(self.name, case, self.repeat, found.rate, **figures, **meter.read(found.good))

    def paced(self, rate: int, seconds: float) -> Row:
        """So many requests a second."""
        meter = Meter(self.pid)
        took, bad = _on_other_core(answered(self.port, rate, seconds, meter.begin))
        return self._late(RATES[rate], took, bad, seconds, meter)

    def late(self, streams: int, seconds: float) -> Row:
        """How late the chunks of so many streams come."""
        meter = Meter(self.pid)
        took, bad = _on_other_core(delays(self.port, streams, seconds, meter.begin))
        return self._late("chunk", took, bad, seconds, meter)

    def streams(self, count: int, seconds: float) -> Row:
        """What the chunks of so many streams cost."""
        meter = Meter(self.pid)
        heard, bad = _on_other_core(chunks(self.port, count, seconds, meter.begin))
        return Row(self.name, "stream", self.repeat, heard / seconds, bad=bad, **meter.read(heard))

    def _late(self, case: str, took: list[float], bad: int, seconds: float, meter: Meter) -> Row:
        figures = {"p50_ms": percentile(took, 0.5), "p99_ms": percentile(took, 0.99), "bad": bad}
        return Row(self.name, case, self.repeat, len(took) / seconds, **figures, **meter.read(len(took)))


def _measured(target: Target, folder: Path, repeat: int, seconds: float) -> Iterator[Row]:
    try:
        for row in _rows(target, folder, repeat, seconds * target.load.share):
            _tell(row)
            yield row
    except (OSError, EOFError, subprocess.CalledProcessError) as error:
        print(f"{target.name}: not measured to the end: {error}", file=sys.stderr)


def _rows(target: Target, folder: Path, repeat: int, seconds: float) -> Iterator[Row]:
    """One start for what needs fast engines and one for streams; only one, with streaming engines, for slow targets."""
    load, slow = target.load, not target.load.streams
    with engines(folder, PACE_MS if slow else None) as ports, started(target, folder, ports) as (pid, port):
        subject = Subject(target.name, repeat, pid, port)
        yield from (subject.requests(case, folder, load.connections, seconds) for case in SIZES)
        yield from (subject.paced(rate, seconds) for rate in load.rates)
        if slow and load.paced_streams:
            yield subject.late(load.paced_streams, seconds)
        if slow:
            return
    with engines(folder, PACE_MS) as ports, started(target, folder, ports) as (pid, port):
        subject = Subject(target.name, repeat, pid, port)
        yield subject.streams(load.streams, seconds)
        yield subject.late(load.paced_streams, seconds)


def _direct(folder: Path, repeat: int, seconds: float) -> Iterator[Row]:
    """The engines with nothing before them."""
    with engines(folder, None) as ports:
        yield from (Subject(DIRECT, repeat, 0, ports[0]).paced(rate, seconds) for rate in RATES)
    with engines(folder, PACE_MS) as ports:
        yield Subject(DIRECT, repeat, 0, ports[0]).late(FULL.paced_streams, seconds)


def _on_other_core(load: Coroutine[object, object, T]) -> T:
    os.sched_setaffinity(0, {int(OTHER_CORE)})
    try:
        return uvloop.run(load)
    finally:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


def _tell(row: Row) -> None:
    figures = f"{row.rate:9.0f}/s {row.cpu_us:8.1f} us {row.p50_ms:8.2f} {row.p99_ms:8.2f} ms"
    print(f"{row.target:29}{row.case:9}{figures} bad {row.bad} others {row.others} load {row.load}", file=sys.stderr)


def _report(rows: list[Row], names: list[str], options: argparse.Namespace) -> None:
    goals, cpu = ratios(rows), cpu_ratios(rows)
    _print(rows, names, {**goals, **cpu})
    machine = {"processor": _processor(), "cores": os.cpu_count(), "load": os.getloadavg()}
    command = " ".join(["python", *sys.argv])
    report = {"machine": machine, "versions": _versions(), "command": command, "repeats": options.repeats}
    OUT.mkdir(exist_ok=True)
    whole = {**report, "rows": [asdict(row) for row in rows], "ratios": goals, "cpu_ratios": cpu}
    (OUT / "gateway.json").write_bytes(orjson.dumps(whole, option=orjson.OPT_INDENT_2))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor())


def _versions() -> dict[str, str]:
    tools = {tool: _first_line([tool, "-v"]) for tool in ("nginx", "wrk")}
    return {"python": platform.python_version(), **tools, **versions()}


def _first_line(command: list[str]) -> str:
    said = subprocess.run(command, check=False, capture_output=True, text=True)
    return (said.stdout + said.stderr).strip().splitlines()[0]


def _print(rows: list[Row], names: list[str], ratios: dict[str, float | None]) -> None:
    fields = ("rate", "cpu_us", "p50_ms", "p99_ms", "others", "load")
    table = Table("target", "case", "rate/s", "CPU µs", "p50 ms", "p99 ms", "others", "load", "bad")
    for name in names:
        for case in CASES:
            some = [row for row in rows if (row.target, row.case) == (name, case)]
            if some:
                figures = [f"{median(getattr(row, field) for row in some):.2f}" for field in fields]
                table.add_row(name, case, *figures, str(sum(row.bad for row in some)))
    console = Console(width=110)
    console.print(table)
    for key, ratio in ratios.items():
        console.print(f"{key}: {'not measured' if ratio is None else ratio}")


if __name__ == "__main__":
    main()
