"""Token counts in the end of an answer, found without parsing it: engines put `usage` last.

Only a key can match: within a JSON string the quotes of `"usage":` would be escaped.
"""

import re

import msgspec

_PROMPT = re.compile(rb'"(?:prompt|input)_tokens":\s*(\d{1,12})')
_OUTPUT = re.compile(rb'"(?:completion|output)_tokens":\s*(\d{1,12})')
_CACHED = re.compile(rb'"(?:cached_tokens|cache_read_input_tokens)":\s*(\d{1,12})')
_USAGE = b'"usage":'


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the engine counted them; None where it did not say."""

    prompt: int | None = None
    output: int | None = None
    cached: int | None = None

    def total(self) -> int | None:
        """Prompt and output tokens together."""
        if self.prompt is None and self.output is None:
            return None
        return (self.prompt or 0) + (self.output or 0)


NOTHING = Usage()


def find_usage(tail: bytes) -> Usage:
    """The last usage object in the end of an answer or stream."""
    start = tail.rfind(_USAGE)
    if start < 0:
        return NOTHING
    return Usage(_number(_PROMPT, tail, start), _number(_OUTPUT, tail, start), _number(_CACHED, tail, start))


def _number(pattern: re.Pattern[bytes], data: bytes, start: int) -> int | None:
    match = pattern.search(data, start)
    return int(match[1]) if match is not None else None
