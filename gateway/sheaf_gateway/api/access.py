"""The access log: one JSON line for each request, as structlog would render it, written once for each turn of the loop.

Rendering through the logging library and one write a line cost more than routing. Lines of one turn share the time of
the first. What the log's reader does not take is lost and counted: a full disk must not stop requests.
"""

import asyncio
import time
from collections.abc import Callable

import msgspec

MOST = 1024


class Line(msgspec.Struct, gc=False):
    """One answered request; times are milliseconds."""

    request_id: str
    path: str
    status: int
    code: str | None
    served: str | None = None
    tenant: str | None = None
    key: str | None = None
    pod: str | None = None
    attempts: int = 0
    ttft_ms: float | None = None
    total_ms: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    event: str = "request"
    level: str = "info"
    timestamp: str = ""


_encode = msgspec.json.Encoder().encode_lines


class AccessLog:
    """Gathers lines and writes them; `lost` counts those that could not be written."""

    def __init__(self, loop: asyncio.AbstractEventLoop, write: Callable[[bytes], object]) -> None:
        self._loop = loop
        self._write = write
        self._lines: list[Line] = []
        self._timestamp = self._date = ""
        self._second = 0
        self.lost = 0

    def add(self, line: Line) -> None:
        """Write this line at the end of the turn; at once where there are many."""
        if not self._lines:
            self._timestamp = self._now()
            self._loop.call_soon(self.flush)
        line.timestamp = self._timestamp
        self._lines.append(line)
        if len(self._lines) >= MOST:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            self._write(_encode(lines))
        except (OSError, ValueError):
            self.lost += len(lines)

    def _now(self) -> str:
        """The time in UTC to the microsecond (ISO 8601); the date and its second are written once a second."""
        second, rest = divmod(time.time_ns() // 1000, 1_000_000)
        if second != self._second:
            self._second, self._date = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._date}.{rest:06d}Z"
