"""Ten thousand clients that are slow or silent are closed in time, and everybody else is served as ever.

Where this machine lets a process open fewer files there are fewer clients; `SHEAF_E2E_SLOW_CLIENTS` sets their number.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from chaos_fleet import Fleet, Outcome, ask, chaos_fleet, clients, question

pytestmark = pytest.mark.timeout(180)

RESERVE = 1_000
HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
ALLOWED = 2**20 if HARD == resource.RLIM_INFINITY else HARD
"""Files; the gateway leaves a quarter of its own to engines."""
CLIENTS = int(os.environ.get("SHEAF_E2E_SLOW_CLIENTS", min(10_000, ALLOWED * 3 // 4 - RESERVE)))
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: slow\r\ncontent-type: application/json\r\n"
GET = b"GET /healthz HTTP/1.1\r\nhost: slow\r\n\r\n"
KEEP_ALIVE_S = 8.0
ROOM_S = 10.0
BOUNDS = {"head": 12.0, "mute": 10.0, "body": 32.0, "drip": 32.0, "idle": KEEP_ALIVE_S}
"""Seconds after which each kind must be closed, the time to read a refusal included; room for a busy machine besides."""


@dataclass(eq=False)
class Slow(asyncio.Protocol):
    """One client: what it says at once, and what it goes on saying every two seconds."""

    kind: str
    first: bytes
    more: Callable[[int], bytes]
    counts: dict[str, int]
    opened: float = 0.0
    closed: float = 0.0
    told: bytes = b""
    turn: int = 0
    transport: asyncio.Transport | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.opened = time.monotonic()
        transport.write(self.first)

    def data_received(self, data: bytes) -> None:
        self.told = (self.told + data)[-2000:]

    def connection_lost(self, _exc: Exception | None) -> None:
        self.closed = time.monotonic()
        self.done.set()

    def say(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.turn += 1
            self.transport.write(self.more(self.turn))


KINDS: dict[str, tuple[bytes, Callable[[int], bytes]]] = {
    "head": (HEAD, lambda turn: b"x-%d: y\r\n" % turn),
    "mute": (b"", lambda _turn: b""),
    "body": (HEAD + b"content-length: 5000\r\n\r\n{", lambda _turn: b""),
    "drip": (HEAD + b"content-length: 5000\r\n\r\n{", lambda _turn: b" "),
    "idle": (GET, lambda _turn: b""),
}


async def everybody(fleet: Fleet) -> list[Slow]:
    """All slow clients, fifty at a time so that none waits for the listener."""
    counts = dict.fromkeys(KINDS, 0)
    names = list(KINDS)
    found = [Slow(names[n % len(names)], *KINDS[names[n % len(names)]], counts) for n in range(CLIENTS)]
    loop = asyncio.get_running_loop()
    for start in range(0, CLIENTS, 50):
        each = found[start : start + 50]
        await asyncio.gather(*(loop.create_connection(lambda c=c: c, "127.0.0.1", fleet.port) for c in each))
    return found


async def speak(slow: list[Slow]) -> None:
    while True:
        for start in range(0, len(slow), 500):
            for client in slow[start : start + 500]:
                client.say()
            await asyncio.sleep(2.0 * 500 / len(slow))


async def serve_others(session: aiohttp.ClientSession, fleet: Fleet, served: list[Outcome]) -> None:
    """Ordinary clients: some requests at a time, streamed and not, for as long as it takes."""
    number = 0
    while True:
        number += 1
        documents = [question("base", f"{number} {n}", stream=n % 2 > 0) for n in range(4)]
        served += await asyncio.gather(*(ask(session, fleet, document, 15.0) for document in documents))
        await asyncio.sleep(0.05)


def files_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208


async def test_slow_clients_are_closed_in_time_while_others_are_served(tmp_path: Path) -> None:
    assert CLIENTS >= 100, f"this machine lets a process open {ALLOWED} files, too few to say anything"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        times = {"keepAlive": f"{KEEP_ALIVE_S:g}s"}
        async with chaos_fleet(tmp_path, {"base": 2}, times=times) as fleet, clients() as session:
            await through_it(fleet, session)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def through_it(fleet: Fleet, session: aiohttp.ClientSession) -> None:
    assert fleet.process is not None
    served: list[Outcome] = []
    at_rest = files_of(fleet.process.pid)
    others = asyncio.create_task(serve_others(session, fleet, served))
    slow = await everybody(fleet)
    most, talking = files_of(fleet.process.pid), asyncio.create_task(speak(slow))
    try:
        async with asyncio.timeout(max(BOUNDS.values()) + 2 * ROOM_S):
            await asyncio.gather(*(client.done.wait() for client in slow))
    finally:
        for task in (others, talking):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    took = {kind: max(c.closed - c.opened for c in slow if c.kind == kind) for kind in KINDS}
    slowest = max(outcome.took for outcome in served)
    print(
        f"{CLIENTS} slow clients, {most} files at most, closed after {took}; {len(served)} served, slowest {slowest:.2f} s"
    )
    assert {kind: took[kind] for kind in KINDS if took[kind] > BOUNDS[kind] + ROOM_S} == {}
    assert [outcome for outcome in served if outcome.kind != "right"] == []
    assert len(served) > 200
    for client in slow:
        status = client.told[:12]
        assert status == (
            b"" if client.kind == "mute" else b"HTTP/1.1 200" if client.kind == "idle" else b"HTTP/1.1 408"
        )
    assert files_of(fleet.process.pid) <= at_rest + 50
