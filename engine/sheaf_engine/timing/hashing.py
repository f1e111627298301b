"""Chained block hashes: what makes two prefixes the same prefix.

As in vLLM (``vllm/v1/core/kv_cache_utils.py``) a block's hash covers its parent's hash, its tokens, the adapter and, at
the root, the cache salt; so the same text under another adapter or salt never matches.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import overload


def root_hash(adapter: str | None, salt: str | None) -> int:
    """The 64-bit parent of every first block under this adapter and cache salt."""
    parts = (b"" if text is None else b"=" + text.encode() for text in (adapter, salt))
    return _digest(b"".join(len(part).to_bytes(4, "little") + part for part in parts))


def chain(parent: int, tokens: Sequence[int]) -> int:
    """The 64-bit hash of a block of `tokens` (ids below 2**32) after `parent`."""
    return _digest(parent.to_bytes(8, "little") + array("I", tokens).tobytes())


def _digest(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


class BlockHashes(Sequence[int]):
    """The block hashes of a growing sequence of tokens: hashed once, when first asked for.

    Its length is the number of full blocks of the tokens known so far.
    """

    def __init__(
        self, tokens: Iterable[int], block_size: int, *, adapter: str | None = None, salt: str | None = None
    ) -> None:
        self.tokens = array("I", tokens)
        self._block_size = block_size
        self._root = root_hash(adapter, salt)
        self._hashes: list[int] = []

    def append(self, token: int) -> None:
        """Add a token at the end."""
        self.tokens.append(token)

    def __len__(self) -> int:
        return len(self.tokens) // self._block_size

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        while len(self._hashes) <= position:
            self._extend()
        return self._hashes[position]

    def _extend(self) -> None:
        start = len(self._hashes) * self._block_size
        parent = self._hashes[-1] if self._hashes else self._root
        self._hashes.append(chain(parent, self.tokens[start : start + self._block_size]))
