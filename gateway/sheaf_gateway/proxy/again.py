"""Reading whole answers of one engine connection: a head that comes again is not taken apart again. Pure.

An engine's heads differ in the digits of Content-Length and, once a second, in the date. Where an answer arrives in one
read and its head has the bytes of one that llhttp took apart before, whatever stands for those digits, llhttp would
take it apart alike: the digits touch nothing else. It is taken only where the read is that head and exactly so many
bytes; all else goes to llhttp, as strictly as ever. Only the last head is remembered, and only for its own connection.
"""

import re

import msgspec

from sheaf_gateway.proxy.types import Header

_LENGTH = re.compile(rb"\r\ncontent-length:[\t ]*+([0-9]{1,15}+)\r\n", re.IGNORECASE)
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_BODILESS = frozenset({204, 304})
_MOST_DIGITS = 15
_MOST_KEPT = 4_096


class AnswerHead(msgspec.Struct):
    """The head of an answer that came whole: `headers` as in `exchange.Sink.on_head`, without Content-Length, which the
    body tells. `lines` is the sink's own, to keep what it makes of them while the same head comes again."""

    status: int
    headers: list[Header]
    lines: bytes = b""


class AnswerReader:
    """Reads one whole answer after the other."""

    __slots__ = ("_after", "_before", "_head")

    _head: AnswerHead

    def __init__(self) -> None:
        self._before = self._after = b""

    def read(self, data: bytes) -> tuple[AnswerHead, bytes] | None:
        """The head and the body where `data` is one whole answer with the head of before; else None."""
        before, after = self._before, self._after
        if not before or not data.startswith(before):
            return None
        start = len(before)
        end = data.find(b"\r", start, start + _MOST_DIGITS + 1)
        if end < 0 or not data.startswith(after, end):
            return None
        digits, body = data[start:end], data[end + len(after) :]
        if not digits.isdigit() or int(digits) != len(body):
            return None
        return self._head, body

    def remember(self, data: bytes, status: int, headers: list[Header]) -> AnswerHead:
        """Keep the head of an answer that llhttp read whole from `data`, if its connection is kept after it."""
        head = AnswerHead(status, [header for header in headers if header[0] != b"content-length"])
        self._before = b""
        end = data.find(b"\r\n\r\n") + 4
        found = _LENGTH.search(data, 0, min(end, _MOST_KEPT))
        framing = [header for header in headers if header[0] in _FRAMING]
        if found is None or framing != [(b"content-length", found[1])] or status in _BODILESS:
            return head
        if data.startswith(b"HTTP/1.1 %d " % status) and len(data) == end + int(found[1]) and end <= _MOST_KEPT:
            self._before, self._after, self._head = data[: found.start(1)], data[found.end(1) : end], head
        return head
