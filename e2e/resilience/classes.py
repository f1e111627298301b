"""Traffic of two classes on one Model: interactive streams at a steady pace, and batch that takes whatever it gets.

All of it is bounded: a request each ``pace`` seconds, ``batch`` clients that ask one after the other.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import httpx

REFUSED = (429, 503)


@dataclass(frozen=True)
class Asked:
    """One request: when it was sent, what became of it, seconds to its first token (of an answer) or to its end."""

    at: float
    status: int
    first: float
    whole: bool
    retry_after: str

    @property
    def right(self) -> bool:
        """Whether its caller knows what to make of it."""
        return self.whole if self.status == 200 else self.status in REFUSED and int(self.retry_after or 0) >= 1


@dataclass
class Classes:
    """Both classes until the ``with`` block ends, which waits for every answer."""

    url: str
    model: str
    tokens: int = 20
    pace: float = 0.25
    batch: int = 24
    interactive_asked: list[Asked] = field(default_factory=list)
    batch_asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="classes", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(120)
        assert not self._thread.is_alive(), "a request has had no answer for two minutes"

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=256)
        async with httpx.AsyncClient(timeout=90, limits=limits) as client, asyncio.TaskGroup() as group:
            for _ in range(self.batch):
                group.create_task(self._batch(client))
            while not self._stop.is_set():
                group.create_task(self._one(client, self.interactive_asked, {}))
                await asyncio.sleep(self.pace)

    async def _batch(self, client: httpx.AsyncClient) -> None:
        while not self._stop.is_set():
            asked = await self._one(client, self.batch_asked, {"service_tier": "flex"})
            await asyncio.sleep(0.02 if asked.status == 200 else 0.5)

    async def _one(self, client: httpx.AsyncClient, told: list[Asked], more: dict[str, str]) -> Asked:
        body = {"model": self.model, "prompt": "hello", "max_tokens": self.tokens, "ignore_eos": True, "stream": True}
        began, first, lines = time.monotonic(), 0.0, [""]
        try:
            async with client.stream("POST", f"{self.url}/v1/completions", json={**body, **more}) as answer:
                async for line in answer.aiter_lines():
                    first = first or time.monotonic() - began
                    lines = [line or lines[0]]
            status, retry = answer.status_code, answer.headers.get("retry-after", "")
        except httpx.HTTPError:
            status, retry = 0, ""
        asked = Asked(began, status, first, lines == ["data: [DONE]"], retry)
        told.append(asked)
        return asked


def since(asked: list[Asked], moment: float) -> list[Asked]:
    """Those that were sent since."""
    return [one for one in asked if one.at >= moment]
