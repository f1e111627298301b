"""Requests through the gateway while a test does something else: a bounded number of clients in a thread of their own.

Every answer is compared with the first one to the same prompt: an emulator's text is a function of model and prompt. So
an answer that is cut short, or another's, counts as failed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx

PROMPTS = tuple(f"request of kind {number}" for number in range(8))
SHOWN = 5


@dataclass
class Load:
    """Clients that ask one after the other until the `with` block ends.

    Attributes:
        url: of the gateways.
        models: asked in turn.
        clients: requests at once.
        tokens: of each answer.
        pause: seconds of a client between two requests.
        patience: seconds that a request may take.
    """

    url: str
    models: Sequence[str]
    clients: int = 4
    tokens: int = 4
    pause: float = 0.05
    patience: float = 60.0
    answered: int = 0
    failed: int = 0
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._expected: dict[tuple[str, str], str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait(self.clients)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(self.patience + 10)
        print(f"\n  {self}")

    def __str__(self) -> str:
        seconds = time.monotonic() - self._began
        asked = self.answered + self.failed
        told = f"{self.failed} of {asked} requests failed in {seconds:.0f} s, the slowest took {self.slowest:.2f} s"
        return "\n    ".join([told, *self.failures])

    def wait(self, count: int, timeout: float = 60.0) -> None:
        """Wait until so many are answered."""
        deadline = time.monotonic() + timeout
        while self.answered < count:
            assert time.monotonic() < deadline, f"not {count} answers within {timeout:g} s: {self}"
            time.sleep(0.05)

    def more(self, count: int = 50) -> None:
        """Wait for so many further answers."""
        self.wait(self.answered + count)

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=self.clients, max_keepalive_connections=self.clients)
        async with httpx.AsyncClient(timeout=self.patience, limits=limits) as client:
            await asyncio.gather(*(self._client(client) for _ in range(self.clients)))

    async def _client(self, client: httpx.AsyncClient) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            await self._one(client, next(self._numbers))
            self.slowest = max(self.slowest, time.monotonic() - began)
            await asyncio.sleep(self.pause)

    async def _one(self, client: httpx.AsyncClient, number: int) -> None:
        model, prompt = self.models[number % len(self.models)], PROMPTS[number // 2 % len(PROMPTS)]
        body = {"model": model, "prompt": prompt, "max_tokens": self.tokens, "temperature": 0, "ignore_eos": True}
        body["stream"] = bool(number // len(self.models) % 2)
        try:
            text = await _answer(client, f"{self.url}/v1/completions", body)
        except (httpx.HTTPError, ValueError, KeyError) as error:
            self._count(f"{model}, stream={body['stream']}: {type(error).__name__}: {error}")
            return
        expected = self._expected.setdefault((model, prompt), text)
        self._count("" if text == expected else f"{model}: {text!r} instead of {expected!r}")

    def _count(self, failure: str) -> None:
        if not failure:
            self.answered += 1
            return
        self.failed += 1
        if len(self.failures) < SHOWN:
            self.failures.append(f"{time.monotonic() - self._began:.1f} s: {failure[:300]}")


async def _answer(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> str:
    """The whole text; ValueError where it is not whole."""
    if not body["stream"]:
        answer = await client.post(url, json=body)
        if answer.status_code != 200:
            raise ValueError(f"{answer.status_code} {answer.text}")
        return str(answer.json()["choices"][0]["text"])
    async with client.stream("POST", url, json=body) as answer:
        events = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line]
    if answer.status_code != 200 or not events or events[-1] != "[DONE]":
        raise ValueError(f"{answer.status_code} a stream that ends with {events[-1:]}")
    chunks = [json.loads(event) for event in events[:-1]]
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
