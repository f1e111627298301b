"""The parts of the timing model: profiles, hashes, block pool, adapter slots."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_engine.timing import PRESETS, Adapter, BlockHashes, TimingProfile
from sheaf_engine.timing.adapters import AdapterSlots
from sheaf_engine.timing.blocks import BlockPool
from sheaf_engine.timing.profiles import preset


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_survives_json(name):
    assert TimingProfile.from_json(PRESETS[name].to_json()) == PRESETS[name]


def test_a_profile_can_change_a_preset():
    profile = TimingProfile.from_json('{"preset": "l4-8b", "num_blocks": 5000}')
    assert profile == PRESETS["l4-8b"].with_changes(num_blocks=5000)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        ('{"preset": "h900"}', "no timing preset 'h900'; there are: a100-70b"),
        ('{"speed": 9}', "unknown timing profile field 'speed'"),
        ('{"kv_token_s": -1}', "kv_token_s cannot be -1"),
        ('{"kv_token_s": NaN}', "kv_token_s cannot be nan"),
        ('{"kv_token_s": true}', "kv_token_s cannot be True"),
        ('{"kv_token_s": "fast"}', "kv_token_s cannot be 'fast'"),
        ('{"block_size": 0}', "block_size cannot be 0"),
        ('{"block_size": 16.0}', "block_size cannot be 16.0"),
        ('{"adapter_rank_bytes": -1}', "adapter_rank_bytes cannot be -1"),
        ('{"prefix_caching": 1}', "prefix_caching cannot be 1"),
        ('{"name": 1}', "name cannot be 1"),
        ('{"step_overhead_s": 0}', "step_overhead_s must be above 0"),
        ('{"num_blocks": 3}', "raise num_blocks"),
        ('{"max_num_batched_tokens": 8}', "at least max_num_seqs"),
        ('{"max_cpu_loras": 2}', "at least max_loras"),
    ],
)
def test_a_profile_without_meaning_is_refused_with_the_field_and_the_remedy(text, said):
    with pytest.raises(ValueError, match=said):
        TimingProfile.from_json(text)


def test_a_known_preset_is_found_by_name():
    assert preset("h100-8b").name == "h100-8b"


@given(st.lists(st.integers(0, 5), max_size=40), st.lists(st.integers(0, 5), max_size=40), st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_hashes_agree_exactly_as_far_as_the_blocks_do(left, right, size):
    same = 0
    for a, b in zip(BlockHashes(left, size), BlockHashes(right, size), strict=False):
        same += a == b
    whole = min(len(left), len(right)) // size
    expected = next(
        (i for i in range(whole) if left[i * size : i * size + size] != right[i * size : i * size + size]), whole
    )
    assert same == expected


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_hashes_do_not_depend_on_when_tokens_were_added(tokens, size):
    whole = BlockHashes(tokens, size)
    grown = BlockHashes([], size)
    for token in tokens:
        grown.append(token)
        list(grown)
    assert list(grown) == list(whole) == list(whole[:])
    assert len(whole) == len(tokens) // size


def test_adapter_and_salt_separate_prefixes():
    identities = [(None, None), ("", None), (None, ""), ("a", None), (None, "a"), ("a", "a"), ("aa", None)]
    hashes = {BlockHashes(range(4), 4, adapter=adapter, salt=salt)[0] for adapter, salt in identities}
    assert len(hashes) == len(identities)


def test_hashes_can_be_indexed_like_any_sequence():
    hashes = BlockHashes(range(9), 4)
    assert hashes[-1] == hashes[1]
    with pytest.raises(IndexError):
        hashes[2]


def test_the_least_recently_used_block_is_evicted_and_a_tail_before_its_head():
    pool = BlockPool(4)
    for held in ([1, 2], [3, 4]):
        pool.take(2)
        assert all(pool.store(block_hash) for block_hash in held)
        pool.release(held, 0)
    assert pool.idle == (2, 1, 4, 3)
    pool.hold(1)
    pool.take(2)
    assert pool.removed == [2, 4]
    assert pool.match([1, 2], 2) == 1
    assert pool.match([3, 1], 1) == 1
    assert pool.available == 1


def test_a_block_computed_twice_is_kept_once():
    pool = BlockPool(2)
    pool.take(2)
    assert pool.store(7)
    assert not pool.store(7)
    assert (pool.empty, pool.holders(7)) == (1, 2)
    pool.release([7], 0)
    pool.release([7], 0)
    assert (pool.empty, pool.idle, pool.holders(8)) == (1, (7,), None)


def test_an_adapter_in_use_keeps_its_slot_and_the_oldest_other_gives_way():
    slots = AdapterSlots(PRESETS["custom"].with_changes(max_loras=2, max_cpu_loras=2, adapter_load_s=1.0))
    used, idle, late = (Adapter(name, 8, 100) for name in ("used", "idle", "late"))
    assert slots.begin(used) == 1.0
    assert slots.load(idle) == 1.0
    assert slots.load(late) == 1.0
    assert slots.in_slots == slots.in_host_memory == ("used", "late")
    slots.forget("used")
    slots.forget("late")
    slots.forget("late")
    assert slots.in_slots == ("used",)
    slots.end(used)
    assert slots.loaded == slots.activated == ["used", "idle", "late"]


def test_an_adapter_waits_in_host_memory_when_all_slots_are_in_use():
    slots = AdapterSlots(PRESETS["custom"].with_changes(max_loras=1, max_cpu_loras=2, adapter_load_s=1.0))
    used, spare = Adapter("used", 8), Adapter("spare", 8)
    slots.begin(used)
    slots.begin(used)
    assert slots.load(spare) == 1.0
    assert (slots.in_slots, slots.in_host_memory) == (("used",), ("used", "spare"))
    slots.end(used)
    assert slots.running == {"used": 1}


def test_profiles_are_plain_json():
    assert json.loads(PRESETS["instant"].to_json())["name"] == "instant"
