"""Latencies under a load that leaves the target time to spare, measured from when a request was due and a chunk sent.

Requests come as a Poisson process with a fixed seed, on connections that are kept; streams read chunks into which the
engine wrote its clock (stub.py). Both clients are the same for every target, and `direct` has none between.
"""

import asyncio
import itertools
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from stub import CLOCK

_SYSTEM = {"role": "system", "content": "You are a careful assistant. " * 30}
_SAID = {"model": "m", "messages": [_SYSTEM, {"role": "user", "content": "Question %010d: " + "what is it? " * 70}]}
BODY = json.dumps(_SAID).encode()
STREAM = json.dumps({**_SAID, "stream": True}).encode()
_KIND = b"POST /v1/chat/completions HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_WARM_S, _LONGEST_S = 1.0, 10.0


_numbers = itertools.count()

Begun = Callable[[], None]


def request(body: bytes) -> bytes:
    """A request whose prompt nobody sent before."""
    asked = body % next(_numbers)
    return _KIND % len(asked) + asked


@dataclass
class Client:
    """Connections that wait for their next request, the latencies (ms) of good answers so far, and how many others."""

    port: int
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)
    took_ms: list[float] = field(default_factory=list)
    bad: int = 0

    async def ask(self, due: float, *, counts: bool) -> None:
        """One request, timed from when it was due; one to warm up does not count."""
        try:
            async with asyncio.timeout(_LONGEST_S):
                good = await self._asked()
        except (OSError, EOFError):
            good = False
        if good and counts:
            self.took_ms.append((time.monotonic() - due) * 1e3)
        self.bad += not good

    async def _asked(self) -> bool:
        reader, writer = self.idle.pop() if self.idle else await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request(BODY))
            head = await reader.readuntil(b"\r\n\r\n")
            await _body(reader, head.lower())
        except BaseException:
            writer.transport.abort()
            raise
        self.idle.append((reader, writer))
        return head.startswith(b"HTTP/1.1 200")

    def close(self) -> None:
        """Close what is idle."""
        for _, writer in self.idle:
            writer.transport.abort()


async def answered(port: int, rate: float, seconds: float, begun: Begun) -> tuple[list[float], int]:
    """Latencies in ms at so many requests a second, and how many answers were not 200 or did not come.

    Here and below, `begun` is called when the time to warm up is over.
    """
    client, draw, due = Client(port), random.Random(7), time.monotonic() + 0.1
    warm, end, tasks, counted = due + _WARM_S, due + _WARM_S + seconds, [], False
    while due < end:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        counts = due >= warm
        if counts and not counted:
            begun()
        counted = counts
        tasks.append(asyncio.create_task(client.ask(due, counts=counts)))
        due += draw.expovariate(rate)
    await asyncio.gather(*tasks)
    client.close()
    return client.took_ms, client.bad


async def _body(reader: asyncio.StreamReader, head: bytes) -> None:
    sized = head.split(b"\r\ncontent-length:")
    if len(sized) > 1:
        await reader.readexactly(int(sized[1].split(b"\r\n")[0]))
    else:
        await reader.readuntil(b"\r\n0\r\n\r\n")


async def delays(port: int, streams: int, seconds: float, begun: Begun) -> tuple[list[float], int]:
    """Milliseconds from the engine's writing of each chunk to its arrival here, and how many streams broke off."""
    found: list[float] = []
    tasks = [asyncio.create_task(_listen(port, found)) for _ in range(streams)]
    await asyncio.sleep(_WARM_S)
    found.clear()
    begun()
    await asyncio.sleep(seconds)
    return found, await _ended(tasks)


async def chunks(port: int, streams: int, seconds: float, begun: Begun) -> tuple[int, int]:
    """How many chunks of so many streams came, and how many streams broke off."""
    heard = [0]
    tasks = [asyncio.create_task(_count(port, heard)) for _ in range(streams)]
    await asyncio.sleep(_WARM_S)
    first = heard[0]
    begun()
    await asyncio.sleep(seconds)
    return heard[0] - first, await _ended(tasks)


async def _ended(streams: list[asyncio.Task[None]]) -> int:
    """End them; how many had ended by themselves."""
    broken = sum(stream.done() for stream in streams)
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    return broken


async def _count(port: int, heard: list[int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(STREAM))
    try:
        while data := await reader.read(65_536):
            heard[0] += data.count(b"data: ")
    finally:
        writer.transport.abort()


async def _listen(port: int, found: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(STREAM))
    try:
        while data := await reader.readuntil(b"\n\n"):
            now = time.monotonic_ns()
            found.extend((now - int(sent)) / 1e6 for sent in CLOCK.findall(data))
    finally:
        writer.transport.abort()


def percentile(values: list[float], share: float) -> float:
    """The nearest rank; 0.0 of nothing."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0
