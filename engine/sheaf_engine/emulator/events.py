"""KV cache events over ZeroMQ, as vLLM 0.32 publishes them (``vllm/distributed/kv_events.py``).

A message has three frames: topic, sequence number (8 bytes, big endian), and a msgpack array
``[timestamp, [event, ...], data_parallel_rank]`` whose events are maps with a ``type``. A ROUTER socket replays what a
late subscriber missed: it asks with ``["", first sequence number]`` and gets ``["", topic, number, payload]`` for each
batch that is still kept, then ``["", "", -1, ""]``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import zmq
import zmq.asyncio
from pydantic import BaseModel, ConfigDict, Field

_END = (-1).to_bytes(8, "big", signed=True)


class EventsConfig(BaseModel):
    """``--kv-events-config``: vLLM's fields and defaults."""

    model_config = ConfigDict(extra="forbid")

    enable_kv_cache_events: bool = False
    publisher: Literal["null", "zmq"] | None = None
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    buffer_steps: int = Field(10_000, ge=1)
    hwm: int = Field(100_000, ge=0)
    max_queue_size: int = Field(100_000, ge=1)
    topic: str = ""

    @property
    def publishes(self) -> bool:
        """Whether events leave the process."""
        return self.enable_kv_cache_events and self.publisher != "null"

    def source(self) -> dict[str, Any]:
        """What ``/kv_event_sources`` tells."""
        return {**self.model_dump(), "publisher": self.publisher or "zmq"}


class BlockStored(msgspec.Struct, omit_defaults=True, tag=True):
    """A run of blocks entered the prefix cache."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[list[str] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class BlockRemoved(msgspec.Struct, omit_defaults=True, tag=True):
    """Blocks left the prefix cache."""

    block_hashes: list[int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, omit_defaults=True, tag=True):
    """The prefix cache is empty."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


class EventBatch(msgspec.Struct, array_like=True, omit_defaults=True):
    """What one step changed."""

    ts: float
    events: Sequence[Event]
    data_parallel_rank: int | None = None


class Publisher:
    """The PUB socket, the replay socket and the last batches.

    Raises:
        ValueError: when an endpoint cannot be bound.
    """

    def __init__(self, config: EventsConfig) -> None:
        self._config = config
        self._encoder = msgspec.msgpack.Encoder()
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=config.buffer_steps)
        self._number = 0
        self._context = zmq.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._pub.set_hwm(config.hwm)
        self._replay: zmq.asyncio.Socket | None = None
        try:
            self._open()
        except zmq.ZMQError as error:
            self.close()
            raise ValueError(f"cannot open the KV events endpoint {config.endpoint}: {error}") from error

    def publish(self, now: float, events: Sequence[Event]) -> None:
        """Send one batch; subscribers that cannot keep up lose it and see a gap in the numbers."""
        payload = self._encoder.encode(EventBatch(now, events, 0))
        number, self._number = self._number, self._number + 1
        self._kept.append((number, payload))
        self._pub.send_multipart((self._config.topic.encode(), number.to_bytes(8, "big"), payload))

    async def serve_replay(self) -> None:
        """Answer replay requests for ever; returns at once where no replay endpoint is configured."""
        while self._replay is not None:
            frames = await self._replay.recv_multipart()
            if len(frames) == 3:
                await self._resend(frames[0], int.from_bytes(frames[2], "big"))

    def close(self) -> None:
        """Close the sockets."""
        self._pub.close(linger=0)
        if self._replay is not None:
            self._replay.close(linger=0)
        self._context.term()

    def _open(self) -> None:
        endpoint = self._config.endpoint
        if "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc://", "inproc://")):
            self._pub.bind(endpoint)
        else:
            self._pub.connect(endpoint)
        if self._config.replay_endpoint is not None:
            self._replay = zmq.asyncio.Context.shadow(self._context.underlying).socket(zmq.ROUTER)
            self._replay.bind(self._config.replay_endpoint)

    async def _resend(self, client: bytes, first: int) -> None:
        assert self._replay is not None  # noqa: S101 - only called by serve_replay
        topic = self._config.topic.encode()
        for number, payload in tuple(self._kept):
            if number >= first:
                await self._replay.send_multipart((client, b"", topic, number.to_bytes(8, "big"), payload))
        await self._replay.send_multipart((client, b"", b"", _END, b""))
