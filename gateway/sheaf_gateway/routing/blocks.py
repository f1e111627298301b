"""What one engine said that its prefix cache holds, by the bytes that its tokens stand for: precise knowledge.

Engines announce KV blocks by hash, parent and tokens. Each block's tokens are turned into bytes once, when it is
stored, and the path from the first block to it is cut into the same blocks of `BLOCK` bytes, hashed in the same chain,
as a prompt on the request path (see `prefix`). A `mark` is such a hash, held by the engine's blocks that complete it;
so a prompt is looked up by the hashes it has anyway, and no tokeniser is needed. A block counts only while every block
before it does: where one leaves, all after it leave. Several copies of a block may be announced; it is gone with its
last copy.
"""

from collections.abc import Hashable, Iterable, Sequence

import msgspec
import xxhash

from sheaf_gateway.routing.prefix import BLOCK, leading

BlockHash = Hashable


class Block(msgspec.Struct, gc=True, eq=False):
    """One KV block: `end` bytes and `tokens` tokens lie between the beginning of the prompt and its end.

    `marks` are the chain's hashes that it completes, `chain` the last hash up to its end, `tail` the bytes since that.
    """

    name: BlockHash
    parent: "Block | None"
    end: int
    tokens: int
    chain: int
    tail: bytes
    marks: list[int]
    copies: int = 1
    children: "dict[BlockHash, Block] | None" = None


class Depth(msgspec.Struct, frozen=True):
    """How far a prompt is held: whole KV blocks, in tokens and bytes."""

    tokens: int = 0
    end: int = 0


NOTHING = Depth()


class Blocks:
    """The blocks of one engine. `marks` has the blocks that complete each hash; a hash in it is held."""

    def __init__(self) -> None:
        self.marks: dict[int, list[Block]] = {}
        self._blocks: dict[BlockHash, Block] = {}
        self.orphans = 0

    def __len__(self) -> int:
        """What it takes to hold them, in blocks: large ones complete many hashes each."""
        return max(len(self._blocks), len(self.marks))

    def stored(
        self, names: Sequence[BlockHash], parent: BlockHash | None, pieces: Iterable[bytes], tokens: int, start: int
    ) -> None:
        """A run of blocks came, each of so many `tokens`, after `parent` (None: they begin a prompt).

        `pieces` are their bytes, `start` the chain's seed (see `prefix.seed`). A run after an unknown block is left out
        and counted in `orphans`.
        """
        before = None if parent is None else self._blocks.get(parent)
        if parent is not None and before is None:
            self.orphans += len(names)
            return
        for name, piece in zip(names, pieces, strict=False):
            before = self._put(name, before, piece, tokens, start)

    def removed(self, names: Iterable[BlockHash]) -> None:
        """A copy of each of these blocks left."""
        for name in names:
            found = self._blocks.get(name)
            if found is None:
                continue
            found.copies -= 1
            if found.copies <= 0:
                self._drop(found)

    def clear(self) -> None:
        """All blocks left."""
        self.marks.clear()
        self._blocks.clear()

    def matched(self, chain: Sequence[int]) -> int:
        """Leading hashes of the chain that are held."""
        return leading(self.marks, chain)

    def depth(self, chain: Sequence[int], prompt: bytes) -> Depth:
        """How far a prompt is held, to the KV block.

        The last token of a prompt is always computed, so what ends with the prompt does not count to its end.
        """
        count = self.matched(chain)
        if not count:
            return NOTHING
        last = (_deepest(block, count, prompt) for block in self.marks[chain[count - 1]])
        found = max((block for block in last if block is not None), key=_end, default=None)
        if found is not None and found.end == len(prompt):
            found = found.parent
        return NOTHING if found is None else Depth(found.tokens, found.end)

    def _put(self, name: BlockHash, parent: Block | None, piece: bytes, tokens: int, start: int) -> Block:
        known = self._blocks.get(name)
        if known is not None:
            known.copies += 1
            return known
        fresh = self._blocks[name] = _after(name, parent, piece, tokens, start)
        if parent is not None:
            parent.children = parent.children or {}
            parent.children[name] = fresh
        for mark in fresh.marks:
            self.marks.setdefault(mark, []).append(fresh)
        return fresh

    def _drop(self, block: Block) -> None:
        if block.parent is not None and block.parent.children is not None:
            block.parent.children.pop(block.name, None)
        leaving = [block]
        while leaving:
            gone = leaving.pop()
            del self._blocks[gone.name]
            leaving.extend((gone.children or {}).values())
            for mark in gone.marks:
                self._unmark(mark, gone)

    def _unmark(self, mark: int, block: Block) -> None:
        holders = self.marks[mark]
        if len(holders) == 1:
            del self.marks[mark]
        else:
            holders.remove(block)


def _after(name: BlockHash, parent: Block | None, piece: bytes, tokens: int, start: int) -> Block:
    chain, tail, end, count = (start, b"", 0, 0) if parent is None else _ending(parent)
    data, marks, position = tail + piece, [], 0
    while len(data) - position >= BLOCK:
        chain = xxhash.xxh3_64_intdigest(data[position : position + BLOCK], chain)
        marks.append(chain)
        position += BLOCK
    return Block(name, parent, end + len(piece), count + tokens, chain, data[position:], marks)


def _ending(block: Block) -> tuple[int, bytes, int, int]:
    return block.chain, block.tail, block.end, block.tokens


def _deepest(block: Block, count: int, prompt: bytes) -> Block | None:
    """The last block that the prompt holds whole, on the way through the one that completes its `count`-th hash."""
    if not _within(block, count, prompt):
        return block.parent
    while (further := _next(block, count, prompt)) is not None:
        block = further
    return block


def _next(block: Block, count: int, prompt: bytes) -> Block | None:
    children = (block.children or {}).values()
    return next((child for child in children if _within(child, count, prompt)), None)


def _within(block: Block, count: int, prompt: bytes) -> bool:
    """Whether the prompt goes on to the end of the block, given that `count` of its hashes match and no more do."""
    return block.end // BLOCK == count and prompt.startswith(block.tail, count * BLOCK) and block.end <= len(prompt)


def _end(block: Block) -> int:
    return block.end
