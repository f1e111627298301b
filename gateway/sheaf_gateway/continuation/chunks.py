"""Reading and writing the events of chat and text completion streams, as vLLM writes them.

`masked` is on the path of every byte: token ids that only the gateway asked for become `null`, which is what an engine
writes where nobody asked. Only a key can match, for within a JSON string the quotes of `"token_ids":` are escaped.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

_IDS = re.compile(rb'token_ids":\s*\[[0-9,\s]*\]')
_NULL = b'token_ids":null'
_BEGIN = b'token_ids":['
_KEY = len(_BEGIN) - 1
_WHITE = b" \t\r\n"
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error"'


class Choice(msgspec.Struct, frozen=True):
    """A choice of a chunk: `delta` of a chat, `text` of a text completion."""

    index: int = 0
    delta: dict[str, Any] | None = None
    text: str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def shown(self) -> str:
        """The text of this chunk."""
        return (self.text if self.delta is None else self.delta.get("content")) or ""

    def odd(self) -> bool:
        """Whether there is anything in a delta but content and the role: something parsed the tokens."""
        return self.delta is not None and bool(self.delta.keys() - {"role", "content"} or "content" not in self.delta)


class Chunk(msgspec.Struct, frozen=True):
    """One event of a stream."""

    id: str = ""
    created: int = 0
    model: str = ""
    choices: list[Choice] = []
    usage: dict[str, Any] | None = None
    prompt_token_ids: list[int] | None = None
    error: Any = None


class _Words(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    content: str


class _Plain(msgspec.Struct, frozen=True):
    """A choice with nothing to it but text and tokens; whatever has more does not fit."""

    token_ids: list[int]
    delta: _Words | None = None
    text: str = ""
    index: Literal[0] = 0
    logprobs: None = None
    finish_reason: None = None

    def shown(self) -> str:
        """The text of this chunk."""
        return self.text if self.delta is None else self.delta.content


class PlainChunk(msgspec.Struct, frozen=True):
    """An event from the middle of a stream, where nothing but tokens comes."""

    choices: tuple[_Plain]
    usage: None = None
    error: None = None


_decode_plain = msgspec.json.Decoder(list[PlainChunk]).decode


def decode_middle(events: bytes) -> list[PlainChunk] | None:
    """Whole events at once, where each is a plain one; else None."""
    try:
        return _decode_plain(b"[%b]" % events[6:-2].replace(b"\n\ndata: ", b","))
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


decode_chunk = msgspec.json.Decoder(Chunk).decode
_encode = msgspec.json.Encoder().encode


def asking_for_ids(body: bytes) -> bytes:
    """A JSON object with `return_token_ids` as its last key, which therefore counts."""
    return with_last(body, b'"return_token_ids":true')


def with_last(body: bytes, field: bytes) -> bytes:
    """A JSON object with one more field as its last."""
    return b"%b,%b}" % (body.rstrip(_WHITE)[:-1], field)


def masked(data: bytes) -> bytes:
    """Events without their token ids; quick for a single one."""
    start = data.rfind(_BEGIN)
    if start < 0:
        return data
    if data.find(_BEGIN, 0, start) >= 0:
        return _IDS.sub(_NULL, data)
    end = data.find(b"]", start)
    return data[: start + _KEY] + b"null" + data[end + 1 :]


def event(chunk: Mapping[str, Any]) -> bytes:
    """One event."""
    return b"data: " + _encode(chunk) + b"\n\n"


def next_offset(logprobs: Mapping[str, Any] | None, before: int) -> int:
    """Where the text offsets of a text completion go on after these log probabilities."""
    tokens, offsets = (logprobs or {}).get("tokens"), (logprobs or {}).get("text_offset")
    return int(offsets[-1]) + len(tokens[-1]) if tokens and offsets else before
