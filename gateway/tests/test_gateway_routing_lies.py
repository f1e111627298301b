"""Engines may announce anything: no batch of KV events breaks what is known of the others, and what it takes is bounded."""

from contextlib import suppress

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.routing.announced import Batch, UnsupportedError, absorb
from sheaf_gateway.routing.blocks import Blocks
from sheaf_gateway.routing.index import PrefixIndex
from sheaf_gateway.routing.prefix import BLOCK, chain, seed

FUZZ = settings(max_examples=60, deadline=None)
WORDS = [b"", b"a", b"bb" * 40, b"x" * 300, b"y" * 65_535]

hashes = st.integers(0, 6) | st.binary(max_size=2) | st.integers(-(2**63), 2**64 - 1)
keys = st.none() | st.lists(
    st.text(max_size=2) | st.integers(-5, 5) | st.none() | st.lists(st.none(), max_size=1), max_size=3
)
stored = st.fixed_dictionaries(
    {
        "type": st.just("BlockStored"),
        "block_hashes": st.lists(hashes, max_size=5),
        "parent_block_hash": st.none() | hashes,
        "token_ids": st.lists(st.integers(0, 5) | st.integers(-1, 2**64 - 1), max_size=20),
        "block_size": st.integers(-3, 6) | st.integers(-(2**63), 2**63),
    },
    optional={
        "lora_name": st.none() | st.text(max_size=2),
        "extra_keys": st.none() | st.lists(keys, max_size=4),
        "group_idx": st.none() | st.integers(-1, 1),
        "medium": st.sampled_from([None, "GPU", "CPU"]),
        "kv_cache_spec_kind": st.sampled_from([None, "full_attention", "mamba"]),
    },
)
removed = st.fixed_dictionaries({"type": st.just("BlockRemoved"), "block_hashes": st.lists(hashes, max_size=5)})
events = (
    stored | removed | st.just({"type": "AllBlocksCleared"}) | st.dictionaries(st.text(max_size=4), hashes, max_size=2)
)
batches = st.lists(st.lists(events, max_size=4).map(lambda found: msgspec.msgpack.encode([0.0, found, 0])), max_size=6)
prompts = st.lists(st.sampled_from(WORDS[1:4]), max_size=8).map(b"".join)
decode = msgspec.msgpack.Decoder(Batch).decode


@FUZZ
@given(st.lists(batches | st.lists(st.binary(max_size=40), max_size=2), min_size=2, max_size=2), prompts)
def test_no_batch_breaks_the_index_or_another_engines_part_of_it(found, prompt):
    index, pods = PrefixIndex(max_blocks=64), [("a", 1), ("b", 1)]
    hashed = chain(seed("m", None, "", ""), prompt)
    for pod, raws in zip(pods, found, strict=True):
        blocks = index.announce(pod)
        index.record(hashed, pod)
        for raw in raws:
            with suppress(msgspec.MsgspecError, UnsupportedError, ValueError):
                absorb(blocks, decode(raw).events, WORDS, lambda adapter, salt: seed("m", adapter, "", salt))
        matched = index.match(hashed, pods)
        assert all(0 <= matched.get(each, 0) <= len(hashed) for each in pods)
        assert 0 <= index.depth(hashed, prompt, pod).end <= len(prompt)
        index.settle(hashed, pod, computed=True)
        assert len(index) <= 64
    for pod in pods:
        blocks = index.announced[pod].blocks
        blocks.removed(list(blocks._blocks) * 99)
        assert (len(blocks), blocks.marks) == (0, {})


def test_a_block_of_more_bytes_than_can_be_meant_ends_what_is_known():
    blocks = Blocks()
    told = {
        "type": "BlockStored",
        "block_hashes": [1, 2],
        "parent_block_hash": None,
        "token_ids": [2, 2, 4, 4],
        "block_size": 2,
    }
    absorb(blocks, decode(msgspec.msgpack.encode([0.0, [told], 0])).events, WORDS, lambda _adapter, _salt: 0)
    assert len(blocks) == 1


def test_large_blocks_count_by_the_hashes_that_they_complete():
    blocks = Blocks()
    blocks.stored([1, 2], None, [b"z" * 40 * BLOCK, b"q" * 10 * BLOCK], 16, 0)
    assert len(blocks) == 50
