"""What the proxy layer costs by itself: `python bench/proxy_microbench.py [--seconds 4] [--connections 32]`.

Three processes on loopback: an engine (the proxy's own server, echoing a 740-byte reply or a paced stream),
a gateway (server, relay and pool, no decisions) and this one as the load. The figure that does not depend
on who else runs on the machine is the gateway's own CPU time per request and per streamed chunk, from
`process_time`; requests per second and core are its inverse. Prints one JSON object.
"""

import argparse
import asyncio
import json
import multiprocessing
import platform
import socket
import time
from multiprocessing.connection import Connection
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


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    engine_pipe, engine_end = multiprocessing.Pipe()
    gateway_pipe, gateway_end = multiprocessing.Pipe()
    engine_process = multiprocessing.Process(target=run_engine, args=(engine_end,), daemon=True)
    engine_process.start()
    engine_port = engine_pipe.recv()
    gateway_process = multiprocessing.Process(target=run_gateway, args=(gateway_end, engine_port), daemon=True)
    gateway_process.start()
    gateway_port = gateway_pipe.recv()
    runs = {
        "passthrough_2k": (gateway_port, gateway_pipe, b"reply", BODY),
        "passthrough_32k": (gateway_port, gateway_pipe, b"reply", BODY * 16),
        "echo_2k": (engine_port, engine_pipe, b"reply", BODY),
        "stream": (gateway_port, gateway_pipe, b"stream", BODY),
    }
    rows: dict[str, dict[str, float]] = {}
    for name, (port, pipe, path, body) in runs.items():
        count = 64 if name == "stream" else options.connections
        done, arrived, cpu, wall = uvloop.run(measure(port, pipe, path, options.seconds, count, body))
        units = arrived / (len(CHUNK) + 6) if name == "stream" else done
        each = cpu / units * 1e6
        rows[name] = {
            "per_second": round(units / wall),
            "cpu_us_each": round(each, 1),
            "per_core_second": round(1e6 / each),
        }
    for pipe in (gateway_pipe, engine_pipe):
        pipe.send(False)  # noqa: FBT003
    gateway_process.join()
    engine_process.join()
    print(json.dumps({"machine": platform.processor() or platform.machine(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
