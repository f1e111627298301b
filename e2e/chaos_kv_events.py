"""Engines that announce KV blocks as they please: publishers of vLLM's KV events that lie, by a seeded draw."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from contextlib import suppress
from random import Random
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from chaos_fleet import Asked, response

WORDS = [bytes([65 + token]) * 64 for token in range(26)]
BLOCK_TOKENS = 4
NONSENSE = [
    b"",
    b"\xc1",
    b"\x90",
    b"{}",
    b"\x93\xcb\x00",
    b"\x91" * 5000,
    msgspec.msgpack.encode(["x", 5, None]),
    b"\xdd\xff\xff\xff\xff",
]


def text(tokens: list[int]) -> str:
    """The text of one block for each token."""
    return b"".join(WORDS[token] * BLOCK_TOKENS for token in tokens).decode()


class Liar:
    """An agent that has a vocabulary, and its engine's publisher; one that `garbles` is no publisher at times."""

    def __init__(self, context: zmq.asyncio.Context, seed: int, *, garbles: bool) -> None:
        self.draw = Random(seed)
        self.garbles = garbles
        self.number = 0
        self.version = 0
        self.published = 0
        self._pub = context.socket(zmq.PUB)
        self._replay = context.socket(zmq.ROUTER)
        self.events = f"tcp://127.0.0.1:{self._pub.bind_to_random_port('tcp://127.0.0.1')}"
        self.replays = f"tcp://127.0.0.1:{self._replay.bind_to_random_port('tcp://127.0.0.1')}"
        self._known: list[int] = []

    async def agent(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        """Tell a vocabulary, and a new epoch now and then."""
        if asked.path.startswith("/v1/vocabulary"):
            packed = b64encode(b"".join(len(word).to_bytes(2, "big") + word for word in WORDS)).decode()
            rendering = {"begins": {"user": ""}, "ends": {"user": ""}, "text": ""}
            told: dict[str, Any] = {"digest": "v1", "tokens": packed, "rendering": rendering}
        else:
            await asyncio.sleep(0.05 if "after" in asked.path else 0)
            self.version += 1
            load = {"running": self.draw.randrange(4), "waiting": self.draw.randrange(2), "kvUsage": self.draw.random()}
            epoch = 1 + self.version // 100
            told = {"version": self.version, "engine": "Ready", "engineEpoch": epoch, "vocabulary": "v1", "load": load}
        writer.write(response(json.dumps(told).encode()))

    async def lie(self) -> None:
        """Publish for ever."""
        while True:
            gap = self.draw.random() < 0.05
            self.number += 1 + 3 * gap
            head = [b"kv", self.number.to_bytes(8, "big")]
            if self.garbles and self.draw.random() < 0.02:
                head = self.draw.choice([[b""], [b"kv", b"x"], [b"kv", b"", b""]])
            await self._pub.send_multipart([*head, self._batch()])
            self.published += 1
            await asyncio.sleep(0.02)

    async def replay(self) -> None:
        """Answer who asks for what was missed with more lies."""
        with suppress(zmq.ZMQError):
            while True:
                client, *_ = await self._replay.recv_multipart()
                for number in range(self.draw.randrange(4)):
                    await self._replay.send_multipart([client, b"", b"kv", number.to_bytes(8, "big"), self._batch()])
                await self._replay.send_multipart([client, b"", b"", b"\xff" * 8, b""])

    def _batch(self) -> bytes:
        if self.garbles and self.draw.random() < 0.03:
            return self.draw.choice(NONSENSE)
        return msgspec.msgpack.encode([0.0, [self._event() for _ in range(self.draw.randrange(1, 20))], 0])

    def _event(self) -> dict[str, Any]:
        kind = self.draw.random()
        if kind < 0.002:
            return {"type": "AllBlocksCleared"}
        if kind < 0.3:
            gone = [self.draw.choice([*self._known[-50:], self.draw.randrange(1000)]) for _ in range(3)]
            return {"type": "BlockRemoved", "block_hashes": gone}
        names = [self.draw.randrange(400) for _ in range(self.draw.randrange(1, 5))]
        self._known = (self._known + names)[-500:]
        tokens = [self.draw.randrange(30) if self.draw.random() < 0.1 else 1] * BLOCK_TOKENS * len(names)
        parent = self.draw.choice([None, None, self.draw.choice(names), self.draw.choice(self._known)])
        return {
            "type": "BlockStored", "block_hashes": names, "parent_block_hash": parent, "token_ids": tokens,
            "block_size": self.draw.choice([BLOCK_TOKENS, BLOCK_TOKENS, 1, 0, 2**40]), "lora_id": None, "medium": "GPU",
            "lora_name": None, "extra_keys": None, "group_idx": 0, "kv_cache_spec_kind": "full_attention",
        }  # fmt: skip
