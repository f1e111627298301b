"""Clients of streams, and what they read: all that may not change when a stream's pod dies."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

Request = tuple[str, dict]


@dataclass
class Said:
    """What a client read of one stream; `tokens` where it asked for their ids."""

    text: str = ""
    finish: str | None = None
    usage: dict | None = None
    roles: int = 0
    ended: bool = False
    problem: str = ""
    ids: set[str] = field(default_factory=set)
    tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0
    silence: float = 0.0

    @property
    def whole(self) -> bool:
        return self.ended and not self.problem and self.finish is not None and len(self.ids) == 1

    def counts(self) -> tuple:
        """Everything but the id and what caches had."""
        usage = self.usage and (
            self.usage["prompt_tokens"],
            self.usage["completion_tokens"],
            self.usage["total_tokens"],
        )
        return self.text, self.finish, self.roles, usage, tuple(self.tokens)


def request(number: int, model: str, tokens: int) -> Request:
    """Every kind of stream in turn: chat and text, stop strings, with and without usage, with and without token ids."""
    prompt = f"Tell me about {number}: sheaf, stalk and band. é日"
    body: dict = {"model": model, "stream": True, "max_tokens": tokens, "temperature": 0, "ignore_eos": number % 3 > 0}
    if number % 2:
        body["stream_options"] = {"include_usage": True}
    if number % 4 == 0:
        body["stop"] = ["wind sea", "]["]
    if number % 7 == 3:
        body["return_token_ids"] = True
    if number % 5 == 4:
        return TEXT, body | {"prompt": prompt}
    return CHAT, body | {"messages": [{"role": "user", "content": prompt}]}


@asynccontextmanager
async def client(seconds: float) -> AsyncIterator[aiohttp.ClientSession]:
    """A session for any number of streams, each of at most so many seconds."""
    timeout = aiohttp.ClientTimeout(total=seconds)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


async def stream(session: aiohttp.ClientSession, url: str, path: str, body: dict) -> Said:
    """Ask for a stream and read it to its end, however it ends."""
    said, started, data = Said(), time.monotonic(), bytearray()
    try:
        async with session.post(f"{url}{path}", json=body) as response:
            if response.status != 200:
                said.problem = f"{response.status} {await response.text()}"
                said.ids.add(response.headers.get("x-request-id", ""))
                return said
            at = time.monotonic()
            async for piece in response.content.iter_any():
                data += piece
                said.silence, at = max(said.silence, time.monotonic() - at), time.monotonic()
    except (aiohttp.ClientError, TimeoutError) as error:
        said.problem = repr(error)
    said.seconds = time.monotonic() - started
    for event in data.decode(errors="replace").split("\n\n")[:-1]:
        take(said, event.removeprefix("data: "))
    return said


def take(said: Said, data: str) -> None:
    """One event."""
    if data == "[DONE]":
        said.ended = True
        return
    chunk = json.loads(data)
    if "error" in chunk:
        said.problem = data
        return
    said.ids.add(chunk["id"])
    said.usage = chunk.get("usage") or said.usage
    for choice in chunk["choices"]:
        delta = choice.get("delta") or {"content": choice.get("text")}
        said.roles += "role" in delta
        said.text += delta.get("content") or ""
        said.tokens += choice.get("token_ids") or ()
        said.finish = choice["finish_reason"] or said.finish


async def many(url: str, requests: Iterable[Request], at_once: int, seconds: float = 900) -> list[Said]:
    """What they said, in order."""
    gate = asyncio.Semaphore(at_once)
    async with client(seconds) as session:

        async def one(path: str, body: dict) -> Said:
            async with gate:
                return await stream(session, url, path, body)

        return list(await asyncio.gather(*(one(path, body) for path, body in requests)))
