"""Reading request bodies piece by piece: pure, bounded, exact about where a body ends.

Both readers take bytes as they come and give back what follows the body, so that the next pipelined
request begins at the right byte. Chunked coding is RFC 9112 section 7.1 without what peers disagree on:
no space around a size, extensions skipped and bounded, no trailers.
"""

import re

from sheaf_gateway.proxy.errors import Refusal
from sheaf_gateway.proxy.framing import body_too_large
from sheaf_gateway.proxy.limits import ServerLimits

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8}+)(?:;[\t\x20-\x7e\x80-\xff]*+)?\r\n")
_LINE_OVERHEAD = 11
_SIZE, _DATA, _END, _LAST, _DONE = range(5)


class LengthBody:
    """A body of a known length in bytes."""

    __slots__ = ("_data", "_missing")

    def __init__(self, length: int) -> None:
        self._data = bytearray()
        self._missing = length

    @property
    def received(self) -> int:
        """The number of body bytes read so far."""
        return len(self._data)

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; return what follows the body once it is whole, else None."""
        if len(data) < self._missing:
            self._data += data
            self._missing -= len(data)
            return None
        end, self._missing = self._missing, 0
        self._data += data[:end]
        return data[end:]

    def take(self) -> bytes:
        """Return the whole body."""
        return bytes(self._data)


class ChunkedBody:
    """A body in chunked coding."""

    __slots__ = ("_data", "_held", "_limits", "_missing", "_state")

    def __init__(self, limits: ServerLimits) -> None:
        self._data = bytearray()
        self._held = b""
        self._limits = limits
        self._missing = 0
        self._state = _SIZE

    @property
    def received(self) -> int:
        """The number of body bytes read so far."""
        return len(self._data)

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; return what follows the body once it is whole, else None.

        Raises:
            Refusal: 400 for a malformed chunk or a trailer, 413 for a body beyond `max_body`.
        """
        data, self._held = self._held + data, b""
        position: int | None = 0
        while position is not None and self._state != _DONE:
            position = self._step(data, position)
        return None if position is None else data[position:]

    def take(self) -> bytes:
        """Return the whole body."""
        return bytes(self._data)

    def _step(self, data: bytes, position: int) -> int | None:
        if self._state == _SIZE:
            return self._read_size(data, position)
        if self._state == _DATA:
            return self._read_data(data, position)
        return self._read_end(data, position)

    def _read_size(self, data: bytes, position: int) -> int | None:
        bound = position + self._limits.max_chunk_extension + _LINE_OVERHEAD
        end = data.find(b"\n", position, bound)
        if end < 0:
            self._hold(data, position, bound)
            return None
        match = _CHUNK_LINE.fullmatch(data, position, end + 1)
        if match is None:
            raise _malformed("begins with its size in hexadecimal digits and CR LF")
        self._missing = int(match[1], 16)
        if len(self._data) + self._missing > self._limits.max_body:
            raise body_too_large(self._limits)
        self._state = _DATA if self._missing else _LAST
        return end + 1

    def _read_data(self, data: bytes, position: int) -> int | None:
        piece = data[position : position + self._missing]
        self._data += piece
        self._missing -= len(piece)
        if self._missing:
            return None
        self._state = _END
        return position + len(piece)

    def _read_end(self, data: bytes, position: int) -> int | None:
        found = data[position : position + 2]
        if not b"\r\n".startswith(found):
            raise _malformed("ends with CR LF" if self._state == _END else "of size 0 ends the body: no trailers")
        if len(found) < 2:
            self._held = found
            return None
        self._state = _SIZE if self._state == _END else _DONE
        return position + 2

    def _hold(self, data: bytes, position: int, bound: int) -> None:
        if len(data) >= bound:
            raise _malformed(f"has at most {self._limits.max_chunk_extension} bytes of extensions")
        self._held = data[position:]


def _malformed(rule: str) -> Refusal:
    return Refusal(400, f"The chunked request body is malformed: a chunk {rule}.", "invalid_chunk")
