"""Gateways side by side on one core: `python bench/gateway/bench_gateway.py [--quick]` (needs wrk and nginx).

The target has core 0 for itself, load and engines have core 1. Chat bodies of 2 KB and of 32 KB (eight system prompts,
many users) go to it from 32 connections with wrk; 64 streams get a chunk every 10 ms. Beside the rate stands the CPU
time of the target's processes for each request and chunk, which a busy machine moves less. What a target adds to a
latency at 200 requests a second, and to the way of a chunk with 12 streams, is its figure less that of the engine asked
directly. Figures are medians over repeats, in each of which every target is started anew; ratios are medians over the
repeats of ours by the peer's.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TypeVar

import orjson
import uvloop
from paced import answered, delays, percentile
from rich.console import Console
from rich.table import Table
from targets import GATEWAY_CORE, OTHER_CORE, Target, engines, started, targets

SIZES = {"2k": 1_600, "32k": 32_300}
CONNECTIONS, STREAMS, PACE_MS = 32, 64, 10.0
PACED_RATE, PACED_STREAMS = 200.0, 12
DIRECT = "direct"
OUT = Path("bench-out")
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One target in one repeat: rates a second, CPU in µs, latency in ms; bad: answers other than 200;
    others: share of the target's core that went to other processes, which spoils a rate more than a CPU time."""

    target: str
    case: str
    repeat: int
    rate: float
    cpu_us: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    bad: int = 0
    others: float = 0.0


def main() -> None:
    """Measure, print, write."""
    options = _options()
    if not shutil.which("wrk") or not shutil.which("nginx"):
        sys.exit("bench-gateway needs wrk and nginx: apt-get install wrk nginx-light")
    chosen = [target for target in targets() if not options.only or target.name in options.only.split(",")]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for case, size in SIZES.items():
            (folder / f"{case}.lua").write_text(_script(size))
        for repeat in range(options.repeats):
            rows += _direct(folder, repeat, options.seconds)
            for target in chosen:
                rows += _measured(target, folder, repeat, options.seconds)
    _report(rows, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Gateways side by side on one core.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--only", default="", help="targets, by name, with commas")
    parser.add_argument("--quick", action="store_const", dest="repeats", const=1)
    return parser.parse_args()


def _measured(target: Target, folder: Path, repeat: int, seconds: float) -> list[Row]:
    rows: list[Row] = []
    try:
        with engines(folder, None) as ports, started(target, folder, ports) as (pid, port):
            time.sleep(1.0)
            _wrk(folder / "2k.lua", port, 1.0)
            rows += [_requests(target, case, folder, repeat, seconds, pid, port) for case in SIZES]
            rows.append(_paced(target.name, repeat, seconds, port))
        with engines(folder, PACE_MS) as ports, started(target, folder, ports) as (pid, port):
            time.sleep(1.0)
            rows.append(_on_other_core(_streamed(target, repeat, seconds, pid, port)))
            rows.append(_chunks(target.name, repeat, seconds, port))
    except (OSError, EOFError) as error:
        print(f"{target.name}: {error}", file=sys.stderr)
    for row in rows:
        print(
            f"{row.target:28} {row.case:7} {row.rate:9.0f}/s {row.cpu_us:7.1f} us bad {row.bad} others {row.others}",
            file=sys.stderr,
        )
    return rows


def _direct(folder: Path, repeat: int, seconds: float) -> list[Row]:
    """The engines with nothing before them."""
    with engines(folder, None) as ports:
        rows = [_paced(DIRECT, repeat, seconds, ports[0])]
    with engines(folder, PACE_MS) as ports:
        return [*rows, _chunks(DIRECT, repeat, seconds, ports[0])]


def _paced(name: str, repeat: int, seconds: float, port: int) -> Row:
    took, bad = _on_other_core(answered(port, PACED_RATE, seconds))
    return Row(name, "paced", repeat, len(took) / seconds, 0.0, percentile(took, 0.5), percentile(took, 0.99), bad)


def _chunks(name: str, repeat: int, seconds: float, port: int) -> Row:
    late = _on_other_core(delays(port, PACED_STREAMS, seconds))
    return Row(name, "chunk", repeat, len(late) / seconds, 0.0, percentile(late, 0.5), percentile(late, 0.99))


def _on_other_core(load: Coroutine[object, object, T]) -> T:
    os.sched_setaffinity(0, {int(OTHER_CORE)})
    try:
        return uvloop.run(load)
    finally:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


def _requests(target: Target, case: str, folder: Path, repeat: int, seconds: float, pid: int, port: int) -> Row:
    before, core = _cpu_s(pid), _core_s()
    text = _wrk(folder / f"{case}.lua", port, seconds)
    used = _cpu_s(pid) - before
    done = int(_found(r"(\d+) requests in", text))
    broken = re.findall(r"(?:read|write|timeout) (\d+)", text)
    bad = int(_found(r"Non-2xx or 3xx responses: (\d+)", text)) + sum(map(int, broken))
    rate = float(_found(r"Requests/sec: +([\d.]+)", text))
    p50, p99 = _milliseconds(r"50% +(\S+)", text), _milliseconds(r"99% +(\S+)", text)
    others = (_core_s() - core - used) * rate / max(done, 1)
    return Row(target.name, case, repeat, rate, used / max(done, 1) * 1e6, p50, p99, bad, round(others, 3))


def _wrk(script: Path, port: int, seconds: float) -> str:
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    whole = ["-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "--latency", "-s", str(script), url]
    pinned = ["taskset", "-c", OTHER_CORE, "wrk", *whole]
    return subprocess.run(pinned, check=True, capture_output=True, text=True).stdout


async def _streamed(target: Target, repeat: int, seconds: float, pid: int, port: int) -> Row:
    heard = [0]
    tasks = [asyncio.create_task(_listen(port, heard)) for _ in range(STREAMS)]
    await asyncio.sleep(1.5)
    first, before, core, begun = heard[0], _cpu_s(pid), _core_s(), time.monotonic()
    await asyncio.sleep(seconds)
    chunks, used, passed = heard[0] - first, _cpu_s(pid) - before, time.monotonic() - begun
    others = (_core_s() - core - used) / passed
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return Row(target.name, "stream", repeat, chunks / passed, used / max(chunks, 1) * 1e6, others=round(others, 3))


async def _listen(port: int, heard: list[int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    said = [{"role": "user", "content": "x" * 1_700}]
    body = json.dumps({"model": "m", "stream": True, "messages": said}, separators=(",", ":")).encode()
    kind = b"POST /v1/chat/completions HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\n"
    head = kind + b"Content-Length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    try:
        while data := await reader.read(65_536):
            heard[0] += data.count(b"data: ")
    finally:
        writer.transport.abort()


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process and its children, by the scheduler's own account."""
    tasks = [task for one in _tree(pid) for task in Path(f"/proc/{one}/task").glob("*/schedstat")]
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def _core_s() -> float:
    """Seconds that the target's core was busy, whoever used it."""
    line = Path("/proc/stat").read_text().split(f"cpu{GATEWAY_CORE} ")[1].splitlines()[0].split()
    idle = int(line[3]) + int(line[4])
    return (sum(map(int, line[:8])) - idle) / os.sysconf("SC_CLK_TCK")


def _tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in _tree(int(child)))]


def _script(size: int) -> str:
    """A wrk script of 256 bodies: one of eight system prompts, then the user's own words."""
    systems = ["You are a careful assistant. " * (size // 60) + str(place) for place in range(8)]
    bodies = []
    for place in range(256):
        rest = (f"Question {place}: what is the answer? " * (size // 20))[: size - len(systems[0])]
        messages = [{"role": "system", "content": systems[place % 8]}, {"role": "user", "content": rest}]
        bodies.append(json.dumps({"model": "m", "max_tokens": 64, "temperature": 0.7, "messages": messages}))
    listed = ",\n".join(f"[==[{body}]==]" for body in bodies)
    return f"""local bodies = {{ {listed} }}
local made, at = {{}}, 0
function init(args)
  for i, body in ipairs(bodies) do
    made[i] = wrk.format("POST", nil, {{["Content-Type"]="application/json", ["Authorization"]="Bearer x"}}, body)
  end
end
function request() at = at % #made + 1; return made[at] end
"""


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else "0"


def _milliseconds(pattern: str, text: str) -> float:
    value, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)?", _found(pattern, text)).groups()  # type: ignore[union-attr]
    return float(value) * {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, None: 1.0}[unit]


def _ratio(rows: list[Row], case: str, peers: list[str], best: str, value: str) -> float | None:
    """Median over the repeats of ours by the best of these peers."""
    ratios = []
    for repeat in sorted({row.repeat for row in rows}):
        at = {row.target: getattr(row, value) for row in rows if row.case == case and row.repeat == repeat and row.rate}
        theirs = [at[peer] for peer in peers if peer in at]
        if "sheaf" in at and theirs:
            ratios.append(at["sheaf"] / (max(theirs) if best == "max" else min(theirs)))
    return round(median(ratios), 3) if ratios else None


def _added(rows: list[Row], case: str, peers: list[str], value: str) -> float | None:
    """Median over the repeats of what we add by what the best of these peers adds."""
    direct = _by_repeat(rows, DIRECT, case, value)
    some = [row for row in rows if row.case == case and row.target != DIRECT and row.rate]
    added = [replace(row, **{value: max(0.001, getattr(row, value) - direct[row.repeat])}) for row in some]
    return _ratio(added, case, peers, "min", value)


def _over(rows: list[Row], case: str, peer: str, value: str) -> float | None:
    """Median over the repeats of ours less the peer's, in the unit of the value."""
    ours, theirs = _by_repeat(rows, "sheaf", case, value), _by_repeat(rows, peer, case, value)
    both = [ours[repeat] - theirs[repeat] for repeat in ours.keys() & theirs.keys()]
    return round(median(both), 3) if both else None


def _by_repeat(rows: list[Row], target: str, case: str, value: str) -> dict[int, float]:
    return {row.repeat: getattr(row, value) for row in rows if (row.target, row.case) == (target, case)}


def _report(rows: list[Row], options: argparse.Namespace) -> None:
    names = list(dict.fromkeys(row.target for row in rows))
    vllm, rust = [n for n in names if n.startswith("vllm_")], [n for n in names if "router" in n]
    sglang = ["sglang_router/cache_aware"]
    ratios = {
        "rps_vs_sglang_cache_aware": _ratio(rows, "2k", sglang, "max", "rate"),
        "rps_vs_vllm_router_best": _ratio(rows, "2k", vllm, "max", "rate"),
        "rps_vs_nginx": _ratio(rows, "2k", ["nginx"], "max", "rate"),
        "rps_32k_vs_sglang_cache_aware": _ratio(rows, "32k", sglang, "max", "rate"),
        "cpu_per_chunk_vs_best_rust": _ratio(rows, "stream", rust, "min", "cpu_us"),
        "added_p50_vs_best_rust": _added(rows, "paced", rust, "p50_ms"),
        "added_p99_vs_best_rust": _added(rows, "paced", rust, "p99_ms"),
        "chunk_delay_p99_ms_over_nginx": _over(rows, "chunk", "nginx", "p99_ms"),
    }
    cpu = {
        f"cpu_{case}_vs_{name}": _ratio(rows, case, peers, "min", "cpu_us")
        for case in SIZES
        for name, peers in (("sglang_cache_aware", sglang), ("vllm_router_best", vllm), ("nginx", ["nginx"]))
    }
    _print(rows, names, {**ratios, **cpu})
    machine = {"processor": platform.processor(), "cores": os.cpu_count(), "load": os.getloadavg()}
    versions = {"python": platform.python_version()}
    command = " ".join(["python", *sys.argv])
    report = {"machine": machine, "versions": versions, "command": command, "repeats": options.repeats}
    OUT.mkdir(exist_ok=True)
    whole = {**report, "rows": [asdict(row) for row in rows], "ratios": ratios, "cpu_ratios": cpu}
    (OUT / "gateway.json").write_bytes(orjson.dumps(whole, option=orjson.OPT_INDENT_2))


def _print(rows: list[Row], names: list[str], ratios: dict[str, float | None]) -> None:
    fields = ("rate", "cpu_us", "p50_ms", "p99_ms", "bad", "others")
    table = Table("target", "case", "rate/s", "CPU µs", "p50 ms", "p99 ms", "bad", "others")
    for name in names:
        for case in (*SIZES, "stream", "paced", "chunk"):
            some = [row for row in rows if row.target == name and row.case == case]
            if some:
                table.add_row(name, case, *(f"{median(getattr(row, field) for row in some):.2f}" for field in fields))
    console = Console(width=100)
    console.print(table)
    for key, ratio in ratios.items():
        console.print(f"{key}: {'not measured' if ratio is None else ratio}")


if __name__ == "__main__":
    main()
