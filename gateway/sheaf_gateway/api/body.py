"""Reading a request body once: only what deciding needs, in types, with bounds; everything else stays the
engine's business.

The body is forwarded byte for byte, so nothing here is written back. Of a repeated key the last counts, here
as in the engines. `prompt` is the canonical bytes of what the engine will render (see `routing.prefix`):
tools, then role and content by message.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec

from sheaf_gateway.api.errors import ApiError
from sheaf_gateway.routing.cost import tokens as estimated
from sheaf_gateway.routing.prefix import render

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ALL_SQUARE = bytes.maketrans(b"{}", b"[]")
_PATH = re.compile(r"^(.*?)(?: - at `\$\.?([^`]*)`)?$", re.DOTALL)
_TOKEN_FIELDS_MAX = 2**31 - 1


class Parsed(msgspec.Struct, frozen=True):
    """What deciding needs. `prompt` is empty where no prefix can be shared; `max_tokens` 0 means not given; `flex`
    says that the caller asked for `service_tier: flex`, which may wait for others."""

    model: str
    prompt: bytes
    max_tokens: int
    size: int
    flex: bool = False

    def prompt_tokens(self) -> float:
        """Tokens of the prompt, by its size."""
        return estimated(len(self.prompt) or self.size)

    def tokens(self) -> float:
        """Tokens that the request may cost, by its size and what it asks for."""
        return self.prompt_tokens() + self.max_tokens


class _Base(msgspec.Struct):
    model: str
    stream: bool | None = None
    n: int | None = None
    service_tier: Any = None

    def parts(self) -> list[bytes]:
        return []

    def tokens(self) -> int | None:
        return None


class _Message(msgspec.Struct):
    role: str
    content: Any = None
    tool_calls: Any = None


class _Chat(_Base):
    messages: list[_Message] = msgspec.field(default_factory=list)
    tools: msgspec.Raw = msgspec.Raw(b"")
    max_tokens: int | None = None
    max_completion_tokens: int | None = None

    def parts(self) -> list[bytes]:
        return _messages([bytes(self.tools)], self.messages)

    def tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class _Completion(_Base):
    prompt: Any = None
    max_tokens: int | None = None

    def parts(self) -> list[bytes]:
        return [_text(self.prompt)]

    def tokens(self) -> int | None:
        return self.max_tokens


class _Responses(_Base):
    input: Any = None
    instructions: str | None = None
    tools: msgspec.Raw = msgspec.Raw(b"")
    max_output_tokens: int | None = None

    def parts(self) -> list[bytes]:
        return [bytes(self.tools), _text(self.instructions), _text(self.input)]

    def tokens(self) -> int | None:
        return self.max_output_tokens


class _Messages(_Base):
    messages: list[_Message] = msgspec.field(default_factory=list)
    system: Any = None
    tools: msgspec.Raw = msgspec.Raw(b"")
    max_tokens: int | None = None

    def parts(self) -> list[bytes]:
        return _messages([bytes(self.tools), _text(self.system)], self.messages)

    def tokens(self) -> int | None:
        return self.max_tokens


class _Plain(_Base):
    """Endpoints whose prompts are not worth an index."""


Decode = Callable[[bytes], _Base]

CHAT: Decode = msgspec.json.Decoder(_Chat).decode
COMPLETION: Decode = msgspec.json.Decoder(_Completion).decode
RESPONSES: Decode = msgspec.json.Decoder(_Responses).decode
MESSAGES: Decode = msgspec.json.Decoder(_Messages).decode
PLAIN: Decode = msgspec.json.Decoder(_Plain).decode


def parse(raw: bytes, decode: Decode, max_depth: int) -> Parsed:
    """Read a body.

    Raises:
        ApiError: 400, naming what is wrong and where.
    """
    _check_text(raw)
    try:
        found = decode(raw)
    except RecursionError:
        raise _too_deep(max_depth) from None
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, "invalid_json", f"The request body is not valid JSON: {error}.") from None
    _check_depth(raw, max_depth)
    return Parsed(found.model, _rendered(found), _max_tokens(found), len(raw), found.service_tier == "flex")


def _rendered(found: _Base) -> bytes:
    return b"" if isinstance(found, _Plain) else render(found.parts())


def _max_tokens(found: _Base) -> int:
    tokens, copies = found.tokens(), found.n
    if tokens is not None and not 0 <= tokens <= _TOKEN_FIELDS_MAX:
        raise _wrong_type(f"Expected an integer from 0 to {_TOKEN_FIELDS_MAX} - at `$.max_tokens`")
    if copies is not None and not 1 <= copies <= _TOKEN_FIELDS_MAX:
        raise _wrong_type(f"Expected an integer from 1 to {_TOKEN_FIELDS_MAX} - at `$.n`")
    return (tokens or 0) * (copies or 1)


def _check_text(raw: bytes) -> None:
    if not raw:
        raise ApiError(400, "empty_body", "The request body is empty; send a JSON object.")
    if raw.isascii():
        return
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"The request body is not valid UTF-8 at byte {error.start}."
        raise ApiError(400, "invalid_utf8", message) from None


def _check_depth(raw: bytes, max_depth: int) -> None:
    """Where there are more opening brackets than levels allowed, take strings out and peel level by level."""
    if raw.count(b"[") + raw.count(b"{") <= max_depth:
        return
    brackets = _STRING.sub(b"", raw).translate(_ALL_SQUARE, _NOT_BRACKETS)
    for _ in range(max_depth):
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return
    raise _too_deep(max_depth)


def _too_deep(max_depth: int) -> ApiError:
    return ApiError(400, "body_too_deep", f"The request body nests deeper than {max_depth} levels.")


def _wrong_type(text: str) -> ApiError:
    match = _PATH.match(text)
    what, where = (match[1], match[2]) if match is not None else (text, None)
    missing = re.search(r"required field `([^`]+)`", what)
    param = ".".join(part for part in (where, missing[1] if missing else None) if part) or None
    place = f" at `{where}`" if where else ""
    code = "missing_required_parameter" if missing else "invalid_type"
    return ApiError(400, code, f"The request body is wrong{place}: {what}.", param=param)


def _messages(parts: list[bytes], messages: list[_Message]) -> list[bytes]:
    for message in messages:
        parts.append(message.role.encode())
        parts.append(_text(message.content))
        if message.tool_calls is not None:
            parts.append(_text(message.tool_calls))
    return parts


def _text(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    return b"" if value is None else msgspec.json.encode(value)
