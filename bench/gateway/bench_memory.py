"""Whether the gateway's memory stays flat: `python bench/gateway/bench_memory.py [--requests 1000000]`.

A fast client sends requests of every kind to one gateway over two stub engines: 2 KB chats with prompts of their own,
streams, names that are not served, bodies that are no JSON, clients that go away, connections that are opened anew. The
resident set of the gateway is read as they go. Caches fill at first (the prefix index after some 70,000 requests), so
the slope is taken over the second half: bytes a request by least squares, and how far off that may be.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import orjson
import uvloop
from processes import free_port, process, wait_for
from rich.console import Console
from rich.table import Table
from stub import CHUNK, REPLY

OUT = Path("bench-out")
CONNECTIONS, SAMPLES, PODS = 32, 60, 2
KINDS = ("whole",) * 84 + ("stream",) * 8 + ("unknown",) * 2 + ("garbage",) * 2 + ("leave",) * 2 + ("anew",) * 2
_HEAD = "POST /v1/chat/completions HTTP/1.1\r\nhost: b\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"
_WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(REPLY), REPLY)
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_STREAM += (b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK)) * 8 + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_END = b"0\r\n\r\n"


@dataclass(frozen=True)
class Sample:
    """The gateway after so many requests: resident and private bytes, open files."""

    requests: int
    seconds: float
    rss: int
    private: int
    files: int


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Whether the gateway's memory stays flat.")
    parser.add_argument("--requests", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        samples, answers = _measured(Path(scratch), options.requests)
    _report(samples, answers)


def _measured(folder: Path, requests: int) -> tuple[list[Sample], Counter[str]]:
    ports = [free_port() for _ in range(PODS)]
    engines = [multiprocessing.Process(target=_engine, args=(port,), daemon=True) for port in ports]
    for engine in engines:
        engine.start()
    try:
        for port in ports:
            wait_for(port)
        listen = free_port()
        with process(_gateway(folder, listen, ports), folder / "gateway.log", _cores()) as pid:
            wait_for(listen)
            time.sleep(1.0)
            return uvloop.run(_load(listen, pid, requests))
    finally:
        for engine in engines:
            engine.terminate()
            engine.join()


def _cores() -> str:
    return ",".join(map(str, sorted(os.sched_getaffinity(0))))


def _gateway(folder: Path, port: int, engines: list[int]) -> list[str]:
    pods = [
        {"name": f"m-{place}", "model": "m", "engineUrl": f"http://127.0.0.1:{engine}", "ready": True}
        for place, engine in enumerate(engines)
    ]
    declared = {"apiVersion": "sheaf.dev/v1alpha1", "kind": "Model", "metadata": {"name": "m"}}
    model = {**declared, "spec": {"source": "hf://org/base"}}
    (folder / "fleet.json").write_text(json.dumps({"version": 1, "models": [model], "pods": pods}))
    options = ["--listen", f"127.0.0.1:{port}", "--fleet-file", str(folder / "fleet.json")]
    return [sys.executable, "-m", "sheaf_gateway", *options]


# The engines.


class Engine(asyncio.Protocol):
    """One connection of an engine that answers at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            size = end + 4 + _length(self.buffer[:end])
            if len(self.buffer) < size:
                return
            request, self.buffer = self.buffer[:size], self.buffer[size:]
            self.transport.write(_STREAM if b'"stream": true' in request else _WHOLE)


def _length(head: bytes) -> int:
    place = head.lower().find(b"content-length:")
    return int(head[place + 15 :].split(b"\r\n")[0]) if place >= 0 else 0


def _engine(port: int) -> None:
    async def serve() -> None:
        await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port)
        await asyncio.Event().wait()

    uvloop.run(serve())


# The client.


class Load:
    """What all connections of the client share: the number of the next request, and how many are over."""

    def __init__(self, port: int, requests: int) -> None:
        self.port = port
        self.requests = requests
        self.sent = 0
        self.over = 0
        self.answers: Counter[str] = Counter()
        self.done = asyncio.Event()
        self.systems = ["You are a careful assistant. " * 24 + str(place) for place in range(8)]

    def next(self) -> tuple[str, bytes] | None:
        """The kind of the next request and its bytes; None where there is none."""
        if self.sent >= self.requests:
            return None
        number, self.sent = self.sent, self.sent + 1
        kind = KINDS[number * 37 % len(KINDS)]
        body = b"{ no JSON %d" % number if kind == "garbage" else self._body(number, kind)
        return kind, _HEAD.format(len(body)).encode() + body

    def _body(self, number: int, kind: str) -> bytes:
        model = f"nobody-{number}" if kind == "unknown" else "m"
        words = f"Question {number}: what is the answer? " * 24
        said = [{"role": "system", "content": self.systems[number % 8]}, {"role": "user", "content": words}]
        return json.dumps({"model": model, "stream": kind == "stream", "max_tokens": 64, "messages": said}).encode()

    def ended(self, answer: str) -> None:
        """Count one."""
        self.answers[answer] += 1
        self.over += 1
        if self.over >= self.requests:
            self.done.set()


class Client(asyncio.Protocol):
    """One connection: the next request after each answer."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.kind = ""
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._send()

    def data_received(self, data: bytes) -> None:
        """Take an answer, unless nobody waits for it any more."""
        if self.kind == "leave":
            return
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0 or not self._whole(end):
            return
        status, self.buffer = self.buffer[9:12].decode(), b""
        kind, self.kind = self.kind, ""
        self.load.ended(f"{kind} {status}")
        if kind == "anew":
            self.transport.close()
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Open another one while there is something to ask."""
        if self.kind:
            self.load.ended("leave" if self.kind == "leave" else f"{self.kind} broken")
        if self.load.sent < self.load.requests:
            asyncio.ensure_future(_connect(self.load))  # noqa: RUF006

    def _whole(self, end: int) -> bool:
        if b"transfer-encoding" in self.buffer[:end]:
            return self.buffer.endswith(_END)
        return len(self.buffer) >= end + 4 + _length(self.buffer[:end])

    def _send(self) -> None:
        found = self.load.next()
        if found is None:
            self.transport.close()
            return
        self.kind, data = found
        self.transport.write(data)
        if self.kind == "leave":
            asyncio.get_running_loop().call_later(0.001, self.transport.abort)


async def _connect(load: Load) -> None:
    await asyncio.get_running_loop().create_connection(lambda: Client(load), "127.0.0.1", load.port)


async def _load(port: int, pid: int, requests: int) -> tuple[list[Sample], Counter[str]]:
    load, began = Load(port, requests), time.monotonic()
    samples = [_sample(pid, 0, 0.0)]
    for _ in range(CONNECTIONS):
        await _connect(load)
    while not load.done.is_set():
        await asyncio.sleep(0.05)
        if load.over >= len(samples) * requests / SAMPLES:
            samples.append(_sample(pid, load.over, time.monotonic() - began))
            if len(samples) % 6 == 0:
                shown = samples[-1]
                print(f"{shown.requests:9} {shown.rss / 2**20:7.1f} MiB {shown.seconds:7.1f} s", file=sys.stderr)
    await asyncio.sleep(1.0)
    samples.append(_sample(pid, load.over, time.monotonic() - began))
    return samples, load.answers


def _sample(pid: int, requests: int, seconds: float) -> Sample:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    private = sum(int(lines[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))
    files = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
    return Sample(requests, round(seconds, 2), int(lines["Rss"].split()[0]) * 1024, private * 1024, files)


# The report.


def slope(samples: list[Sample]) -> tuple[float, float]:
    """Bytes a request by least squares, and the standard error of that."""
    xs, ys = [float(s.requests) for s in samples], [float(s.rss) for s in samples]
    x, y = mean(xs), mean(ys)
    spread = sum((one - x) ** 2 for one in xs)
    if len(samples) < 3 or not spread:
        return 0.0, float("inf")
    found = sum((one - x) * (other - y) for one, other in zip(xs, ys, strict=True)) / spread
    rest = sum((other - y - found * (one - x)) ** 2 for one, other in zip(xs, ys, strict=True))
    return found, (rest / (len(samples) - 2) / spread) ** 0.5


def _report(samples: list[Sample], answers: Counter[str]) -> None:
    half = [sample for sample in samples if sample.requests >= samples[-1].requests / 2]
    grows, error = slope(half)
    table = Table("requests", "seconds", "RSS MiB", "private MiB", "files")
    for sample in samples[:: max(1, len(samples) // 12)]:
        sizes = (sample.rss / 2**20, sample.private / 2**20)
        table.add_row(str(sample.requests), f"{sample.seconds:.1f}", *(f"{s:.1f}" for s in sizes), str(sample.files))
    console = Console(width=100)
    console.print(table)
    console.print(dict(sorted(answers.items())))
    million = grows * 1e6 / half[0].rss
    console.print(f"second half: {grows:.2f} ± {error:.2f} bytes a request; a million requests: {million:+.1%}")
    machine = {"processor": platform.processor(), "cores": os.cpu_count(), "load": os.getloadavg()}
    whole: dict[str, Any] = {
        "machine": machine,
        "versions": {"python": platform.python_version()},
        "command": " ".join(["python", *sys.argv]),
        "answers": answers,
        "rows": [asdict(sample) for sample in samples],
        "slope_bytes_a_request": round(grows, 3),
        "slope_standard_error": round(error, 3),
        "ratios": {"rss_growth_by_a_million_requests": round(million, 4)},
    }
    OUT.mkdir(exist_ok=True)
    (OUT / "memory.json").write_bytes(orjson.dumps(whole, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
