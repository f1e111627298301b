"""As much of HTTP as the emulator needs, straight on ASGI: reading a body, answering, noticing that the client left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from sheaf_engine.emulator.errors import ApiError, PlainError, bad_body, bad_json, bad_parameter

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
MAX_BODY = 64 * 1024 * 1024
JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"

BodyType = TypeVar("BodyType", bound=BaseModel)
Result = TypeVar("Result")


class ClientGoneError(Exception):
    """The client closed the connection."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    body: bytes = b""
    status: int = 200
    media_type: bytes | None = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Exchange:
    """One request and the way to answer it."""

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._receive = receive
        self._send = send
        self.started = False

    def header(self, name: bytes) -> str | None:
        """A request header by its lower-case name."""
        return next((value.decode("latin-1") for key, value in self._headers if key == name), None)

    async def read(self, kind: type[BodyType]) -> BodyType:
        """The body as `kind`.

        Raises:
            ApiError: 400 or 413 for a body that is not one.
        """
        value = parse_json(self.header(b"content-type"), await self._read_body())
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            raise refusal(error) from error

    async def reply(self, reply: Reply) -> None:
        """Answer at once."""
        headers = [(b"content-length", b"%d" % len(reply.body)), *reply.headers]
        if reply.media_type is not None:
            headers.append((b"content-type", reply.media_type))
        self.started = True
        await self._send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": reply.body})

    async def open_stream(self) -> None:
        """Begin a stream of server-sent events."""
        self.started = True
        headers = [(b"content-type", EVENT_STREAM)]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send the next part of a stream."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def while_connected(self, work: Awaitable[Result]) -> Result:
        """Await `work`, cancelled when the client leaves.

        Raises:
            ClientGoneError: when it left.
        """
        task = asyncio.ensure_future(work)
        watch = asyncio.create_task(self._gone())
        try:
            await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGoneError
            return task.result()
        finally:
            await _cancel(task)
            await _cancel(watch)

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _read_body(self) -> bytes:
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            body += message.get("body", b"")
            if len(body) > MAX_BODY:
                raise PlainError(413)
            if not message.get("more_body"):
                return bytes(body)


def parse_json(content_type: str | None, body: bytes) -> Any:
    """A JSON body as FastAPI and vLLM take it.

    Raises:
        ApiError: 400 with vLLM's words.
    """
    if (content_type or "").split(";")[0].strip().lower() != "application/json":
        message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise ApiError(400, message, "Bad Request")
    if not body:
        raise bad_body([{"type": "missing", "loc": (), "msg": "Field required", "input": None}])
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return _parse_slowly(body)


def refusal(error: ValidationError) -> ApiError:
    """The answer to a body of the wrong shape."""
    errors = error.errors(include_url=False)
    for each in errors:
        if each["type"] == "refused":
            return bad_parameter(each["ctx"]["param"], each["ctx"]["message"])
    return bad_body(errors)


def _parse_slowly(body: bytes) -> Any:
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        raise bad_json(error.pos, error.msg) from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise PlainError(400, "There was an error parsing the body") from error


async def _cancel(task: asyncio.Future[Any]) -> None:
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
