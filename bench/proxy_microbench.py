"""What the proxy layer costs by itself: `python bench/proxy_microbench.py [--seconds 2] [--repeats 5]`.

Processes on loopback: an engine (the proxy's own server, answering 740 bytes or a paced stream), a gateway
(server, relay and pool, no decisions), a splice (a byte copier on the same event loop: the floor) and this
one as the load. Reported is the median CPU time of the process in the middle per request and per streamed
chunk, whose inverse is what one core can do. On a busy machine compare with the splice of the same run.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from statistics import median
from typing import cast

import uvloop
from sheaf_gateway.proxy import Endpoint, Pool, Relay, Request, Responder, request_head, serve

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 1_880}]}).encode()
REPLY = b"{" + b'"x":"' + b"y" * 732 + b'"}'
CHUNK = b'data: {"choices":[{"delta":{"content":"' + b"t" * 170 + b'"}}]}\n\n'
HEAD = (
    b"POST /%b HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\nUser-Agent: bench\r\n"
    b"Content-Type: application/json\r\nAuthorization: Bearer x\r\nContent-Length: %d\r\n\r\n"
)
JSON = ((b"content-type", b"application/json"),)
PACE_S = 0.01


def engine(request: Request, responder: Responder) -> None:
    """Echo a fixed reply, or send a chunk every 10 ms until the client leaves."""
    if request.path == "/reply":
        responder.reply(200, JSON, REPLY)
        return
    responder.start(200, ((b"content-type", b"text/event-stream"),), length=None)
    loop = asyncio.get_running_loop()

    def tick() -> None:
        if not responder.ended:
            responder.write(CHUNK)
            loop.call_later(PACE_S, tick)

    tick()


def run_engine(pipe: Connection) -> None:
    """Serve `engine` until told to stop."""

    async def main() -> None:
        server = await serve(engine, host="127.0.0.1", port=0)
        await until_told(pipe, server.port)
        await server.close(0)

    uvloop.run(main())


def run_gateway(pipe: Connection, engine_port: int) -> None:
    """Pass everything to the engine until told to stop."""

    async def main() -> None:
        pool, endpoint = Pool(), Endpoint("127.0.0.1", engine_port)
        authority = endpoint.authority

        def app(request: Request, responder: Responder) -> None:
            head = request_head(request.method, request.target, authority, request.headers, len(request.body))
            relay = Relay(responder)
            relay.attach(pool.exchange(endpoint, head, request.body, relay))

        server = await serve(app, host="127.0.0.1", port=0)
        await until_told(pipe, server.port)
        await server.close(0)
        await pool.close()

    uvloop.run(main())


class Splice(asyncio.Protocol):
    """One half of a byte copier: the least that two sockets and an event loop cost."""

    other: asyncio.Transport

    def __init__(self, engine_port: int = 0) -> None:
        self.engine_port = engine_port
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Dial the engine, if this is the client's half."""
        self.transport = cast("asyncio.Transport", transport)
        if self.engine_port:
            self.dialling = asyncio.ensure_future(self.dial())

    async def dial(self) -> None:
        """Connect the other half."""
        loop = asyncio.get_running_loop()
        transport, half = await loop.create_connection(Splice, "127.0.0.1", self.engine_port)
        half.other, self.other = self.transport, cast("asyncio.Transport", transport)
        self.other.writelines(self.early)

    def data_received(self, data: bytes) -> None:
        """Copy."""
        if hasattr(self, "other"):
            self.other.write(data)
        else:
            self.early.append(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Close the other half too."""
        if hasattr(self, "other"):
            self.other.close()


def run_splice(pipe: Connection, engine_port: int) -> None:
    """Copy bytes between clients and the engine until told to stop."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Splice(engine_port), "127.0.0.1", 0)
        await until_told(pipe, server.sockets[0].getsockname()[1])
        server.close()

    uvloop.run(main())


async def until_told(pipe: Connection, port: int) -> None:
    """Answer each message with the process's CPU time in seconds; end on an empty one."""
    pipe.send(port)
    told = asyncio.Event()

    def answer() -> None:
        if pipe.recv():
            pipe.send(time.process_time())
        else:
            told.set()

    asyncio.get_running_loop().add_reader(pipe.fileno(), answer)
    await told.wait()


class Load(asyncio.Protocol):
    """One closed-loop connection: a request as soon as the reply to the one before is whole."""

    done = 0
    bytes_in = 0

    def __init__(self, request: bytes, reply_size: int) -> None:
        self.request = request
        self.reply_size = reply_size
        self.missing = reply_size

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Count, and go on."""
        Load.bytes_in += len(data)
        self.missing -= len(data)
        if self.reply_size and self.missing <= 0:
            Load.done += 1
            self.missing = self.reply_size
            self.transport.write(self.request)


def cpu_of(pipe: Connection) -> float:
    """Ask a process for its CPU time, in seconds."""
    pipe.send(True)  # noqa: FBT003
    return float(pipe.recv())


async def measure(
    port: int, pipe: Connection, path: bytes, seconds: float, connections: int, body: bytes
) -> list[float]:
    """Return (replies, bytes in, gateway CPU seconds, wall seconds) of one run."""
    loop = asyncio.get_running_loop()
    size = 0 if path == b"stream" else len(REPLY) + len(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
    size += 0 if not size else len(b"content-length: %d\r\n\r\n" % len(REPLY))
    request = HEAD % (path, len(body)) + body
    made = [await loop.create_connection(lambda: Load(request, size), "127.0.0.1", port) for _ in range(connections)]
    await asyncio.sleep(0.5)
    replies, arrived, cpu, begin = Load.done, Load.bytes_in, cpu_of(pipe), time.perf_counter()
    await asyncio.sleep(seconds)
    result = [Load.done - replies, Load.bytes_in - arrived, cpu_of(pipe) - cpu, time.perf_counter() - begin]
    for transport, _ in made:
        transport.abort()
    await asyncio.sleep(0.2)
    return result


def start(target: Callable[..., None], *arguments: int) -> tuple[int, Connection]:
    """Start a process that serves; return its port and the pipe to it."""
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.Process(target=target, args=(theirs, *arguments), daemon=True).start()
    return int(ours.recv()), ours


def microseconds(name: str, port: int, pipe: Connection, body: bytes, options: argparse.Namespace) -> float:
    """Return the CPU time of one run per reply or streamed chunk, in microseconds."""
    streaming = name.startswith("stream")
    path, count = (b"stream", 64) if streaming else (b"reply", options.connections)
    done, arrived, cpu, _ = uvloop.run(measure(port, pipe, path, options.seconds, count, body))
    return cpu / (arrived / (len(CHUNK) + 6) if streaming else done) * 1e6


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    engine_at = start(run_engine)
    splice_at, gateway_at = start(run_splice, engine_at[0]), start(run_gateway, engine_at[0])
    runs = {
        "splice_2k": (*splice_at, BODY),
        "passthrough_2k": (*gateway_at, BODY),
        "splice_32k": (*splice_at, BODY * 16),
        "passthrough_32k": (*gateway_at, BODY * 16),
        "echo_2k": (*engine_at, BODY),
        "stream_splice": (*splice_at, BODY),
        "stream_passthrough": (*gateway_at, BODY),
    }
    rounds = [{name: microseconds(name, *run, options) for name, run in runs.items()} for _ in range(options.repeats)]
    rows = {name: median(one[name] for one in rounds) for name in runs}
    for _, pipe in (splice_at, gateway_at, engine_at):
        pipe.send(False)  # noqa: FBT003
    table = {name: {"cpu_us": round(us, 1), "per_core_second": round(1e6 / us)} for name, us in rows.items()}
    print(json.dumps({"machine": f"{platform.machine()}, {os.cpu_count()} cores", "rows": table}, indent=2))


if __name__ == "__main__":
    main()
