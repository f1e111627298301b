"""Latencies under a load that leaves the target time to spare, measured from when a request was due and a chunk sent.

Requests come as a Poisson process with a fixed seed, on connections that are kept; streams read chunks into which the
engine wrote its clock (stub.py). Both clients are the same for every target, and `direct` has none between.
"""

import asyncio
import json
import random
import time
from dataclasses import dataclass, field

from stub import CLOCK

_SAID = {"model": "m", "messages": [{"role": "user", "content": "x" * 1_800}]}
BODY = json.dumps(_SAID).encode()
STREAM = json.dumps({**_SAID, "stream": True}, separators=(",", ":")).encode()
_KIND = b"POST /v1/chat/completions HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_WARM_S = 1.0


@dataclass
class Client:
    """Connections that wait for their next request, the latencies (ms) so far, and answers other than 200."""

    port: int
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)
    took_ms: list[float] = field(default_factory=list)
    bad: int = 0

    async def ask(self, due: float) -> None:
        """One request, timed from when it was due."""
        reader, writer = self.idle.pop() if self.idle else await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(_KIND % len(BODY) + BODY)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
        self.took_ms.append((time.monotonic() - due) * 1e3)
        self.bad += not head.startswith(b"HTTP/1.1 200")
        self.idle.append((reader, writer))

    def close(self) -> None:
        """Close what is idle."""
        for _, writer in self.idle:
            writer.transport.abort()


async def answered(port: int, rate: float, seconds: float) -> tuple[list[float], int]:
    """Latencies in ms at so many requests a second, and how many answers were not 200."""
    client, draw, due = Client(port), random.Random(7), time.monotonic() + 0.1
    warm, end, tasks = due + _WARM_S, due + _WARM_S + seconds, []
    while due < end:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        if due < warm:
            client.took_ms.clear()
        tasks.append(asyncio.create_task(client.ask(due)))
        due += draw.expovariate(rate)
    await asyncio.gather(*tasks)
    client.close()
    return client.took_ms, client.bad


async def delays(port: int, streams: int, seconds: float) -> list[float]:
    """Milliseconds from the engine's writing of each chunk to its arrival here."""
    found: list[float] = []
    tasks = [asyncio.create_task(_listen(port, found)) for _ in range(streams)]
    await asyncio.sleep(_WARM_S)
    found.clear()
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return found


async def _listen(port: int, found: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_KIND % len(STREAM) + STREAM)
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
