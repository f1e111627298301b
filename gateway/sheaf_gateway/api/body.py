"""Reading a request body once: only what deciding needs, in types, with bounds; everything else stays the
engine's business.

The body is forwarded byte for byte, so nothing here is written back. Of a repeated key the last counts, here
as in the engines. `prompt` is what the engine will render: to the byte where the Model's form is known and covers
the request (see `routing.form`), else in canonical bytes (see `routing.prefix`): tools, then role and content by
message.

What reading costs goes by strings, objects and arrays rather than by bytes, and nobody else is served meanwhile, so
their number is bounded before anything is read. A body that is too small to hold so many is not looked at, and a long
one only where it has as many quotes or brackets, for a text may have them too.
"""

import re
from collections.abc import Callable
from itertools import islice
from typing import Any

import msgspec

from sheaf_gateway.api.errors import ApiError
from sheaf_gateway.routing.cost import tokens as estimated
from sheaf_gateway.routing.form import Form
from sheaf_gateway.routing.prefix import render

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_ITEM = re.compile(rb'[\[{]|"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_MAX_ITEMS = 131_072
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ALL_SQUARE = bytes.maketrans(b"{}", b"[]")
_PATH = re.compile(r"^(.*?)(?: - at `\$\.?([^`]*)`)?$", re.DOTALL)
_NO_TOOLS = frozenset({b"", b"[]", b"null"})
_FALSE = frozenset({"0", "off", "f", "false", "n", "no"})
_TOKEN_FIELDS_MAX = 2**31 - 1


class Parsed(msgspec.Struct, frozen=True):
    """What deciding needs. `prompt` is empty where no prefix can be shared; `max_tokens` 0 means not given; `flex`
    says that the caller asked for `service_tier: flex`, which may wait for others; `exact` that `prompt` is what the
    engine will compute, to the byte; `streams` that one choice is to be streamed; `ids` that the caller gets token
    ids; `previous` is the id of the response that it goes on from."""

    model: str
    prompt: bytes
    max_tokens: int
    size: int
    flex: bool = False
    exact: bool = False
    streams: bool = False
    ids: bool = False
    previous: str | None = None

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
    return_token_ids: Any = None

    @property
    def previous(self) -> str | None:
        """The response that it goes on from."""
        return None

    def parts(self) -> list[bytes]:
        return []

    def rendered(self, form: Form) -> bytes | None:  # noqa: ARG002 - the endpoints that render read it
        """What the engine renders, by the Model's form; None where that does not cover the request."""
        return None

    def tokens(self) -> int | None:
        return None


class _Message(msgspec.Struct):
    role: str
    content: Any = None
    tool_calls: Any = None
    name: Any = None
    reasoning: Any = None
    reasoning_content: Any = None


def _is_plain(message: _Message) -> bool:
    """Whether there is nothing in a message but its role and a text."""
    odd = message.tool_calls or message.name or message.reasoning or message.reasoning_content
    return isinstance(message.content, str) and not odd


class _Chat(_Base):
    messages: list[_Message] = msgspec.field(default_factory=list)
    tools: msgspec.Raw = msgspec.Raw(b"")
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    chat_template: Any = None
    chat_template_kwargs: Any = None
    add_generation_prompt: Any = None
    continue_final_message: Any = None
    add_special_tokens: Any = None
    documents: Any = None
    reasoning_effort: Any = None
    truncate_prompt_tokens: Any = None

    def rendered(self, form: Form) -> bytes | None:
        turns = [(message.role, message.content) for message in self.messages if _is_plain(message)]
        if len(turns) < len(self.messages) or bytes(self.tools) not in _NO_TOOLS or any(self._choices()):
            return None
        return form.chat(turns)

    def _choices(self) -> tuple[Any, ...]:
        """What makes an engine render otherwise; all None or false in a plain request."""
        return (
            self.chat_template,
            self.chat_template_kwargs,
            self.add_generation_prompt is False,
            self.continue_final_message,
            self.add_special_tokens,
            self.documents,
            self.reasoning_effort,
            self.truncate_prompt_tokens,
        )

    def parts(self) -> list[bytes]:
        return _messages([bytes(self.tools)], self.messages)

    def tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class _Completion(_Base):
    prompt: Any = None
    max_tokens: int | None = None
    add_special_tokens: Any = None
    truncate_prompt_tokens: Any = None

    def rendered(self, form: Form) -> bytes | None:
        plain = self.add_special_tokens is not False and not self.truncate_prompt_tokens
        return form.prompt(self.prompt) if plain and isinstance(self.prompt, str) else None

    def parts(self) -> list[bytes]:
        return [_text(self.prompt)]

    def tokens(self) -> int | None:
        return self.max_tokens


class _Responses(_Base):
    input: Any = None
    instructions: str | None = None
    tools: msgspec.Raw = msgspec.Raw(b"")
    max_output_tokens: int | None = None
    previous_response_id: str | None = None

    @property
    def previous(self) -> str | None:
        return self.previous_response_id

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


def _no_form(_name: str) -> None:
    return None


def parse(raw: bytes, decode: Decode, max_depth: int, form_of: Callable[[str], Form | None] = _no_form) -> Parsed:
    """Read a body; `form_of` has the form of the Model behind a served name, where it is known.

    Raises:
        ApiError: 400, naming what is wrong and where.
    """
    _check_text(raw)
    if len(raw) > 2 * _MAX_ITEMS:
        _check_items(raw)
    try:
        found = decode(raw)
    except RecursionError:
        raise _too_deep(max_depth) from None
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, "invalid_json", f"The request body is not valid JSON: {error}.") from None
    _check_depth(raw, max_depth)
    form = form_of(found.model)
    exact = None if form is None else found.rendered(form)
    prompt, flex = _rendered(found) if exact is None else exact, found.service_tier == "flex"
    streams = bool(found.stream) and (found.n or 1) == 1
    return Parsed(
        found.model,
        prompt,
        _max_tokens(found),
        len(raw),
        flex,
        exact is not None,
        streams,
        _is_true(found.return_token_ids),
        found.previous,
    )


def _is_true(value: Any) -> bool:
    """Whether an engine takes this for true, or refuses it."""
    return bool(value) and not (isinstance(value, str) and value.lower() in _FALSE)


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


def _check_items(raw: bytes) -> None:
    if raw.count(b'"') <= _MAX_ITEMS and not _opens_more(raw, _MAX_ITEMS // 2):
        return
    if sum(1 for _ in islice(_ITEM.finditer(raw), _MAX_ITEMS + 1)) > _MAX_ITEMS:
        message = f"The request body has more than {_MAX_ITEMS} strings, objects and arrays; send fewer of them."
        raise ApiError(400, "body_too_complex", message)


def _check_depth(raw: bytes, max_depth: int) -> None:
    """Where there are more opening brackets than levels allowed, take strings out and peel level by level."""
    if not _opens_more(raw, max_depth):
        return
    brackets = _STRING.sub(b"", raw).translate(_ALL_SQUARE, _NOT_BRACKETS)
    for _ in range(max_depth):
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return
    raise _too_deep(max_depth)


def _opens_more(raw: bytes, most: int) -> bool:
    """Whether there are more opening brackets than `most`; searched for one by one, which is quick where they are few,
    and a long text is not looked at byte by byte as counting would."""
    find = raw.find
    for bracket in (b"[", b"{"):
        place = find(bracket)
        while place >= 0:
            most -= 1
            if most < 0:
                return True
            place = find(bracket, place + 1)
    return False


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
        content = message.content
        parts.append(message.role.encode())
        parts.append(content.encode() if isinstance(content, str) else _text(content))
        if message.tool_calls is not None:
            parts.append(_text(message.tool_calls))
    return parts


def _text(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    return b"" if value is None else msgspec.json.encode(value)
