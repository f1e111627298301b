"""One request to an engine and what comes back of it: the values and callbacks that the pool works with."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self
from urllib.parse import urlsplit

import msgspec
import structlog

from sheaf_gateway.proxy import metrics
from sheaf_gateway.proxy.again import AnswerHead
from sheaf_gateway.proxy.errors import BadResponse, UpstreamError
from sheaf_gateway.proxy.types import Header

if TYPE_CHECKING:
    from sheaf_gateway.proxy.upstream_connection import UpstreamConnection

log = structlog.get_logger(__name__)


class Endpoint(msgspec.Struct, frozen=True, cache_hash=True):
    """Where an engine listens: a TCP host and port, or a Unix socket at `uds`; with TLS or without."""

    host: str = "localhost"
    port: int = 80
    uds: str | None = None
    tls: bool = False

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read `http://host:port`, `https://host:port` or `unix:/path/to.sock`.

        Raises:
            ValueError: It is none of these, or has more than these.
        """
        if url.startswith("unix:/"):
            return cls(uds=url.removeprefix("unix:"))
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query:
            raise ValueError(f"{url!r} is not http://HOST:PORT, https://HOST:PORT or unix:/PATH")
        if parts.path not in {"", "/"}:
            raise ValueError(f"{url!r} has a path; give only the scheme, host and port")
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls=tls)

    @property
    def authority(self) -> bytes:
        """The value of the Host header."""
        host = self._bracketed().encode("ascii" if self.host.isascii() else "idna")
        return host if self.uds else b"%b:%d" % (host, self.port)

    def __str__(self) -> str:
        scheme = "https" if self.tls else "http"
        return f"unix:{self.uds}" if self.uds else f"{scheme}://{self._bracketed()}:{self.port}"

    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long an engine may take, in seconds: to accept, to send the first byte of a body, and between body bytes."""

    connect_s: float = 2.0
    first_byte_s: float = 600.0
    idle_s: float = 120.0


class Sink(Protocol):
    """Who receives a response. After `on_end` or `on_error`, of which one comes once, nothing comes.

    After `Exchange.cancel` nothing comes either. The methods must not raise.
    """

    def on_head(self, status: int, headers: list[Header]) -> None:
        """Take the final status and the headers, names lower-case, hop-by-hop ones included."""
        ...

    def on_body(self, data: bytes) -> None:
        """Take body bytes, at least one; chunked coding is already removed."""
        ...

    def on_end(self) -> None:
        """Learn that the body is complete."""
        ...

    def on_error(self, error: UpstreamError) -> None:
        """Learn that there is no complete response, and whether the request may go elsewhere."""
        ...


class WholeSink(Sink, Protocol):
    """A sink that takes a response that arrived in one read in one call, instead of head, body and end."""

    def on_whole(self, head: AnswerHead, body: bytes) -> None:
        """Take a complete response; nothing more comes."""
        ...


class _Silent:
    """The sink of an exchange that is over."""

    def on_head(self, status: int, headers: list[Header]) -> None: ...

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_error(self, error: UpstreamError) -> None: ...


_SILENT = _Silent()


class Exchange:
    """The caller's handle on a request in flight."""

    __slots__ = (
        "bodiless",
        "body",
        "connection",
        "done",
        "endpoint",
        "head",
        "paused",
        "retried",
        "sink",
        "stop_dialling",
        "takes_whole",
        "timeouts",
    )

    def __init__(
        self, endpoint: Endpoint, head: bytes, body: bytes, sink: Sink, timeouts: Timeouts, *, bodiless: bool
    ) -> None:
        self.endpoint = endpoint
        self.head = head
        self.body = body
        self.sink = sink
        self.timeouts = timeouts
        self.bodiless = bodiless
        self.takes_whole = not bodiless and hasattr(sink, "on_whole")
        self.connection: UpstreamConnection | None = None
        self.stop_dialling: Callable[[], object] | None = None
        self.done = False
        self.paused = False
        self.retried = False

    def cancel(self) -> None:
        """Stop at once and close the connection, so that the engine stops working on it."""
        if self.done:
            return
        self.finish()
        if self.connection is not None:
            self.connection.drop()
        elif self.stop_dialling is not None:
            self.stop_dialling()

    def pause(self) -> None:
        """Stop reading: whoever the response is for does not keep up."""
        self.paused = True
        if self.connection is not None and not self.done:
            self.connection.pause()

    def resume(self) -> None:
        """Read on."""
        self.paused = False
        if self.connection is not None and not self.done:
            self.connection.resume()

    def fail(self, error: UpstreamError) -> None:
        """Tell the sink that there will be no complete response."""
        if self.done:
            return
        metrics.UPSTREAM_ERRORS.labels(error.kind).inc()
        sink = self.finish()
        try:
            sink.on_error(error)
        except Exception as fault:  # noqa: BLE001 - see `collapse`
            self._log(fault)

    def collapse(self, sink: Sink, fault: Exception) -> None:
        """A sink raised, which it must not: end its request, and nothing else."""
        self._log(fault)
        self.finish()
        self.connection = None
        with contextlib.suppress(Exception):
            sink.on_error(BadResponse(f"{self.endpoint} sent what failed here", retry_safe=False, delivered=True))

    def _log(self, fault: Exception) -> None:
        metrics.APP_FAILURES.inc()
        log.error("sink_failed", endpoint=str(self.endpoint), exc_info=fault)

    def finish(self) -> Sink:
        """End it and let go of the sink, which holds whoever holds this; return the sink for its last word."""
        sink = self.sink
        self.done = True
        self.sink = _SILENT
        self.head = self.body = b""
        return sink
