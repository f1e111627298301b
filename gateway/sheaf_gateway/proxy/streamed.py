"""An engine's response as an async context manager, for callers off the hot path."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from sheaf_gateway.proxy.errors import BadResponse, UpstreamError
from sheaf_gateway.proxy.exchange import Exchange
from sheaf_gateway.proxy.types import Header

_HIGH_WATER = 65_536


class ResponseStream:
    """The sink and the reader of one response.

    Entering waits for the head; leaving before the end cancels the exchange. At most one read and 64 KiB
    are held; beyond that the engine is asked to wait.
    """

    exchange: Exchange

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[Header] = []
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._error: UpstreamError | None = None
        self._news = asyncio.Event()

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header by its lower-case name, or None."""
        return next((value for key, value in self.headers if key == name), None)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives.

        Raises:
            UpstreamError: The response broke off.
        """
        while await self._more():
            data = self._pieces.popleft()
            self._size -= len(data)
            if self._size < _HIGH_WATER and self.exchange.paused:
                self.exchange.resume()
            yield data

    async def read(self, limit: int = 16 * 1024 * 1024) -> bytes:
        """Return the whole body of at most `limit` bytes.

        Raises:
            UpstreamError: The response broke off, or its body is larger.
        """
        body = bytearray()
        async for data in self.chunks():
            body += data
            if len(body) > limit:
                raise BadResponse(f"the body is larger than {limit} bytes", retry_safe=False, delivered=True)
        return bytes(body)

    async def __aenter__(self) -> Self:
        try:
            while not self.status and self._error is None:
                await self._wait()
        except asyncio.CancelledError:
            self.exchange.cancel()
            raise
        if not self.status and self._error is not None:
            raise self._error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.exchange.cancel()

    def on_head(self, status: int, headers: list[Header]) -> None:
        """See `exchange.Sink`."""
        self.status, self.headers = status, headers
        self._news.set()

    def on_body(self, data: bytes) -> None:
        """See `exchange.Sink`."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= _HIGH_WATER:
            self.exchange.pause()
        self._news.set()

    def on_end(self) -> None:
        """See `exchange.Sink`."""
        self._ended = True
        self._news.set()

    def on_error(self, error: UpstreamError) -> None:
        """See `exchange.Sink`."""
        self._error = error
        self._news.set()

    async def _more(self) -> bool:
        while not self._pieces and not self._ended:
            if self._error is not None:
                raise self._error
            await self._wait()
        return bool(self._pieces)

    async def _wait(self) -> None:
        self._news.clear()
        await self._news.wait()
