"""KV events become knowledge: identity, bytes and bounds as the engine has them, and trust only where it is earned."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.routing.announced import (
    AllBlocksCleared,
    Batch,
    BlockRemoved,
    BlockStored,
    UnsupportedError,
    absorb,
)
from sheaf_gateway.routing.blocks import Blocks, Depth
from sheaf_gateway.routing.index import PrefixIndex
from sheaf_gateway.routing.prefix import BLOCK, chain, seed
from sheaf_gateway.routing.router import Ask, Router

SIZE = 4
VOCABULARY = [b"", *(bytes([65 + token]) * 64 for token in range(25)), b""]
KEY = ("p", 1)
POD = Pod(name="p", model="m", engine_url="http://e", epoch=1)


def start(adapter: str | None = None, salt: str = "") -> int:
    return seed("m", adapter, "", salt)


def stored(tokens: list[int], parent: int | None = None, **fields) -> BlockStored:
    names = [hash((parent, *tokens[: end + SIZE])) for end in range(0, len(tokens), SIZE)]
    return BlockStored(block_hashes=names, parent_block_hash=parent, token_ids=tokens, block_size=SIZE, **fields)


def text(tokens: list[int]) -> bytes:
    return b"".join(VOCABULARY[token] for token in tokens)


def held(blocks: Blocks, tokens: list[int], adapter: str | None = None, salt: str = "") -> int:
    prompt = text(tokens) + b"."
    return blocks.depth(chain(start(adapter, salt), prompt), prompt).tokens


PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]


def absorbed(*events, vocabulary=VOCABULARY) -> Blocks:
    blocks = Blocks()
    absorb(blocks, events, vocabulary, start)
    return blocks


def test_batches_are_read_as_vllm_writes_them():
    event = {
        "type": "BlockStored", "block_hashes": [7, b"8"], "parent_block_hash": None, "token_ids": PROMPT,
        "block_size": SIZE, "lora_id": None, "medium": "GPU", "lora_name": None, "extra_keys": [None, None],
        "group_idx": 0, "kv_cache_spec_kind": "full_attention", "locality": "LOCAL",
    }  # fmt: skip
    wire = msgspec.msgpack.encode([1.5, [event, {"type": "BlockRemoved", "block_hashes": [b"8"], "medium": "GPU"}], 0])
    batch = msgspec.msgpack.decode(wire, type=Batch)
    assert held(absorbed(*batch.events), PROMPT) == SIZE


@pytest.mark.parametrize("tokens", [[-1], ["1"], None])
def test_tokens_that_are_none_are_refused(tokens):
    event = {
        "type": "BlockStored",
        "block_hashes": [7],
        "parent_block_hash": None,
        "token_ids": tokens,
        "block_size": 1,
    }
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert([0.0, [event]], type=Batch)


def test_a_prompt_is_held_as_far_as_it_was_stored():
    blocks = absorbed(first := stored(PROMPT), stored([9, 10, 11, 12], first.block_hashes[-1]))
    assert held(blocks, [*PROMPT, 9, 10, 11, 12]) == 12
    assert held(blocks, [*PROMPT[:4], 9, 9, 9, 9]) == 4


@given(
    st.sampled_from([None, "a"]),
    st.sampled_from(["", "pepper"]),
    st.sampled_from([None, "a"]),
    st.sampled_from(["", "pepper"]),
)
def test_adapter_and_salt_are_part_of_the_identity(adapter, salt, other, another):
    own = [key for key in (adapter, salt) if key]
    keys = [own or None, [adapter] if adapter else None]
    blocks = absorbed(stored(PROMPT, lora_name=adapter, extra_keys=keys))
    assert bool(held(blocks, PROMPT, other, another)) == ((adapter, salt) == (other, another))


def test_removed_and_cleared_blocks_are_gone():
    first = stored(PROMPT)
    assert held(absorbed(first, BlockRemoved(block_hashes=first.block_hashes[1:])), PROMPT) == SIZE
    assert held(absorbed(first, AllBlocksCleared()), PROMPT) == 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"extra_keys": [[["image", 0]], None]}, 0),
        ({"extra_keys": [["salt", "digest"], None]}, 0),
        ({"extra_keys": [None, [["image", 0]]]}, SIZE),
        ({"medium": "CPU"}, 0),
        ({"block_size": 0}, 0),
    ],
)
def test_what_is_not_plain_text_in_the_engines_own_memory_is_left_out(fields, expected):
    event = msgspec.structs.replace(stored(PROMPT), **fields)
    assert held(absorbed(event), PROMPT) == expected


@pytest.mark.parametrize("odd", [0, 26, 27, 10**9, 2**80])
def test_tokens_without_bytes_end_what_is_known(odd):
    assert held(absorbed(stored([*PROMPT[:4], 5, odd, 7, 8, *PROMPT])), [*PROMPT, *PROMPT]) == SIZE


def test_missing_tokens_end_what_is_known():
    event = msgspec.structs.replace(stored(PROMPT), token_ids=PROMPT[:6])
    assert held(absorbed(event), PROMPT) == SIZE


@pytest.mark.parametrize("fields", [{"group_idx": 1}, {"kv_cache_spec_kind": "sliding_window"}])
def test_caches_that_are_no_chain_of_blocks_are_left_to_prediction(fields):
    with pytest.raises(UnsupportedError):
        absorbed(stored(PROMPT, **fields))


def asked(words: list[int], *, exact: bool = True) -> Ask:
    prompt = text(words) + b"."
    chain_ = chain(start(), prompt)
    return Ask(request_id="r", model="m", chain=chain_, prompt_bytes=len(prompt), exact=exact, prompt=prompt)


def served(router: Router, words: list[int], now: float, *, announce: bool, exact: bool = True) -> int:
    """One request that is answered; the tokens that were expected to be cached."""
    ask = asked(words, exact=exact)
    ticket = router.sent(ask, router.decide(ask, [POD], now), POD, now)
    if announce:
        absorb(router.index.announced[KEY].blocks, [stored(words)], VOCABULARY, start)
    router.answered(ticket, now + 0.1, streamed=True)
    router.finished(ticket)
    return ticket.cached


def distinct(number: int) -> list[int]:
    return [1 + (number + place * (number + 1)) % 25 for place in range(16)]


def test_expectations_are_forgotten_once_events_are_trusted_and_do_not_confirm_them():
    router = Router()
    router.index.announce(KEY)
    for number in range(8):
        served(router, distinct(number), float(number), announce=True)
    assert router.index.announced[KEY].trust > 0.5
    assert served(router, distinct(20), 20.0, announce=False) == 0
    assert router.decide(asked(distinct(20)), [POD], 20.2).candidates[0].cached_bytes > 0
    served(router, distinct(3), 30.0, announce=False)
    assert router.decide(asked(distinct(20)), [POD], 30.1).candidates[0].cached_bytes == 0
    assert served(router, distinct(3), 31.0, announce=False) == 16


def test_without_confirmation_prediction_serves_as_before():
    router = Router()
    router.index.announce(KEY)
    for number in range(8):
        served(router, distinct(number), float(number), announce=False)
    assert served(router, distinct(3), 60.0, announce=False) == 16 * 64 // 4


def test_requests_that_the_gateway_cannot_render_are_no_evidence_and_are_not_forgotten():
    router = Router()
    router.index.announce(KEY)
    for number in range(8):
        served(router, distinct(number), float(number), announce=True)
    served(router, distinct(21), 20.0, announce=False, exact=False)
    trust = router.index.announced[KEY].trust
    assert served(router, distinct(21), 60.0, announce=False, exact=False) > 0
    assert router.index.announced[KEY].trust >= trust


def test_an_attempt_that_was_never_answered_leaves_no_expectation_where_events_are_trusted():
    router = Router()
    router.index.announce(KEY)
    for number in range(8):
        served(router, distinct(number), float(number), announce=True)
    ask = asked(distinct(22))
    router.finished(router.sent(ask, router.decide(ask, [POD], 20.0), POD, 20.0))
    assert router.decide(ask, [POD], 20.1).candidates[0].cached_bytes == 0
    assert router.index.announced[KEY].trust > 0.5


def test_what_others_made_the_engine_hold_is_known_to_the_kv_block():
    router = Router()
    absorb(router.index.announce(KEY), [stored([*PROMPT, 9, 10, 11, 12])], VOCABULARY, start)
    ask = asked([*PROMPT, 9, 20, 21])
    decision = router.decide(ask, [POD], 0.0)
    assert decision.candidates[0].cached_bytes == 2 * BLOCK
    assert router.sent(ask, decision, POD, 0.0).cached == 8
    assert router.index.depth(ask.chain, ask.prompt, KEY) == Depth(8, 512)


def test_engines_that_fall_silent_or_are_gone_are_forgotten():
    index = PrefixIndex()
    absorb(index.announce(KEY), [stored(PROMPT)], VOCABULARY, start)
    index.announce(("q", 1))
    index.silence(KEY)
    index.silence(KEY)
    index.settle(chain(start(), text(PROMPT)), KEY, computed=True)
    assert index.match(chain(start(), text(PROMPT)), [KEY]) == {}
    index.keep([])
    assert index.announced == {}


def test_an_engine_that_was_sent_nothing_has_nothing_to_settle():
    index = PrefixIndex()
    absorb(index.announce(KEY), [stored([*PROMPT, *PROMPT])], VOCABULARY, start)
    index.announced[KEY].trust = 1.0
    index.settle(chain(start(), text([*PROMPT, *PROMPT])), KEY, computed=True)
    assert len(index) == 0
