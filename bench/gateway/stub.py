"""The engines of the benchmark: nginx answers whole replies, this script streams. `python stub.py PORT PACE_MS`.

Every stream gets the same chunk each `PACE_MS` milliseconds, all in one tick: an engine's decode step. A late tick is
not made up for, for chunks in a burst cost less. Each begins with the clock (monotonic, ns) at which it was written.
What a client sends is read only to tell where a request ends.
"""

import asyncio
import re
import sys
import time

import uvloop

REPLY = (
    b'{"id":"x","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"'
)
REPLY += b"y" * 560 + b'"},"finish_reason":"stop"}],"usage":{"prompt_tokens":500,"completion_tokens":64}}'
_TIMED = b'data: {"id":"x","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":"'
_TIMED += b"%020d" + b"t" * 80 + b'"}}]}\n\n'
CHUNK = _TIMED % 0
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(REPLY), REPLY)
_FRAMED = b"%x\r\n%b\r\n" % (len(CHUNK), _TIMED)
CLOCK = re.compile(rb'"content":"(\d{20})t')
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)

streams: set[asyncio.Transport] = set()


class Engine(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        """Answer each whole request: a stream where it asks for one."""
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            match = _LENGTH.search(self.buffer, 0, end)
            size = end + 4 + (int(match[1]) if match else 0)
            if len(self.buffer) < size:
                return
            request, self.buffer = self.buffer[:size], self.buffer[size:]
            streamed = b'"stream":true' in request
            self.transport.write(_HEAD if streamed else _PLAIN)
            if streamed:
                streams.add(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """End the stream."""
        streams.discard(self.transport)


async def main() -> None:
    """Serve until killed."""
    port, pace = int(sys.argv[1]), float(sys.argv[2]) / 1000.0
    loop = asyncio.get_running_loop()
    await loop.create_server(Engine, "127.0.0.1", port)
    due = loop.time()
    while True:
        due = max(due + pace, loop.time())
        await asyncio.sleep(max(0.0, due - loop.time()))
        framed = _FRAMED % time.monotonic_ns()
        for transport in tuple(streams):
            transport.write(framed)


if __name__ == "__main__":
    uvloop.run(main())
