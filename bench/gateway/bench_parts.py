"""What a request costs the gateway without its sockets, part by part: `python bench/gateway/bench_parts.py`.

A whole gateway as configured by default runs in this process between transports that only remember, so that what is
left is its own work: reading, deciding, books, records, access log (to /dev/null) and writing. Requests come from
`CONNECTIONS` connections, `TURN` in each turn of the loop, over 8 pods and over one. Printed is CPU time in µs, the
lowest and the median of the repeats; then, for 8 pods, what each part takes by itself, timed by wrappers whose own
cost is measured and taken away. `--profile` prints cProfile's view instead.
"""

import argparse
import asyncio
import cProfile
import functools
import gc
import json
import pstats
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from sheaf_gateway import main as gateway_main
from sheaf_gateway.admission import admission
from sheaf_gateway.api import access, body, call, entry, inference
from sheaf_gateway.config import GatewayConfig
from sheaf_gateway.proxy import heads, responder
from sheaf_gateway.proxy.connection import Connection
from sheaf_gateway.proxy.upstream_connection import UpstreamConnection
from sheaf_gateway.routing import prefix, router
from stub import CHUNK, REPLY

CONNECTIONS, TURN, BODIES = 32, 8, 256
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer x\r\nContent-Length: %d\r\n\r\n"
)
ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Sat, 01 Jan 2022 00:00:00 GMT\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\nConnection: keep-alive\r\n\r\n%b"
) % (len(REPLY), REPLY)
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FRAMED = b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK)
SIZES = {"2 KB": 1_600, "32 KB": 32_300}

PARTS: dict[str, list[tuple[Any, str]]] = {
    "read the request": [(Connection, "data_received")],
    "read the head": [(heads.HeadReader, "read")],
    "read the body": [(body, "parse")],
    "who asks, for what": [(inference.Inference, "_asked")],
    "hash the prefix": [(prefix.Chains, "chain")],
    "the record": [(inference.Inference, "_record"), (inference.Records, "add")],
    "the call": [(call.Call, "__init__"), (call.Call, "begin")],
    "admission": [(admission.Admission, name) for name in ("decide", "routed", "release")],
    "match the prefix": [(router.PrefixIndex, "depths")],
    "choose the pod": [(router.Router, "decide")],
    "the router's books": [(router.Router, name) for name in ("sent", "answered", "finished")],
    "ask the engine": [(call.Call, "_send"), (call.Call, "_attempt")],
    "read the answer": [(UpstreamConnection, "data_received")],
    "write the answer": [(call, "answer_lines"), (responder.ConnectionResponder, "reply_joined")],
    "find the usage": [(call, "reported")],
    "end": [(call.Call, "on_whole"), (call.Call, "_finish"), (entry.Entry, "close")],
    "metrics, SLOs": [(inference.Inference, "_measure")],
    "access log": [(inference, "_line"), (access.AccessLog, "add"), (access.AccessLog, "flush")],
}


class Wire:
    """A transport that remembers the last write; closing it closes its protocol."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self.written = b""
        self._protocol: asyncio.Protocol | None = protocol

    def write(self, data: bytes) -> None:
        """Remember."""
        self.written = data

    def writelines(self, data: list[bytes]) -> None:
        """Remember."""
        self.written = b"".join(data)

    def is_closing(self) -> bool:
        """Never."""
        return False

    def get_extra_info(self, _name: str) -> None:
        """There is no socket."""

    def set_write_buffer_limits(self, **_limits: int) -> None:
        """There is no buffer."""

    def pause_reading(self) -> None:
        """Nothing comes by itself."""

    def abort(self) -> None:
        """Close."""
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            asyncio.get_running_loop().call_soon(protocol.connection_lost, None)

    close, resume_reading = abort, pause_reading


class Rig:
    """A gateway, its clients' connections, and the engines' connections in the order in which they are asked."""

    def __init__(self, gateway: gateway_main.Gateway) -> None:
        self.gateway = gateway
        self.asked: deque[UpstreamConnection] = deque()
        pool = gateway._engines  # noqa: SLF001
        pool._open = self._open  # type: ignore[method-assign]  # noqa: SLF001
        self._begin = UpstreamConnection.begin
        rig = self

        def begin(connection: UpstreamConnection, exchange: Any) -> None:
            rig._begin(connection, exchange)
            rig.asked.append(connection)

        UpstreamConnection.begin = begin  # type: ignore[method-assign]
        self.clients: list[Connection] = []
        for _ in range(CONNECTIONS):
            server = gateway._server  # noqa: SLF001
            assert server is not None
            client = Connection(server)
            client.connection_made(Wire(client))  # type: ignore[arg-type]
            self.clients.append(client)

    async def _open(self, endpoint: Any) -> UpstreamConnection:
        found = UpstreamConnection(self.gateway._engines, endpoint)  # noqa: SLF001
        found.connection_made(Wire(found))  # type: ignore[arg-type]
        return found

    async def requests(self, count: int, requests: list[bytes]) -> None:
        """Ask and answer."""
        clients, asked, place = self.clients, self.asked, 0
        for number in range(count):
            clients[number % CONNECTIONS].data_received(requests[number % len(requests)])
            place += 1
            if place == TURN or number == count - 1:
                place = 0
                while not asked:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                await asyncio.sleep(0)
                while asked:
                    asked.popleft().data_received(ANSWER)

    async def warm(self, requests: list[bytes]) -> None:
        """Wait for the fleet, open connections, learn."""
        while not self.gateway.store.fleet.served:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await self.requests(2_000, requests)

    async def close(self) -> None:
        """Give back what was changed."""
        UpstreamConnection.begin = self._begin  # type: ignore[method-assign]
        for client in self.clients:
            client.break_off()


class Clock:
    """CPU time by part: what runs within a part counts for it alone, whoever called it."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.calls: dict[str, int] = dict.fromkeys(PARTS, 0)
        self.inner: list[float] = [0.0]

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""
        now, inner, spent, calls = time.perf_counter, self.inner, self.spent, self.calls

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            inner.append(0.0)
            began = now()
            try:
                return function(*args, **kwargs)
            finally:
                took = now() - began
                spent[part] += took - inner.pop()
                calls[part] += 1
                inner[-1] += took

        return wrapper

    def overhead(self) -> float:
        """Seconds that a wrapper adds to its own part."""
        plain, count = self.timed("end", lambda: None), 20_000
        for _ in range(count):
            plain()
        spent, self.spent["end"], self.calls["end"] = self.spent["end"], 0.0, 0
        return spent / count

    @contextmanager
    def running(self) -> Iterator[None]:
        """Wrap every part."""
        before = [(where, name, getattr(where, name)) for places in PARTS.values() for where, name in places]
        for part, places in PARTS.items():
            for where, name in places:
                setattr(where, name, self.timed(part, getattr(where, name)))
        try:
            yield
        finally:
            for where, name, found in before:
                setattr(where, name, found)


def bodies(size: int) -> list[bytes]:
    """Whole requests: one of eight system prompts, then the user's own words."""
    systems = ["You are a careful assistant. " * (size // 60) + str(place) for place in range(8)]
    found = []
    for place in range(BODIES):
        rest = (f"Question {place}: what is the answer? " * (size // 20))[: size - len(systems[0])]
        said = [{"role": "system", "content": systems[place % 8]}, {"role": "user", "content": rest}]
        data = json.dumps({"model": "m", "max_tokens": 64, "temperature": 0.7, "messages": said}).encode()
        found.append(HEAD % len(data) + data)
    return found


@contextmanager
def configured(pods: int) -> Iterator[GatewayConfig]:
    """A fleet of one Model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fleet.json"
        declared = {"apiVersion": "sheaf.dev/v1alpha1", "kind": "Model", "metadata": {"name": "m"}}
        listed = [
            {"name": f"m-{place}", "model": "m", "engineUrl": f"http://127.0.0.1:{9000 + place}", "ready": True}
            for place in range(pods)
        ]
        model = {**declared, "spec": {"source": "hf://org/base"}}
        path.write_text(json.dumps({"version": 1, "models": [model], "pods": listed}))
        yield GatewayConfig(listen="127.0.0.1:0", fleet_file=path)


@contextmanager
def quiet() -> Iterator[None]:
    """The access log goes where logs go that nobody reads; written all the same."""
    before = inference._to_stderr  # noqa: SLF001
    with Path("/dev/null").open("wb", buffering=0) as sink:
        inference._to_stderr = sink.write  # type: ignore[assignment]  # noqa: SLF001
        try:
            yield
        finally:
            inference._to_stderr = before  # noqa: SLF001


async def measured(pods: int, size: int, options: argparse.Namespace) -> list[float]:
    """CPU µs for each request, by repeat."""
    with configured(pods) as config, quiet():
        gateway = await gateway_main.start(config)
        rig, requests, found = Rig(gateway), bodies(size), []
        try:
            await rig.warm(requests)
            gc.collect()
            gc.freeze()
            for _ in range(options.repeats):
                before = time.process_time()
                await rig.requests(options.requests, requests)
                found.append((time.process_time() - before) / options.requests * 1e6)
        finally:
            await rig.close()
            await gateway.stop(0.0)
    return found


async def parted(options: argparse.Namespace) -> dict[str, list[float]]:
    """µs by part, by repeat."""
    clock = Clock()
    rows: dict[str, list[float]] = {part: [] for part in PARTS}
    own = clock.overhead()
    with configured(8) as config, quiet(), clock.running():
        gateway = await gateway_main.start(config)
        rig, requests = Rig(gateway), bodies(SIZES["2 KB"])
        try:
            await rig.warm(requests)
            for _ in range(options.repeats):
                spent, calls = dict(clock.spent), dict(clock.calls)
                await rig.requests(options.requests, requests)
                for part, row in rows.items():
                    times = clock.calls[part] - calls[part]
                    row.append((clock.spent[part] - spent[part] - own * times) / options.requests * 1e6)
        finally:
            await rig.close()
            await gateway.stop(0.0)
    return rows


async def profiled(options: argparse.Namespace) -> None:
    """cProfile's view."""
    with configured(8) as config, quiet():
        gateway = await gateway_main.start(config)
        rig, requests = Rig(gateway), bodies(SIZES["2 KB"])
        await rig.warm(requests)
        profile = cProfile.Profile()
        profile.enable()
        await rig.requests(options.requests, requests)
        profile.disable()
        await rig.close()
        await gateway.stop(0.0)
    pstats.Stats(profile).sort_stats("tottime").print_stats(60)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What a request costs the gateway without its sockets.")
    parser.add_argument("--requests", type=int, default=4_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    gc.set_threshold(50_000, 20, 50)
    if options.profile:
        uvloop.run(profiled(options))
        return
    for pods in (8, 1):
        for name, size in SIZES.items():
            found = uvloop.run(measured(pods, size, options))
            print(f"{name + ', pods ' + str(pods):24} {min(found):8.1f} {median(found):8.1f} µs")
    for part, row in uvloop.run(parted(options)).items():
        print(f"  {part:22} {min(row):8.1f} {median(row):8.1f} µs")


if __name__ == "__main__":
    main()
