"""What an engine announces is found again by a prompt's own hashes: exactly to the block, and only while it is held."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.routing.blocks import NOTHING, Blocks, Depth
from sheaf_gateway.routing.prefix import BLOCK, chain, seed

QUICK = settings(max_examples=60, deadline=None)
START = seed("m", None, "", "")
TOKENS = 4


class Engine:
    """A pool of KV blocks as an engine has it: tokens are byte strings, `TOKENS` of them make a block."""

    def __init__(self) -> None:
        self.blocks = Blocks()
        self.held: set[tuple[bytes, ...]] = set()

    def serve(self, tokens: list[bytes]) -> None:
        paths = [tuple(tokens[:end]) for end in range(TOKENS, len(tokens) + 1, TOKENS)]
        fresh = [path for path in paths if path not in self.held]
        if fresh:
            parent = fresh[0][:-TOKENS]
            self.blocks.stored(fresh, parent or None, [b"".join(p[-TOKENS:]) for p in fresh], TOKENS, START)
            self.held.update(fresh)

    def evict(self, path: tuple[bytes, ...]) -> None:
        self.held = {held for held in self.held if held[: len(path)] != path}
        self.blocks.removed([path])

    def really_cached(self, tokens: list[bytes]) -> int:
        ends = range(TOKENS, len(tokens), TOKENS)
        return max((end for end in ends if tuple(tokens[:end]) in self.held), default=0)


def words(draw: random.Random) -> list[bytes]:
    """Tokens of up to 90 bytes, few enough that prompts share beginnings; no one is the beginning of another."""
    vocabulary = [bytes([letter]) * (1 + letter * 23) for letter in range(4)]
    return [draw.choice(vocabulary) + b"." for _ in range(draw.randrange(40))]


def prompts(number: int) -> list[list[bytes]]:
    draw = random.Random(number)
    found = [words(draw) for _ in range(4)]
    return [*found, *(one[: draw.randrange(len(one) + 1)] + words(draw) for one in found for _ in range(2))]


def depth(blocks: Blocks, tokens: list[bytes]) -> Depth:
    prompt = b"".join(tokens)
    return blocks.depth(chain(START, prompt), prompt)


@QUICK
@given(st.integers(0, 2**32))
def test_the_depth_is_what_the_engine_would_reuse_whenever_a_whole_hash_lies_in_it(number):
    asked, engine = prompts(number), Engine()
    for tokens in asked:
        reused, found = engine.really_cached(tokens), depth(engine.blocks, tokens)
        assert found.tokens <= reused
        if len(b"".join(tokens[:reused])) >= BLOCK:
            assert found == Depth(reused, len(b"".join(tokens[:reused])))
        engine.serve(tokens)


@QUICK
@given(st.integers(0, 2**32))
def test_after_evictions_nothing_is_credited_that_is_gone(number):
    draw, engine = random.Random(number), Engine()
    for tokens in prompts(number):
        engine.serve(tokens)
        if engine.held and draw.random() < 0.7:
            engine.evict(draw.choice(sorted(engine.held)))
        for other in prompts(number):
            assert depth(engine.blocks, other).tokens <= engine.really_cached(other)
        assert len(engine.blocks) == len(engine.held)


@QUICK
@given(st.integers(0, 2**32))
def test_removing_everything_leaves_nothing_behind(number):
    draw, engine = random.Random(number), Engine()
    for tokens in prompts(number):
        engine.serve(tokens)
    paths = sorted(engine.held)
    draw.shuffle(paths)
    engine.blocks.removed(paths)
    assert len(engine.blocks) == 0
    assert engine.blocks.marks == {}


def one_block(blocks: Blocks, name: str, data: bytes, parent: str | None = None, start: int = START) -> None:
    blocks.stored([name], parent, [data], TOKENS, start)


def test_a_block_is_gone_with_its_last_copy():
    blocks = Blocks()
    one_block(blocks, "a", b"x" * BLOCK)
    one_block(blocks, "a", b"x" * BLOCK)
    blocks.removed(["a"])
    assert blocks.matched(chain(START, b"x" * BLOCK)) == 1
    blocks.removed(["a", "unknown"])
    assert blocks.matched(chain(START, b"x" * BLOCK)) == 0


def test_what_follows_an_unknown_block_is_left_out_and_counted():
    blocks = Blocks()
    one_block(blocks, "b", b"x" * BLOCK, parent="never seen")
    assert (len(blocks), blocks.orphans) == (0, 1)


def test_blocks_that_part_within_a_hash_are_told_apart_to_the_block():
    blocks, common = Blocks(), b"x" * (BLOCK - 10)
    one_block(blocks, "head", common)
    one_block(blocks, "left", b"y" * 20, parent="head")
    one_block(blocks, "right", b"y" * 10 + b"z" * 10, parent="head")
    for ending, held in ((b"y" * 40, 2 * TOKENS), (b"y" * 10 + b"z" * 30, 2 * TOKENS), (b"y" * 10 + b"q" * 30, TOKENS)):
        prompt = common + ending
        assert blocks.depth(chain(START, prompt), prompt).tokens == held
    blocks.removed(["left"])
    assert blocks.depth(chain(START, common + b"y" * 40), common + b"y" * 40).tokens == TOKENS


def test_the_last_token_of_a_prompt_is_always_computed():
    blocks = Blocks()
    one_block(blocks, "a", b"x" * BLOCK)
    assert blocks.depth(chain(START, b"x" * BLOCK), b"x" * BLOCK) == NOTHING
    assert blocks.depth(chain(START, b"x" * BLOCK + b"y"), b"x" * BLOCK + b"y") == Depth(TOKENS, BLOCK)


def test_another_identity_or_an_empty_cache_holds_nothing():
    blocks = Blocks()
    one_block(blocks, "a", b"x" * BLOCK, start=seed("m", "adapter", "", ""))
    assert blocks.depth(chain(START, b"x" * 300), b"x" * 300) == NOTHING
    blocks.clear()
    assert blocks.matched(chain(seed("m", "adapter", "", ""), b"x" * 300)) == 0
    assert len(blocks) == 0
