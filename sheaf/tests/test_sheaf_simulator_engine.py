"""The simulator's engine and pods do exactly what the timing model does, step by step."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf.simulator.clock import Clock
from sheaf.simulator.pods import Pod
from sheaf_engine.timing import PRESETS, Adapter, Engine, Request

PROFILE = PRESETS["custom"].with_changes(
    block_size=4,
    num_blocks=64,
    max_model_len=128,
    max_num_seqs=6,
    max_num_batched_tokens=32,
    max_loras=2,
    max_cpu_loras=3,
    kv_token_s=1e-5,
    decode_sequence_s=1e-4,
    prefill_attention_s=1e-7,
    lora_adapter_s=3e-4,
    lora_rank_token_s=1e-6,
    adapter_load_s=0.02,
)

REQUEST = st.tuples(
    st.floats(0.0, 1.5, allow_nan=False),
    st.integers(1, 60),
    st.integers(1, 50),
    st.integers(0, 3),
    st.sampled_from([None, "a", "b", "c"]),
)


@dataclass
class Flying:
    number: int


def prompt_hashes(prompt: int, family: int, adapter: str | None) -> list[int]:
    return [hash((family, (adapter or "").encode(), index)) for index in range(prompt // 4)]


def adapter_of(name: str | None) -> Adapter | None:
    return None if name is None else Adapter(name, 8)


def by_steps(asked: list[tuple[float, int, int, int, str | None]]) -> tuple[dict[int, list[float]], float]:
    """The same with nothing but Engine.step."""
    engine, now, seen = Engine(PROFILE, trace=False), 0.0, {}
    waiting = sorted(enumerate(asked), key=lambda item: item[1][0])
    while waiting or engine.busy:
        if not engine.busy:
            now = max(now, waiting[0][1][0])
        while waiting and waiting[0][1][0] <= now:
            number, (_, prompt, output, family, name) = waiting.pop(0)
            hashes = prompt_hashes(prompt, family, name)
            engine.add_request(Request(number, prompt, output, hashes, adapter_of(name)))
        result = engine.step(now)
        now = result.end
        for number in result.first_tokens:
            seen[number] = [now]
        for number in result.finished:
            seen[number].append(now)
    return seen, engine.prompt_tokens_hit


def by_events(asked: list[tuple[float, int, int, int, str | None]]) -> tuple[dict[int, list[float]], float]:
    clock, seen = Clock(), {}
    pod: Pod[Flying] = Pod(
        "p",
        "m",
        PROFILE,
        clock,
        lambda *_: None,
        lambda flight: seen.__setitem__(flight.number, [clock.now]),
        lambda flight: seen[flight.number].append(clock.now),
    )

    def arrive(item: Any) -> None:
        number, (_, prompt, output, family, name) = item
        pod.submit(Flying(number), prompt, output, prompt_hashes(prompt, family, name), adapter_of(name))

    for item in sorted(enumerate(asked), key=lambda item: item[1][0]):
        clock.at(item[1][0], arrive, item)
    clock.run()
    return seen, pod.engine.prompt_tokens_hit


@settings(max_examples=60, deadline=None)
@given(st.lists(REQUEST, min_size=1, max_size=14))
def test_a_pod_that_coasts_shows_every_token_at_the_very_time_of_single_steps(asked: list[Any]) -> None:
    assert by_events(asked) == by_steps(asked)


@settings(max_examples=60, deadline=None)
@given(st.lists(REQUEST, min_size=1, max_size=14), st.integers(0, 3), st.integers(0, 60))
def test_the_cached_part_of_a_prompt_is_found_as_the_engine_matches_it(asked: list[Any], family: int, n: int) -> None:
    clock = Clock()
    pod: Pod[Flying] = Pod("p", "m", PROFILE, clock, lambda *_: None, lambda _: None, lambda _: None)
    for number, (_, prompt, output, own, name) in enumerate(asked):
        pod.submit(Flying(number), prompt, output, prompt_hashes(prompt, own, name), adapter_of(name))
        clock.run(clock.now + 0.05)
    hashes = prompt_hashes(n, family, None)
    assert pod.cached_tokens(hashes) == 4 * pod.engine.pool.match(hashes, len(hashes))


def test_few_events_are_needed_while_a_pod_decodes() -> None:
    clock = Clock()
    pod: Pod[Flying] = Pod("p", "m", PROFILE, clock, lambda *_: None, lambda _: None, lambda _: None)
    pod.submit(Flying(1), 10, 100, [], None)
    clock.run()
    assert clock.happened < 10


def test_a_pod_that_is_stopped_gives_back_what_it_had_and_says_nothing_more() -> None:
    clock, told = Clock(), []
    pod: Pod[Flying] = Pod("p", "m", PROFILE, clock, lambda *_: None, told.append, told.append)
    pod.submit(Flying(1), 10, 100, [], None)
    assert [flight.number for flight, _ in pod.stop()] == [1]
    clock.run()
    assert told == []


def test_a_withdrawn_request_is_never_heard_of_again_and_the_others_go_on() -> None:
    clock, done = Clock(), []
    pod: Pod[Flying] = Pod("p", "m", PROFILE, clock, lambda *_: None, lambda _: None, done.append)
    first, second = Flying(1), Flying(2)
    pod.submit(first, 10, 100, [], None)
    pod.submit(second, 10, 20, [], None)
    clock.run(0.1)
    pod.withdraw(first)
    pod.withdraw(first)
    clock.run()
    assert done == [second]
    assert not pod.engine.busy


def test_a_request_longer_than_the_engine_serves_is_refused() -> None:
    pod: Pod[Flying] = Pod("p", "m", PROFILE, Clock(), lambda *_: None, lambda _: None, lambda _: None)
    with pytest.raises(ValueError, match="max_model_len"):
        pod.submit(Flying(1), 1000, 1, [], None)


def test_events_of_one_time_happen_in_the_order_in_which_they_were_asked_for() -> None:
    clock, seen = Clock(), []
    for item in "abc":
        clock.at(1.0, seen.append, item)
    clock.at(0.5, seen.append, "first")
    clock.run()
    assert seen == ["first", "a", "b", "c"]
    assert clock.now == 1.0
