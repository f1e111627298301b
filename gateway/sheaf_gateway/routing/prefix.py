"""Prefix identity: which KV blocks two requests may share, decided on bytes without a tokeniser.

The identity of a prompt is (base model, adapter and its digest, tenant salt, rendered bytes with the tools
first). The rendered bytes are cut into blocks of `BLOCK` bytes, and each block's hash is seeded with the hash
before it, as vLLM chains the hashes of its KV blocks: equal hashes at position i mean equal bytes up to the
end of block i, under the same identity. A tail shorter than a block has no hash, for no engine reuses a part
of a block.
"""

import functools
from collections import OrderedDict
from collections.abc import Container, Iterable, Sequence

import xxhash

BLOCK = 256
RUN = 16
_RUN_BYTES = RUN * BLOCK
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
    hashes: list[int] = []
    _extend(hashes, start, rendered, 0, block)
    return hashes


class Chains:
    """Chains of prompts, of which many begin as others did: a run of `RUN` blocks that was hashed block by block before
    is found again by one hash of the whole run, seeded with the hash before it. That is as sure as the chain itself.

    At most `most` runs are remembered, the oldest leave first.
    """

    def __init__(self, most: int = 4_096) -> None:
        self._most = most
        self._runs: OrderedDict[int, list[int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._runs)

    def chain(self, start: int, rendered: bytes) -> list[int]:
        """What `chain` says."""
        hashes: list[int] = []
        whole = len(rendered) // _RUN_BYTES * _RUN_BYTES
        for position in range(0, whole, _RUN_BYTES):
            piece = rendered[position : position + _RUN_BYTES]
            key = xxhash.xxh3_64_intdigest(piece, start)
            run = self._runs.get(key)
            if run is None:
                run = self._remember(key, chain(start, piece))
            hashes += run
            start = run[-1]
        _extend(hashes, start, rendered, whole, BLOCK)
        return hashes

    def _remember(self, key: int, run: list[int]) -> list[int]:
        self._runs[key] = run
        if len(self._runs) > self._most:
            self._runs.popitem(last=False)
        return run


def _extend(hashes: list[int], digest: int, rendered: bytes, begin: int, block: int) -> None:
    hashed, add = xxhash.xxh3_64_intdigest, hashes.append
    for position in range(begin, len(rendered) - block + 1, block):
        digest = hashed(rendered[position : position + block], digest)
        add(digest)


def leading(held: Container[int], chain: Sequence[int], known: int = 0) -> int:
    """Leading hashes of the chain that are held, at least so many: whoever has one has all before it."""
    low, high = known, len(chain)
    while low < high:
        middle = (low + high + 1) // 2
        if chain[middle - 1] in held:
            low = middle
        else:
            high = middle - 1
    return low
