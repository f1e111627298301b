"""What the proxy hands to an application and what it takes back.

An application is called once per request, after the whole body was read. It either returns an awaitable,
which the server runs as a task and cancels when the client goes away, or answers through the responder's
callbacks and returns None: that saves the task on the hot path, and the request is then over when the
response is. Header names are lower-case bytes everywhere; times are seconds of the event loop's clock.
"""

# ruff: noqa: A005, N818

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

Header = tuple[bytes, bytes]
Headers = Sequence[Header]
ErrorBody = Callable[[int, str, str], bytes]


class Known(msgspec.Struct):
    """Room for what an application works out of a request's head, whatever its Content-Length: it comes again with each
    request of the same connection that has the same head but for that."""

    value: object = None


class Request(msgspec.Struct, frozen=True):
    """A whole request: strictly framed, body read, nothing decoded.

    `path` and `query` are the two sides of the first `?` of the target, still percent-encoded; `client` is
    `host:port` of the peer or `unix`; `received_at` is the loop time of the first byte, in seconds.
    """

    method: str
    target: str
    path: str
    query: str
    headers: tuple[Header, ...]
    body: bytes
    client: str
    received_at: float
    known: Known = msgspec.field(default_factory=Known)

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header by its lower-case name, or None."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class Disconnected(Protocol):
    """Whether the client has gone away before its response was complete."""

    def is_set(self) -> bool:
        """Say whether it has."""
        ...

    async def wait(self) -> None:
        """Return once it has."""
        ...

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Call back once when it does; at once if it already has; never after a complete response.

        An abort calls back too: whatever works for the response may stop.
        """
        ...


class Responder(Protocol):
    """The one response to one request. Framing, keep-alive and hop-by-hop headers are the server's."""

    @property
    def started(self) -> bool:
        """Whether a status has been sent, after which it cannot be changed."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the response is over: complete, aborted, or its client gone."""
        ...

    @property
    def disconnected(self) -> Disconnected:
        """The client's going away."""
        ...

    @property
    def writable(self) -> bool:
        """Whether the client keeps up; False asks the caller to stop writing until told otherwise."""
        ...

    def on_pressure(self, callback: Callable[[bool], None]) -> None:
        """Call back with True when the client stops keeping up and with False when it has caught up.

        There is one such callback; it is called at once where the client does not keep up already.
        """
        ...

    def start(self, status: int, headers: Headers, *, length: int | None) -> None:
        """Send the head; `length` is the body's size in bytes, None for a stream of unknown length.

        Raises:
            RuntimeError: The response was already started.
            ValueError: A header holds a line break or another control byte.
        """
        ...

    def write(self, data: bytes) -> None:
        """Send body bytes; ignored once the client is gone.

        Raises:
            RuntimeError: Not started, already ended, or more bytes than the declared length; the
                connection is then aborted.
        """
        ...

    async def drain(self) -> None:
        """Wait until the client keeps up.

        Raises:
            ClientGone: The client went away.
        """
        ...

    def end(self) -> None:
        """Complete the body; a body shorter than its declared length aborts the connection instead."""
        ...

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole response at once."""
        ...

    def reply_joined(self, status: int, lines: bytes, body: bytes) -> None:
        """Send a whole response at once, with headers that `response.joined` made lines of."""
        ...

    def abort(self) -> None:
        """Break the connection so that the client sees a broken response, never a silently short one."""
        ...


App = Callable[[Request, Responder], Awaitable[None] | None]


class ClientGone(ConnectionError):
    """The client went away before its response was complete."""
