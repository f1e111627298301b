"""Token counts of an answer: of a whole one by the decoder that says whether it is a JSON object at all, of a stream in
its last bytes, found without parsing them: engines put `usage` last.

Only a key can match there: within a JSON string the quotes of `"usage":` would be escaped.
"""

import re
from typing import Annotated

import msgspec

from sheaf_gateway.admission.ending import NOTHING, Usage
from sheaf_gateway.api.answers import is_object

_COUNT = re.compile(rb'"(prompt|input|completion|output|cached|cache_read_input)_tokens":\s*(\d{1,12})')
_PROMPT = frozenset({b"prompt", b"input"})
_CACHED = frozenset({b"cached", b"cache_read_input"})
_USAGE = b'"usage":'


_Count = Annotated[int, msgspec.Meta(ge=0, lt=10**12)] | None


class _Details(msgspec.Struct):
    cached_tokens: _Count = None


class _OpenAi(msgspec.Struct):
    prompt_tokens: _Count = None
    completion_tokens: _Count = None
    prompt_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    usage: _OpenAi | None = None


_answer = msgspec.json.Decoder(_Answer).decode


def reported(body: bytes) -> Usage | None:
    """What a whole answer reports; None where it is no JSON object."""
    try:
        usage = _answer(body).usage
        body.isascii() or body.decode()
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return find_usage(body) if is_object(body) else None
    if usage is None or usage.prompt_tokens is None:
        return find_usage(body)
    details = usage.prompt_tokens_details
    return Usage(usage.prompt_tokens, usage.completion_tokens, None if details is None else details.cached_tokens)


def find_usage(tail: bytes) -> Usage:
    """The last usage object in the end of an answer or stream."""
    start = tail.rfind(_USAGE)
    if start < 0:
        return NOTHING
    prompt = output = cached = None
    for name, count in reversed(_COUNT.findall(tail, start)):
        if name in _CACHED:
            cached = int(count)
        elif name in _PROMPT:
            prompt = int(count)
        else:
            output = int(count)
    return Usage(prompt, output, cached)
