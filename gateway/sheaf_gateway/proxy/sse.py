"""Cutting a stream of server-sent events (WHATWG HTML, 9.2) at event boundaries. Pure.

Nothing is rewritten: the events and what is pending, joined, are the bytes that were fed. Lines end with
LF, CR LF or CR; an event ends with an empty line.
"""

import re

_EVENT_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventTooLarge(ValueError):  # noqa: N818
    """An event is larger than the splitter holds."""


class SseSplitter:
    """Takes bytes as they come and gives whole events, each with the empty line that ends it.

    A read that is exactly one event is given back as the same object, with no copy.
    """

    __slots__ = ("_max_event", "_pending", "_scanned")

    def __init__(self, max_event: int = 1024 * 1024) -> None:
        self._max_event = max_event
        self._pending = b""
        self._scanned = 0

    @property
    def pending(self) -> bytes:
        """The bytes of the event that has not ended."""
        return self._pending

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that `data` completes, in order.

        Raises:
            EventTooLarge: An event is longer than `max_event` bytes.
        """
        buffer = self._pending + data if self._pending else data
        if b"\r" in buffer:
            events, start = self._split_any(buffer)
        else:
            events, start = self._split_lf(buffer)
        self._pending = buffer[start:] if start else buffer
        self._scanned = max(len(self._pending) - 3, 0)
        if len(self._pending) > self._max_event or any(len(event) > self._max_event for event in events):
            raise EventTooLarge(f"a server-sent event is larger than {self._max_event} bytes")
        return events

    def _split_lf(self, buffer: bytes) -> tuple[list[bytes], int]:
        events: list[bytes] = []
        start, end = 0, buffer.find(b"\n\n", self._scanned)
        while end >= 0:
            events.append(buffer[start : end + 2])
            start = end + 2
            end = buffer.find(b"\n\n", start)
        return events, start

    def _split_any(self, buffer: bytes) -> tuple[list[bytes], int]:
        events: list[bytes] = []
        start = 0
        for match in _EVENT_END.finditer(buffer, self._scanned):
            if match.end() == len(buffer) and buffer.endswith(b"\r"):
                break
            events.append(buffer[start : match.end()])
            start = match.end()
        return events, start


def event_data(event: bytes) -> bytes | None:
    """Return an event's data, its lines joined with LF, or None where it has no data field."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]
    lines = [_field(line) for line in _LINE_END.split(event) if line == b"data" or line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def _field(line: bytes) -> bytes:
    value = line[5:]
    return value[1:] if value.startswith(b" ") else value
