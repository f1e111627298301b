"""Passing a stream of server-sent events on, whole events only, as they are and as soon as they are.

What an engine writes at once ends with an event nearly always, and then passes without a copy. A part of an
event is held until the rest comes, so that a stream that breaks off breaks between events and its last word,
an error event, can be read.
"""

from collections import deque

from sheaf_gateway.continuation.chunks import masked
from sheaf_gateway.continuation.journal import Journal
from sheaf_gateway.proxy.types import Responder

MAX_HELD = 2**20
_TAILS = 4


class EventRelay:
    """Writes events to a client; counts them, and remembers the last writes for their usage numbers.

    With a journal, that gets them as they came; `masks` then takes the token ids out of what the client gets.
    """

    __slots__ = ("_held", "_journal", "_masks", "_responder", "_tail", "events")

    def __init__(self, responder: Responder, journal: Journal | None = None, *, masks: bool = False) -> None:
        self._responder = responder
        self._journal = journal
        self._masks = masks and journal is not None
        self._held = b""
        self._tail: deque[bytes] = deque(maxlen=_TAILS)
        self.events = 0

    def feed(self, data: bytes) -> None:
        """Pass on what is whole."""
        if self._held:
            data = self._held + data
            self._held = b""
        if not data.endswith(b"\n\n"):
            data = self._whole(data)
            if not data:
                return
        if self._journal is not None:
            self._journal.add(data)
            if self._masks:
                data = masked(data)
        self._responder.write(data)
        self.events += data.count(b"\n\n") or 1
        self._tail.append(data)

    def finish(self) -> None:
        """The stream ended well: pass on what is left."""
        if self._held:
            self._responder.write(self._held)
            self._held = b""

    def forget(self) -> None:
        """Drop the part of an event that an engine did not finish."""
        self._held = b""

    def tail(self) -> bytes:
        """The last writes, in which an engine reports usage."""
        return b"".join(self._tail)

    def _whole(self, data: bytes) -> bytes:
        end = max(data.rfind(b"\n\n") + 2, data.rfind(b"\r\n\r\n") + 4 if b"\r" in data else 0)
        end = end if end > 3 else 0
        if len(data) - end > MAX_HELD:
            return data
        self._held = data[end:]
        return data[:end]
