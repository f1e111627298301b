"""A publisher of KV events as vLLM has it: numbered batches on a PUB socket, and a ROUTER that replays what is kept."""

import asyncio
from collections import deque
from contextlib import suppress
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

END = (-1).to_bytes(8, "big", signed=True)


class Publisher:
    """Publishes at `ipc://` addresses in a folder; `kept` is how many batches it can replay."""

    def __init__(self, folder: Path, name: str = "kv", kept: int = 100) -> None:
        self.events = f"ipc://{folder}/{name}.events"
        self.replay = f"ipc://{folder}/{name}.replay"
        self.number = 0
        self.lose = False
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=kept)
        self._context = zmq.asyncio.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._pub.bind(self.events)
        self._router = self._context.socket(zmq.ROUTER)
        self._router.bind(self.replay)
        self._serving = asyncio.create_task(self._serve())

    async def publish(self, *events: dict) -> None:
        """Send one batch, or lose it on the way."""
        await self.send(msgspec.msgpack.encode([0.0, list(events), 0]))

    async def send(self, payload: bytes) -> None:
        number, self.number = self.number, self.number + 1
        self._kept.append((number, payload))
        if not self.lose:
            await self._pub.send_multipart([b"kv", number.to_bytes(8, "big"), payload])

    async def close(self) -> None:
        self._serving.cancel()
        with suppress(asyncio.CancelledError):
            await self._serving
        self._context.destroy(linger=0)

    async def _serve(self) -> None:
        while True:
            client, _, first = await self._router.recv_multipart()
            for number, payload in tuple(self._kept):
                if number >= int.from_bytes(first, "big"):
                    await self._router.send_multipart([client, b"", b"kv", number.to_bytes(8, "big"), payload])
            await self._router.send_multipart([client, b"", b"", END, b""])


def stored(name: int, token: int, parent: int | None = None, *, adapter: str | None = None, salt: str = "") -> dict:
    """A block of four tokens, 64 bytes each (see `VOCABULARY`)."""
    keys = [key for key in (adapter, salt) if key]
    return {"type": "BlockStored", "block_hashes": [name], "parent_block_hash": parent, "token_ids": [token] * 4,
            "block_size": 4, "lora_id": None, "medium": "GPU", "lora_name": adapter,
            "extra_keys": [keys or None], "group_idx": 0, "kv_cache_spec_kind": "full_attention"}  # fmt: skip


WORDS = [bytes([65 + token]) * 64 for token in range(26)]


def text(*tokens: int) -> str:
    """The text of blocks of these tokens."""
    return b"".join(WORDS[token] * 4 for token in tokens).decode()
