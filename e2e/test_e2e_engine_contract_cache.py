"""The emulator and real vLLM answer alike: what the prefix cache finds, and the events that tell what it holds."""

import time
from typing import Any

import pytest
import zmq
from contract_checks import fresh_prompt, token_ids
from contract_engines import BLOCK_SIZE

pytestmark = pytest.mark.timeout(600)


def cached_tokens(body: dict[str, Any]) -> int:
    return body["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_a_repeated_prefix_is_found_in_whole_blocks_and_never_whole(engine):
    prompt = fresh_prompt(100)
    assert cached_tokens(engine.complete(prompt)) == 0
    assert cached_tokens(engine.complete(prompt)) == 96
    assert cached_tokens(engine.complete(prompt[:64])) == 32
    assert cached_tokens(engine.complete(prompt[:65])) == 64
    assert cached_tokens(engine.complete(prompt[:50] + fresh_prompt(50))) == 32


def test_another_salt_or_adapter_never_finds_it(engine, adapter):
    prompt = fresh_prompt(100)
    assert cached_tokens(engine.complete(prompt)) == 0
    assert cached_tokens(engine.complete(prompt, cache_salt="pepper")) == 0
    assert cached_tokens(engine.complete(prompt, cache_salt="pepper")) == 96
    assert cached_tokens(engine.complete(prompt, model=adapter)) == 0
    assert cached_tokens(engine.complete(prompt, model=adapter)) == 96


def test_the_same_prompt_twice_in_one_request_is_computed_once(engine):
    prompt = fresh_prompt(100)
    assert cached_tokens(engine.complete([prompt, prompt])) == 96


def test_stored_blocks_are_announced_as_a_chain_of_the_prompts_tokens(engine):
    prompt = fresh_prompt(100)
    engine.complete(prompt)
    (event,) = engine.stored_events(lambda event: event["token_ids"][:32] == prompt[:32])
    assert len(set(event.pop("block_hashes"))) == 3
    assert event == {
        "type": "BlockStored",
        "parent_block_hash": None,
        "token_ids": prompt[:96],
        "block_size": BLOCK_SIZE,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [None, None, None],
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }


def test_later_blocks_name_the_block_before_them(engine):
    prompt = fresh_prompt(164)
    engine.complete(prompt[:100])
    engine.complete(prompt)
    (first,) = engine.stored_events(lambda event: event["token_ids"][:32] == prompt[:32])
    (second,) = engine.stored_events(lambda event: event["token_ids"][:32] == prompt[96:128])
    assert second["parent_block_hash"] == first["block_hashes"][-1]
    assert second["token_ids"] == prompt[96:160]


def test_generated_blocks_are_announced_when_they_are_full(engine):
    prompt = fresh_prompt(30)
    tokens = prompt + token_ids(engine.complete(prompt, max_tokens=40, ignore_eos=True, return_token_ids=True))
    (first,) = engine.stored_events(lambda event: event["token_ids"] == tokens[:32])
    (second,) = engine.stored_events(lambda event: event["parent_block_hash"] == first["block_hashes"][0])
    assert second["token_ids"] == tokens[32:64]


def test_events_tell_adapter_and_salt(engine, adapter):
    prompt = fresh_prompt(70)
    engine.complete(prompt, model=adapter, cache_salt="pepper")
    (event,) = engine.stored_events(lambda event: event["token_ids"] == prompt[:64])
    assert event["lora_name"] == adapter
    assert isinstance(event["lora_id"], int)
    assert event["extra_keys"] == [[adapter, "pepper"], [adapter]]


def test_batches_are_numbered_dated_and_can_be_replayed(engine):
    prompt = fresh_prompt(40)
    engine.complete(prompt)
    engine.stored_events(lambda event: event["token_ids"] == prompt[:32])
    numbers = [number for _, number, _ in engine.batches]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    topic, last, batch = engine.batches[-1]
    assert (topic, len(batch), batch[2]) == (b"kv", 3, 0)
    assert abs(batch[0] - time.time()) < 60
    replayed = replay(engine.replay_port, last)
    assert [frames[1:3] for frames in replayed[:-1]] == [[b"kv", last.to_bytes(8, "big")]]
    assert replayed[-1] == [b"", b"", (-1).to_bytes(8, "big", signed=True), b""]


def replay(port: int, first: int) -> list[list[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.RCVTIMEO, 10_000)
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send_multipart([b"", first.to_bytes(8, "big")])
        frames = [dealer.recv_multipart()]
        while frames[-1][-1]:
            frames.append(dealer.recv_multipart())
    return frames
