"""Prefix identity: which KV blocks two requests may share, decided on bytes without a tokeniser.

The identity of a prompt is (base model, adapter and its digest, tenant salt, rendered bytes with the tools
first). The rendered bytes are cut into blocks of `BLOCK` bytes, and each block's hash is seeded with the hash
before it, as vLLM chains the hashes of its KV blocks: equal hashes at position i mean equal bytes up to the
end of block i, under the same identity. A tail shorter than a block has no hash, for no engine reuses a part
of a block.
"""

import functools
from collections.abc import Iterable

import xxhash

BLOCK = 256
_START = b"\x1e"
_FIELD = b"\x1f"


@functools.lru_cache(maxsize=4096)
def seed(model: str, adapter: str | None, digest: str, salt: str) -> int:
    """The start of the chain: one number for each (model, adapter, digest, tenant salt)."""
    parts = (model, adapter or "", digest, salt)
    framed = b"".join(b"%d:%b" % (len(data), data) for data in (part.encode() for part in parts))
    return xxhash.xxh3_64_intdigest(framed)


def render(parts: Iterable[bytes]) -> bytes:
    """Canonical bytes of a prompt from its pieces (tools, then role and content of each message)."""
    return _START + _FIELD.join(parts)


def chain(start: int, rendered: bytes, block: int = BLOCK) -> list[int]:
    """Hashes of the whole blocks of `rendered`, each seeded with the one before."""
    hashes = []
    digest = xxhash.xxh3_64_intdigest
    for position in range(0, len(rendered) - block + 1, block):
        start = digest(rendered[position : position + block], start)
        hashes.append(start)
    return hashes
