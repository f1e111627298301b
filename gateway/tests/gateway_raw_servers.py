"""Raw engines and agents on loopback, which say exactly what a test wants them to say."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

TOKEN = "agent-token"
DIGEST = "a" * 64


@dataclass
class Seen:
    """One request as a raw server read it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


Script = Callable[[Seen, asyncio.StreamWriter], Awaitable[None]]


def response(status: int, body: bytes, kind: str = "application/json", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(document: dict) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class RawServer:
    """An HTTP/1.1 server in a few lines, which does what its script says with each request."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.gone = asyncio.Event()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server = None
        await asyncio.sleep(0)

    async def answer(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        try:
            while (seen := await self._read(reader)) is not None:
                self.seen.append(seen)
                watch = asyncio.create_task(self._watch(reader))
                work = asyncio.create_task(self.answer(seen, writer))
                try:
                    await asyncio.wait({watch, work}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    early = not work.done()
                    for task in (watch, work):
                        task.cancel()
                    await asyncio.gather(watch, work, return_exceptions=True)
                if early:
                    self.gone.set()
                    return
                work.result()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(asyncio.current_task())
            writer.transport.abort()

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        """Return when the peer has closed, without taking a byte of what it may send next."""
        while not reader.at_eof() and reader.exception() is None:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    async def _read(self, reader: asyncio.StreamReader) -> Seen | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except asyncio.IncompleteReadError:
            return None
        method, path, _ = head[0].split(" ")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Seen(method, path, headers, body)


class Engine(RawServer):
    """An engine that knows one Model and whatever adapters are loaded into it."""

    def __init__(self, name: str, model: str) -> None:
        super().__init__()
        self.name = name
        self.model = model
        self.loaded: set[str] = set()
        self.tokens = 3
        self.pause = 0.0
        self.script: Script | None = None

    async def answer(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if self.script is not None:
            await self.script(seen, writer)
            return
        served = seen.json.get("model")
        if served != self.model and served not in self.loaded:
            writer.write(
                response(404, json.dumps({"error": {"message": f"The model `{served}` does not exist."}}).encode())
            )
        elif seen.json.get("stream"):
            await self.stream(seen, writer)
        else:
            await asyncio.sleep(self.pause)
            writer.write(response(200, json.dumps(self.document(seen, served)).encode()))
        await writer.drain()

    def document(self, seen: Seen, served: str) -> dict:
        usage = {"prompt_tokens": 7, "total_tokens": 10, "completion_tokens": 3}
        text = f"{served} on {self.name}"
        if seen.path == "/v1/embeddings":
            data = [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}]
            return {"object": "list", "data": data, "model": served, "usage": {"prompt_tokens": 2, "total_tokens": 2}}
        if seen.path == "/v1/completions":
            choices = [{"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}]
            return {
                "id": "c",
                "object": "text_completion",
                "created": 1,
                "model": served,
                "choices": choices,
                "usage": usage,
            }
        if seen.path == "/v1/messages":
            content = [{"type": "text", "text": text}]
            counted = {"input_tokens": 7, "output_tokens": 3}
            return {"id": "m", "type": "message", "role": "assistant", "model": served, "content": content,
                    "stop_reason": "end_turn", "stop_sequence": None, "usage": counted}  # fmt: skip
        if seen.path == "/v1/responses":
            output = [{"type": "message", "id": "o", "role": "assistant", "status": "completed",
                       "content": [{"type": "output_text", "text": text, "annotations": []}]}]  # fmt: skip
            return {"id": "r", "object": "response", "created_at": 1, "model": served, "output": output,
                    "parallel_tool_calls": False, "tool_choice": "auto", "tools": []}  # fmt: skip
        if seen.path == "/tokenize":
            return {"count": 2, "tokens": [1, 2]}
        message = {"role": "assistant", "content": text}
        choices = [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}]
        return {
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": served,
            "choices": choices,
            "usage": usage,
        }

    async def stream(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for data in stream_events(seen, self.tokens, self.name):
            writer.write(chunk(data))
            await writer.drain()
            await asyncio.sleep(self.pause)
        writer.write(b"0\r\n\r\n")


def stream_events(seen: Seen, tokens: int, name: str = "") -> list[bytes]:
    """What an engine streams for a request, event by event."""
    served = seen.json["model"]
    events = [_delta(seen.path, served, f"{name} t{place} ") for place in range(tokens)]
    usage = {"prompt_tokens": 7, "total_tokens": 7 + tokens, "completion_tokens": tokens}
    if seen.json.get("stream_options", {}).get("include_usage"):
        events.append(event({**_frame(seen.path, served), "choices": [], "usage": usage}))
    return [*events, b"data: [DONE]\n\n"]


def _frame(path: str, served: str) -> dict:
    kind = "text_completion" if path == "/v1/completions" else "chat.completion.chunk"
    return {"id": "c", "object": kind, "created": 1, "model": served}


def _delta(path: str, served: str, text: str) -> bytes:
    if path == "/v1/completions":
        choice = {"index": 0, "text": text, "finish_reason": None, "logprobs": None}
    else:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return event({**_frame(path, served), "choices": [choice]})


class Agent(RawServer):
    """An agent that tells what its engine has loaded, and loads what it is asked for."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.version = 1
        self.epoch = 1
        self.load = {"running": 0, "waiting": 0, "kvUsage": 0.0}
        self.draining = False
        self.deadline = 0.0
        self.continues = False
        self.engine_phase = "Ready"
        self.refusal: tuple[int, dict] | None = None
        self.load_time = 0.0
        self.silent: set[str] = set()
        self._news = asyncio.Event()

    def changed(self) -> None:
        self.version += 1
        self._news.set()
        self._news = asyncio.Event()

    def state(self) -> dict:
        known = sorted(self.engine.loaded - self.silent)
        adapters = [{"name": name, "state": "Resident", "digest": f"sha256:{DIGEST}"} for name in known]
        return {"version": self.version, "model": self.engine.model, "engine": self.engine_phase, "engineEpoch": self.epoch,
                "maxModelLen": 2048, "draining": self.draining, "drainDeadline": self.deadline, "continues": self.continues, "load": self.load, "adapters": adapters}  # fmt: skip

    async def answer(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if seen.headers.get("authorization") != f"Bearer {TOKEN}":
            writer.write(response(401, b'{"error":{"code":"Unauthorized","message":"no"}}'))
        elif seen.path.startswith("/v1/state"):
            await self._tell(seen, writer)
        else:
            await self._load(seen.path.split("/")[3], writer)
        await writer.drain()

    async def _tell(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        after = seen.path.partition("after=")[2].partition("&")[0]
        if after and int(after) >= self.version:
            await self._news.wait()
        writer.write(response(200, json.dumps(self.state()).encode()))

    async def _load(self, name: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self.load_time)
        if self.refusal is not None:
            writer.write(response(self.refusal[0], json.dumps(self.refusal[1]).encode()))
            return
        self.engine.loaded.add(name)
        self.changed()
        body = {"name": name, "state": "Resident", "digest": f"sha256:{DIGEST}"}
        writer.write(response(200, json.dumps(body).encode()))
