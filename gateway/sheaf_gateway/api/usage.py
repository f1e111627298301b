"""Token counts in the end of an answer, found without parsing it: engines put `usage` last.

Only a key can match: within a JSON string the quotes of `"usage":` would be escaped.
"""

import re

import msgspec

_COUNT = re.compile(rb'"(prompt|input|completion|output|cached|cache_read_input)_tokens":\s*(\d{1,12})')
_PROMPT = frozenset({b"prompt", b"input"})
_CACHED = frozenset({b"cached", b"cache_read_input"})
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
    prompt = output = cached = None
    for name, count in reversed(_COUNT.findall(tail, start)):
        if name in _CACHED:
            cached = int(count)
        elif name in _PROMPT:
            prompt = int(count)
        else:
            output = int(count)
    return Usage(prompt, output, cached)
