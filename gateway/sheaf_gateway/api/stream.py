"""Passing a stream of server-sent events on, whole events only, as they are and as soon as they are.

What an engine writes at once ends with an event nearly always, and then passes without a copy. A part of an
event is held until the rest comes, so that a stream that breaks off breaks between events and its last word,
an error event, can be read. What is no event of an engine (see `answers`) is not passed on, nor an event in which the
engine says that it failed, nor is an event waited for that comes byte by byte and does not end.
"""

from collections import deque

from sheaf_gateway.api.answers import fault, sound
from sheaf_gateway.continuation.chunks import ERROR, masked
from sheaf_gateway.continuation.journal import Journal
from sheaf_gateway.proxy.types import Responder

MAX_HELD = 2**20
_TAILS = 4
_FOR_EVER = float("inf")
_BEGIN = b"data: {"
_USUAL = b'data: {"id":'
_END = b"}\n\n"


def _is_plain(data: bytes) -> bool:
    return data.startswith(_BEGIN) and not data.startswith(ERROR)


class EventRelay:
    """Writes events to a client; counts them, and remembers the last writes for their usage numbers.

    With a journal, that gets them as they came; `masks` then takes the token ids out of what the client gets.
    """

    __slots__ = (
        "_held",
        "_journal",
        "_loose",
        "_masks",
        "_patience",
        "_responder",
        "_since",
        "_tail",
        "events",
        "wrong",
    )

    def __init__(
        self,
        responder: Responder,
        journal: Journal | None = None,
        *,
        masks: bool = False,
        patience_s: float = _FOR_EVER,
    ) -> None:
        self._responder = responder
        self._journal = journal
        self._masks = masks and journal is not None
        self._held = b""
        self._loose = False
        self._patience = patience_s
        self._since = 0.0
        self._tail: deque[bytes] = deque(maxlen=_TAILS)
        self.events = 0
        self.wrong = "bad_response"

    def feed(self, data: bytes, now: float = 0.0) -> bool:
        """Pass on what is whole; False: what came after that is no event, takes too long to become one, or says
        that the engine failed; `wrong` names which."""
        before = self._held
        if before:
            data = before + data
            self._held = b""
        if not data.endswith(b"\n\n"):
            data = self._whole(data)
            if not data:
                self._since = self._since if before else now
                return now - self._since <= self._patience
            self._since = now
        count = data.count(b"\n\n")
        if (count == 1 and data.endswith(_END) and (data.startswith(_USUAL) or _is_plain(data))) or self._loose:
            self._pass_on(data, count)
            return True
        good = self._good(data)
        if good:
            self._pass_on(data[:good], data.count(b"\n\n", 0, good))
        return good == len(data)

    def _good(self, data: bytes) -> int:
        """How many bytes of these whole events pass."""
        good, failed = sound(data), fault(data)
        if not 0 <= failed <= good:
            return good
        self.wrong = "engine_error"
        return failed

    def _pass_on(self, data: bytes, count: int) -> None:
        if self._journal is not None:
            self._journal.add(data)
            if self._masks:
                data = masked(data)
        self._responder.write(data)
        self.events += count or 1
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
        """The last writes, in which an engine reports usage, and what is held."""
        return b"".join((*self._tail, self._held))

    def _whole(self, data: bytes) -> bytes:
        end = max(data.rfind(b"\n\n") + 2, data.rfind(b"\r\n\r\n") + 4 if b"\r" in data else 0)
        end = end if end > 3 else 0
        if len(data) - end > MAX_HELD:
            self._loose = True
            return data
        self._held = data[end:]
        return data[:end]
