"""KV events of an engine (vLLM's `kv_events.py`, as of 0.32) worked into what it is known to hold: pure.

Identity comes with the first block of a prompt: the adapter's name and the tenant's salt are in its extra keys. Blocks
that stand for more than text (images, embeddings) or have tokens that the vocabulary does not know are left out with
all that follow them. Engines whose cache has more than one group of layers, or forgets within a prompt (sliding
windows), need another rule for what can be reused; they are left to prediction.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec

from sheaf_gateway.routing.blocks import BlockHash, Blocks

_WHOLE = frozenset({None, "full_attention", "mla_attention"})
_HERE = frozenset({None, "GPU"})
_GROUPS = frozenset({None, 0})
_MOST_BYTES = 65_536

Seed = Callable[[str | None, str], int]
"""The chain's seed for an adapter's name (None: the base model) and a tenant's salt."""


class UnsupportedError(Exception):
    """The engine's cache does not work as a chain of blocks."""


class BlockStored(msgspec.Struct, tag=True, gc=False):
    """Blocks entered the cache."""

    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[Annotated[int, msgspec.Meta(ge=0)]]
    block_size: int
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class BlockRemoved(msgspec.Struct, tag=True, gc=False):
    """Blocks left the cache."""

    block_hashes: list[int | bytes]
    medium: str | None = None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag=True, gc=False):
    """The cache is empty."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


class Batch(msgspec.Struct, array_like=True, gc=False):
    """What one step of the engine changed."""

    ts: float
    events: list[Event]
    data_parallel_rank: int | None = None


def absorb(blocks: Blocks, events: Sequence[Event], vocabulary: Sequence[bytes], seed: Seed) -> None:
    """Work events in.

    Raises:
        UnsupportedError: What the engine holds cannot be known from its events.
    """
    for event in events:
        if isinstance(event, AllBlocksCleared):
            blocks.clear()
        elif event.medium not in _HERE:
            continue
        elif event.group_idx not in _GROUPS:
            raise UnsupportedError("its cache has several groups of layers")
        elif isinstance(event, BlockRemoved):
            blocks.removed(event.block_hashes)
        else:
            _store(blocks, event, vocabulary, seed)


def _store(blocks: Blocks, event: BlockStored, vocabulary: Sequence[bytes], seed: Seed) -> None:
    if event.kv_cache_spec_kind not in _WHOLE:
        raise UnsupportedError(f"its cache is of the kind {event.kv_cache_spec_kind}")
    salt = _salt(event)
    names: list[BlockHash] = list(event.block_hashes[: _plain(event)])
    if salt is None or not names or event.block_size < 1:
        return
    start = 0 if event.parent_block_hash is not None else seed(event.lora_name, salt)
    pieces = _pieces(event.token_ids, event.block_size, vocabulary, len(names))
    blocks.stored(names, event.parent_block_hash, pieces, event.block_size, start)


def _salt(event: BlockStored) -> str | None:
    """The salt in the keys of a first block; None where there is more in them."""
    if event.parent_block_hash is not None or not event.extra_keys:
        return ""
    keys = event.extra_keys[0] or []
    own = keys[1:] if event.lora_name is not None else keys
    if len(own) > 1 or not all(isinstance(key, str) for key in own):
        return None
    return own[0] if own else ""


def _plain(event: BlockStored) -> int:
    """How many of the blocks stand for text alone: later ones have no key but the adapter."""
    keys, allowed = event.extra_keys or [], 1 if event.lora_name is not None else 0
    first = 1 if event.parent_block_hash is None else 0
    odd = (place for place, found in enumerate(keys) if place >= first and len(found or ()) > allowed)
    return next(odd, len(event.block_hashes))


def _pieces(token_ids: Sequence[int], size: int, vocabulary: Sequence[bytes], count: int) -> list[bytes]:
    """The bytes of each block, up to the first that has a token unknown or missing, or more bytes than can be meant."""
    pieces: list[bytes] = []
    for place in range(0, min(len(token_ids) - size + 1, count * size), size):
        try:
            words = [vocabulary[token] for token in token_ids[place : place + size]]
        except IndexError:
            break
        if not all(words) or sum(map(len, words)) > _MOST_BYTES:
            break
        pieces.append(b"".join(words))
    return pieces
