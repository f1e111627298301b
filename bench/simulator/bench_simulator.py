"""How well the simulator agrees with the emulator fleet in real time: `python bench/simulator/bench_simulator.py`.

Each workload is sent in real time, over HTTP, to emulator processes (`python -m sheaf_engine.emulator`), in turn to one
after the other; and simulated with the same calls, profile and turns. Errors are relative for times to first token, and
differences of shares for the hit rate of prefix caches. The machine has to be quiet: what HTTP and a busy machine cost
is what the simulator leaves out. How quiet it was is in the figures: the load when each workload began, and by how much
the client itself was late in sending (`late_p99`). docs/simulator.md explains the figures.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import aiohttp
import orjson
from rich.console import Console
from rich.table import Table
from sheaf.simulator.calls import Call
from sheaf.simulator.outcome import quantile
from sheaf.simulator.policies.balance import RoundRobin
from sheaf.simulator.race import Race
from sheaf.simulator.traces import Chat, conversations, read_trace
from sheaf_engine.timing import PRESETS, TimingProfile

LONGEST = 16_384
WORDS = 200
MODEL = "model"
PATIENCE = aiohttp.ClientTimeout(total=600.0)


@dataclass(frozen=True)
class Seen:
    """What became of one workload in one world; seconds, and the share of prompt tokens found in caches."""

    p50: float
    p99: float
    hit_rate: float
    answered: int
    late_p99: float = 0.0


def main() -> None:
    """Measure, print, write."""
    options = _options()
    profile = PRESETS[options.profile].with_changes(max_model_len=LONGEST, num_blocks=options.blocks)
    rows = []
    for name, calls in _workloads(options).items():
        simulated, load = _simulate(calls, profile, options.pods), os.getloadavg()[0]
        real = asyncio.run(_serve(calls, profile, options.pods))
        row = {"workload": name, "requests": len(calls), "load": round(load, 2)}
        rows.append({**row, "simulated": asdict(simulated), "real": asdict(real)})
        print(name, simulated, real, file=sys.stderr, flush=True)
    _report(rows, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The simulator against the emulator fleet in real time.")
    trace = os.environ.get("TRACE")
    parser.add_argument("--trace", type=Path, default=Path(trace) if trace else None, help="as a fourth workload")
    parser.add_argument("--seconds", type=float, default=180.0, help="of each workload")
    parser.add_argument("--pods", type=int, default=2)
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second")
    parser.add_argument("--profile", default="l4-8b", choices=sorted(PRESETS))
    parser.add_argument("--blocks", type=int, default=6000, help="KV blocks of an engine")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    return parser.parse_args()


def _workloads(options: argparse.Namespace) -> dict[str, list[Call]]:
    chat = Chat(seconds=options.seconds, rate=options.rate, longest=LONGEST // 2)
    alone = replace(chat, turns=1.0, prompts=1, prompt_tokens=1)
    found = {
        "chat": conversations(chat, 1),
        "no prefixes": conversations(alone, 2),
        "long prompts": conversations(replace(chat, turn_tokens=1500, rate=options.rate / 3), 3),
    }
    if options.trace:
        calls = [call for call in read_trace(options.trace) if call.input_tokens + call.output_tokens < LONGEST]
        found["trace"] = calls
    return {name: [one for one in calls if one.arrival < options.seconds] for name, calls in found.items()}


def _simulate(calls: Sequence[Call], profile: TimingProfile, pods: int) -> Seen:
    outcome = Race(RoundRobin(0), pods, profile).run(calls)
    return Seen(quantile(outcome.ttft, 0.5), quantile(outcome.ttft, 0.99), outcome.hit_rate, len(outcome.ttft))


async def _serve(calls: Sequence[Call], profile: TimingProfile, pods: int) -> Seen:
    async with contextlib.AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(_engine(profile)) for _ in range(pods)]
        session = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=PATIENCE, connector=aiohttp.TCPConnector(limit=0))
        )
        bodies = [_body(call) for call in calls]
        begin = time.perf_counter() + 0.5
        asked = (
            _ask(session, urls[place % pods], call, body, begin + call.arrival - calls[0].arrival)
            for place, (call, body) in enumerate(zip(calls, bodies, strict=True))
        )
        found = [one for one in await asyncio.gather(*asked) if one is not None]
    cached, prompt = sum(one[1] for one in found), sum(one[2] for one in found)
    ttft, late = [one[0] for one in found], quantile([one[3] for one in found], 0.99)
    return Seen(quantile(ttft, 0.5), quantile(ttft, 0.99), cached / max(1, prompt), len(found), late)


@contextlib.asynccontextmanager
async def _engine(profile: TimingProfile) -> AsyncIterator[str]:
    """An emulator process that answers; it ends with the block."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    file = Path(os.environ.get("TMPDIR", "/tmp")) / f"sheaf-profile-{os.getpid()}.json"
    await asyncio.to_thread(file.write_text, profile.to_json())
    flags = ("--model", MODEL, "--port", str(port), "--host", "127.0.0.1", "--profile", str(file))
    sizes = ("--max-model-len", str(LONGEST), "--block-size", str(profile.block_size), "--enable-prompt-tokens-details")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sheaf_engine.emulator", *flags, *sizes, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await _up(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1/completions"
    finally:
        process.terminate()
        await process.wait()
        await asyncio.to_thread(file.unlink, missing_ok=True)


async def _up(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(300):
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)
    raise SystemExit(f"{url}: the emulator did not answer within 30 s; run it by hand to see why")


def _body(call: Call) -> bytes:
    """What is asked, made before time counts."""
    return orjson.dumps(
        {
            "model": MODEL,
            "prompt": _tokens(call),
            "max_tokens": call.output_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )


async def _ask(
    session: aiohttp.ClientSession, url: str, call: Call, body: bytes, at: float
) -> tuple[float, int, int, float] | None:
    """Time to first token, cached and all prompt tokens, how late it was sent; None where the answer was no stream."""
    await asyncio.sleep(max(0.0, at - time.perf_counter()))
    sent, first, last = time.perf_counter(), 0.0, b""
    async with session.post(url, data=body, headers={"content-type": "application/json"}) as answer:
        if answer.status != 200:
            print(f"{answer.status}: {(await answer.text())[:200]}", file=sys.stderr)
            return None
        async for line in answer.content:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter()
                last = line
    usage = orjson.loads(last[6:]).get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    return first - sent, details.get("cached_tokens") or 0, call.input_tokens, sent - at


def _tokens(call: Call) -> list[int]:
    """Token ids of a prompt: equal segments give equal tokens."""
    found: list[int] = []
    for name, length in call.segments:
        value = name * 2654435761 + 12345
        for _ in range(length):
            value = (value * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
            found.append(10 + (value >> 33) % WORDS)
    return found[: call.input_tokens]


def _report(rows: list[dict[str, object]], options: argparse.Namespace) -> None:
    headings = ("workload", "requests", "TTFT p50", "real", "p99", "real", "hit rate", "real", "load", "sent late, p99")
    table = Table(*headings, box=None)
    errors: dict[str, list[float]] = {"ttft_p50_error": [], "ttft_p99_error": [], "hit_rate_error": []}
    for row in rows:
        ours, real = Seen(**row["simulated"]), Seen(**row["real"])  # type: ignore[arg-type]
        errors["ttft_p50_error"].append(abs(ours.p50 / real.p50 - 1.0))
        errors["ttft_p99_error"].append(abs(ours.p99 / real.p99 - 1.0))
        errors["hit_rate_error"].append(abs(ours.hit_rate - real.hit_rate))
        times = (f"{value:.3f} s" for value in (ours.p50, real.p50, ours.p99, real.p99))
        rates = (f"{ours.hit_rate:.3f}", f"{real.hit_rate:.3f}", f"{row['load']}", f"{real.late_p99 * 1e3:.1f} ms")
        table.add_row(str(row["workload"]), str(row["requests"]), *times, *rates)
    Console(width=120).print(table)
    ratios = {key: round(max(values), 5) for key, values in errors.items()}
    for key, value in ratios.items():
        print(f"{key:20} {value:.4f}")
    content = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()},
        "command": " ".join(["python", *sys.argv]),
        "rows": rows,
        "ratios": ratios,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "simulator.json").write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
