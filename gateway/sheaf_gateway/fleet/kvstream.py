"""The batches of KV events that one engine publishes over ZeroMQ, in order and without gaps where that can be had.

vLLM numbers its batches from 0 in each life. What came before the subscription, or was missed, is asked of the engine's
replay socket: `["", first number]` is answered by `["", topic, number, payload]` for each batch that is still kept, and
a last one without payload. Every wait and every queue is bounded.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import zmq
import zmq.asyncio

MAX_MESSAGE = 64 * 2**20
MAX_REPLAYED = 100_000
_MAX_WAITING = 10_000
_REPLAY_S = 5.0

Numbered = tuple[int, bytes]


async def batches(context: zmq.asyncio.Context, events: str, replay: str) -> AsyncGenerator[bytes | None, None]:
    """Payloads from the engine's first batch on; None where some before the next one cannot be had any more.

    Raises:
        zmq.ZMQError: An address cannot be used.
        ValueError: A message is none of vLLM's.
    """
    with _socket(context, zmq.SUB, events) as socket:
        socket.subscribe(b"")
        expected = 0
        async with aclosing(_after(context, replay, 0)) as kept:
            async for number, payload in kept:
                if number > expected:
                    yield None
                yield payload
                expected = number + 1
        while True:
            number, payload = _numbered(await socket.recv_multipart())
            if number > expected:
                async with aclosing(_after(context, replay, expected)) as kept:
                    async for missed, found in kept:
                        if missed > expected:
                            yield None
                        yield found
                        expected = missed + 1
            if number > expected:
                yield None
            if number >= expected:
                yield payload
                expected = number + 1


async def _after(context: zmq.asyncio.Context, replay: str, first: int) -> AsyncGenerator[Numbered, None]:
    """The batches from that number on that the engine still keeps; none where it does not answer."""
    if not replay:
        return
    with _socket(context, zmq.DEALER, replay) as socket:
        try:
            async with asyncio.timeout(_REPLAY_S):
                await socket.send_multipart([b"", first.to_bytes(8, "big")])
            for _ in range(MAX_REPLAYED):
                async with asyncio.timeout(_REPLAY_S):
                    frames = await socket.recv_multipart()
                if not frames[-1]:
                    return
                number, payload = _numbered(frames[1:])
                if number >= first:
                    yield number, payload
        except TimeoutError:
            return


def _socket(context: zmq.asyncio.Context, kind: int, address: str) -> zmq.asyncio.Socket:
    socket: zmq.asyncio.Socket = context.socket(kind)
    socket.set_hwm(_MAX_WAITING)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IPV6, 1)
    try:
        socket.connect(address)
    except zmq.ZMQError:
        socket.close()
        raise
    return socket


def _numbered(frames: list[bytes]) -> Numbered:
    if len(frames) != 3 or len(frames[1]) != 8:
        raise ValueError("a message is not one of topic, number and events")
    return int.from_bytes(frames[1], "big"), frames[2]
