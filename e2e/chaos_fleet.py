"""A gateway process over engines and agents that misbehave on command: raw sockets in the test's own event loop.

A healthy engine's answer is a function of the request, so that a client can tell a right answer from a wrong one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from running_sheaf import await_health, free_port, stop

CHAT = "/v1/chat/completions"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
TOKEN = "chaos-token"
WORDS = 6

Document = dict[str, Any]


@dataclass
class Asked:
    """One request as an engine or agent read it."""

    path: str
    document: Document


Script = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


def said(document: Document) -> list[str]:
    """The words that every healthy engine answers with."""
    digest = hashlib.sha256(document["messages"][-1]["content"].encode()).hexdigest()
    return [f"{digest[4 * n : 4 * n + 4]} é日 " for n in range(WORDS)]


def response(body: bytes, status: int = 200, kind: str = "application/json", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {size}\r\n\r\n".encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(document: Document) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"


def whole(document: Document) -> bytes:
    message = {"role": "assistant", "content": "".join(said(document))}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": WORDS, "total_tokens": 9 + WORDS}
    told = {"id": "c", "object": "chat.completion", "model": document["model"], "choices": [choice], "usage": usage}
    return json.dumps(told).encode()


def events(document: Document) -> list[bytes]:
    frame = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": document["model"]}
    deltas = [{"index": 0, "delta": {"content": word}, "finish_reason": None} for word in said(document)]
    deltas.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    return [*(event({**frame, "choices": [delta]}) for delta in deltas), b"data: [DONE]\n\n"]


def events_with_tokens(document: Document) -> list[bytes]:
    """The beginning of a stream that can be continued elsewhere."""
    frame = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": document["model"]}
    role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    words = [
        {"index": 0, "delta": {"content": word}, "token_ids": [7], "finish_reason": None} for word in said(document)
    ]
    return [event({**frame, "prompt_token_ids": [1, 2], "choices": [choice]}) for choice in (role, *words)]


async def healthy(asked: Asked, writer: asyncio.StreamWriter) -> None:
    if not asked.document.get("stream"):
        writer.write(response(whole(asked.document)))
        return
    writer.write(STREAM_HEAD)
    for data in events(asked.document):
        writer.write(chunk(data))
        await asyncio.sleep(0)
    writer.write(LAST)


@dataclass
class RawServer:
    """One listening port; `script` is what it does with each request."""

    script: Script = healthy
    port: int = 0
    asked: list[float] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def open(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024)
        self.port = self.server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None
        for task in tuple(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            while not writer.is_closing() and (asked := await self._read(reader)) is not None:
                self.asked.append(time.monotonic())
                await self.script(asked, writer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.tasks.discard(task)
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader) -> Asked | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:
            return None
        size = next((int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:")), 0)
        body = await reader.readexactly(size)
        return Asked(head.split(" ")[1], json.loads(body) if body else {})


@dataclass
class Fleet:
    """Engines by Model, agents by pod name, and the gateway over them."""

    folder: Path
    engines: dict[str, list[RawServer]]
    agents: dict[str, RawServer]
    facts: dict[str, Document]
    url: str = ""
    port: int = 0
    process: subprocess.Popen[str] | None = None
    version: int = 0

    def write(self) -> None:
        """Tell the gateway of the fleet."""
        self.version += 1
        spec = {"source": "hf://org/base", "engine": {"name": "emulator"}}
        models = [
            {"apiVersion": "sheaf.dev/v1alpha1", "kind": "Model", "metadata": {"name": name}, "spec": spec}
            for name in self.engines
        ]
        pods = [
            {"name": name, "uid": "u", "model": model, "engineUrl": engine.url, "ready": True, **self._agent(name)}
            for model, engines in self.engines.items()
            for place, engine in enumerate(engines)
            for name in [f"{model}-{place}"]
        ]
        draft = self.folder / "fleet.tmp"
        draft.write_text(json.dumps({"version": self.version, "models": models, "pods": pods}))
        draft.replace(self.folder / "fleet.json")

    def _agent(self, pod: str) -> Document:
        agent = self.agents.get(pod)
        return {**({"agentUrl": agent.url} if agent else {}), **self.facts.get(pod, {})}

    def asked(self, model: str) -> int:
        """Requests that reached a Model's engines."""
        return sum(len(engine.asked) for engine in self.engines[model])

    async def metrics(self, session: aiohttp.ClientSession) -> dict[str, float]:
        async with session.get(f"{self.url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        found: dict[str, float] = {}
        for line in lines:
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        return found

    def log(self) -> str:
        return (self.folder / "gateway.log").read_text(errors="replace")


@asynccontextmanager
async def chaos_fleet(
    folder: Path,
    models: dict[str, int],
    agents: dict[str, Script] | None = None,
    facts: dict[str, Document] | None = None,
    **config: Any,
) -> AsyncIterator[Fleet]:
    """`models` counts pods by Model; `agents` has scripts and `facts` further fields of pods by name."""
    async with AsyncExitStack() as stack:
        engines = {name: [RawServer() for _ in range(count)] for name, count in models.items()}
        beside = {pod: RawServer(script) for pod, script in (agents or {}).items()}
        for server in (*beside.values(), *(server for found in engines.values() for server in found)):
            await server.open()
            stack.push_async_callback(server.close)
        fleet = Fleet(folder, engines, beside, facts or {})
        fleet.write()
        (folder / "token").write_text(TOKEN)
        fleet.port = free_port()
        fleet.url = f"http://127.0.0.1:{fleet.port}"
        files = {"fleetFile": str(folder / "fleet.json"), "agentTokenFile": str(folder / "token")}
        settings = {"listen": f"127.0.0.1:{fleet.port}", "accessLog": False, **files, **config}
        (folder / "gateway.json").write_text(json.dumps(settings))
        command = [sys.executable, "-m", "sheaf_gateway", "--config", str(folder / "gateway.json")]
        fleet.process = started(command, folder / "gateway.log")
        stack.callback(stop, fleet.process)
        await asyncio.to_thread(await_health, f"{fleet.url}/readyz", fleet.process, folder / "gateway.log", 60)
        yield fleet
        assert fleet.process.poll() is None, f"the gateway is gone\n{fleet.log()[-2000:]}"


def started(command: list[str], path: Path) -> subprocess.Popen[str]:
    with path.open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, text=True, env={**os.environ})


@dataclass
class Outcome:
    """What a client got: `kind` is right, error (before or within the answer), or wrong; `took` is in seconds."""

    kind: str
    took: float
    status: int = 0
    detail: str = ""
    pod: str = ""


def question(model: str, text: str, *, stream: bool) -> Document:
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": text}]}


async def ask(session: aiohttp.ClientSession, fleet: Fleet, document: Document, bound: float) -> Outcome:
    """One request; what comes after `bound` seconds, or never, is wrong."""
    began = time.monotonic()
    status, pod, raw, broke = 0, "", b"", ""
    try:
        async with asyncio.timeout(bound), session.post(fleet.url + CHAT, json=document) as answer:
            status, pod = answer.status, answer.headers.get("x-sheaf-pod", "")
            async for piece in answer.content.iter_any():
                raw += piece
    except TimeoutError:
        broke = f"nothing more within {bound:g} s"
    except aiohttp.ClientError as error:
        broke = f"broken off: {error!r}"
    kind, detail = judged(document, status, raw, broke)
    return Outcome(kind, time.monotonic() - began, status, detail, pod)


def judged(document: Document, status: int, raw: bytes, broke: str) -> tuple[str, str]:
    if broke.startswith("nothing"):
        return "wrong", f"{broke} after {raw[-100:]!r}"
    try:
        if status != 200:
            return ("wrong", broke) if broke else ("error", error_code(json.loads(raw)))
        return judged_stream(document, raw, broke) if document["stream"] else judged_whole(document, raw, broke)
    except (AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        return "wrong", f"{error!r} in {raw[-200:]!r} {broke}"


def judged_whole(document: Document, raw: bytes, broke: str) -> tuple[str, str]:
    text = json.loads(raw)["choices"][0]["message"]["content"]
    right = text == "".join(said(document)) and not broke
    return ("right", "") if right else ("wrong", f"{text!r} {broke}")


def judged_stream(document: Document, raw: bytes, broke: str) -> tuple[str, str]:
    """Right: every word and the end. Error: whole events of a beginning, then one error event."""
    parts = raw.decode().split("\n\n")
    assert parts.pop() == "", raw[-100:]
    text = ""
    for place, part in enumerate(parts):
        data = part.removeprefix("data: ")
        last = place == len(parts) - 1
        if data == "[DONE]":
            right = last and not broke and text == "".join(said(document))
            return ("right", "") if right else ("wrong", f"{text!r} {broke}")
        found = json.loads(data)
        if "error" in found:
            begun = "".join(said(document)).startswith(text)
            return ("error", error_code(found)) if last and begun else ("wrong", f"{text!r} before an error")
        text += found["choices"][0]["delta"].get("content", "")
    return "wrong", f"no end after {text!r} {broke}"


def error_code(document: Document) -> str:
    """The code of an error of OpenAI's shape."""
    error = document["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert error["message"]
    assert error["type"]
    return str(error["code"])


@contextlib.asynccontextmanager
async def clients(limit: int = 0) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=limit)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        yield session
