"""The engines of the benchmark: nginx answers whole replies, this script streams. `python stub.py PORT PACE_MS`.

Every stream gets the same chunk each `PACE_MS` milliseconds, all in one tick: an engine's decode step. A late tick is
not made up for, for chunks in a burst cost less. Each begins with the clock (monotonic, ns) at which it was written.
What a client sends is read only to tell where a request ends and what it asks for. Routers also ask engines for their
metrics, for their model, and (vllm-router) for a prompt's tokens: they get what a vLLM would say.
"""

import asyncio
import json
import re
import sys
import time

import uvloop

_SAID = (
    '{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant",'
    '"content":"%s"},"finish_reason":"stop"}],"usage":{"prompt_tokens":500,"completion_tokens":64,"total_tokens":564}}'
)
REPLIES = tuple((_SAID % ("y" * size)).encode() for size in (520, 547, 575, 604))
REPLY = REPLIES[1]
METRICS = "vllm:num_requests_running 1.0\nvllm:num_requests_waiting 0.0\nvllm:kv_cache_usage_perc 0.5\n"
_TOKENS = list(range(100, 600))
_INFO = {"model_path": "m", "served_model_name": "m", "status": "ready"}
ASIDE: dict[str, object] = {
    "/health": {},
    "/v1/models": {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "vllm"}]},
    **{f"/{get}{what}_info": _INFO for get in ("", "get_") for what in ("server", "model")},
    "/v1/chat/completions/render": {"request_id": "x", "model": "m", "token_ids": _TOKENS},
    "/tokenize": {"count": len(_TOKENS), "max_model_len": 32_768, "tokens": _TOKENS},
}
_TIMED = b'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m",'
_TIMED += b'"choices":[{"index":0,"delta":{"content":"'
_TIMED += b"%020d" + b"t" * 80 + b'"}}]}\n\n'
CHUNK = _TIMED % 0
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
_CHAT = _PLAIN % (b"application/json", len(REPLY), REPLY)
_FRAMED = b"%x\r\n%b\r\n" % (len(CHUNK), _TIMED)
CLOCK = re.compile(rb'"content":"(\d{20})t')
_STREAMED = re.compile(rb'"stream": ?true')
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
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        path = request.split(b" ", 2)[1].decode()
        if path == "/metrics":
            self.transport.write(_PLAIN % (b"text/plain", len(METRICS), METRICS.encode()))
        elif path in ASIDE:
            said = json.dumps(ASIDE[path]).encode()
            self.transport.write(_PLAIN % (b"application/json", len(said), said))
        elif _STREAMED.search(request):
            self.transport.write(_HEAD)
            streams.add(self.transport)
        else:
            self.transport.write(_CHAT)

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
