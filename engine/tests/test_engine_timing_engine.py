"""The engine model keeps vLLM's promises under any load: blocks are conserved, everybody finishes, order is kept."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sheaf_engine.timing import PRESETS, Adapter, BlockHashes, BlocksStored, Engine, Request, StepResult

BLOCK = 4
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SMALL = PRESETS["custom"].with_changes(
    prefill_attention_s=1e-6,
    decode_sequence_s=1e-3,
    kv_token_s=1e-5,
    lora_adapter_s=1e-3,
    lora_rank_token_s=1e-6,
    adapter_load_s=0.5,
    adapter_activate_byte_s=1e-9,
    adapter_rank_bytes=1000,
    block_size=BLOCK,
    num_blocks=12,
    max_model_len=40,
    max_num_seqs=4,
    max_num_batched_tokens=8,
    max_loras=2,
    max_cpu_loras=3,
)
ROOMY = SMALL.with_changes(num_blocks=400)
ADAPTERS = tuple(Adapter(f"a{i}", rank=8) for i in range(4))


@st.composite
def workloads(draw: st.DrawFn) -> list[tuple[float, Request]]:
    """Requests with arrival times; prompts share prefixes, some have private outputs, some use adapters."""
    requests = []
    now = 0.0
    for number in range(draw(st.integers(1, 12))):
        now += draw(st.sampled_from([0.0, 0.0, 0.02, 0.3]))
        prompt = draw(st.integers(1, 28))
        output = draw(st.integers(1, 12))
        adapter = draw(st.sampled_from([None, None, *ADAPTERS]))
        tokens = [draw(st.integers(0, 1))] * (prompt + output * draw(st.booleans()))
        hashes = tuple(BlockHashes(tokens, BLOCK, adapter=adapter.name if adapter else None))
        requests.append((now, Request(number, prompt, output, hashes, adapter)))
    return requests


def run(engine: Engine, work: list[tuple[float, Request]], *, coast: bool = False, check=None) -> list[StepResult]:
    """Serve all of `work`; `check` is called after every step."""
    pending, results, now = list(work), [], 0.0
    while pending or engine.busy:
        if not engine.busy:
            now = max(now, pending[0][0])
        while pending and pending[0][0] <= now:
            engine.add_request(pending.pop(0)[1])
        until = pending[0][0] if pending else float("inf")
        results.append(engine.advance(now, until) if coast else engine.step(now))
        assert results[-1].end > now
        now = results[-1].end
        if check:
            check(engine, results[-1])
        assert len(results) < 5000
    return results


def assert_blocks_add_up(engine: Engine, _: StepResult) -> None:
    sequences = engine.sequences()
    holders: dict[int, int] = {}
    for sequence in sequences:
        for block_hash in sequence.request.block_hashes[: sequence.held]:
            holders[block_hash] = holders.get(block_hash, 0) + 1
    idle = engine.pool.idle
    assert all(engine.pool.holders(block_hash) == count for block_hash, count in holders.items())
    assert all(engine.pool.holders(block_hash) == 0 for block_hash in idle)
    private = sum(sequence.private for sequence in sequences)
    assert private >= 0
    assert engine.pool.empty >= 0
    assert engine.pool.empty + len(idle) + len(holders) + private == engine.pool.num_blocks


@given(workloads())
@QUICK
def test_every_block_is_empty_idle_private_or_held_by_as_many_as_its_reference_count(work):
    run(Engine(SMALL), work, check=assert_blocks_add_up)


@given(workloads(), st.booleans())
@QUICK
def test_every_request_finishes_with_exactly_its_tokens_and_leaves_nothing_behind(work, coast):
    engine = Engine(SMALL)
    results = run(engine, work, coast=coast)
    emitted: dict[object, int] = {}
    for result in results:
        for request_id in result.emitted:
            emitted[request_id] = emitted.get(request_id, 0) + result.steps
    finished = [request_id for result in results for request_id in result.finished]
    assert sorted(finished) == sorted(request.id for _, request in work)
    assert emitted == {request.id: request.max_tokens for _, request in work}
    assert engine.pool.available == engine.pool.num_blocks
    assert engine.running == engine.waiting == 0
    assert engine.cache_usage == 0.0
    assert not engine.adapters.running


@given(workloads())
@QUICK
def test_first_tokens_come_in_order_of_arrival_where_nothing_is_preempted_or_waits_for_an_adapter(work):
    plain = [(at, Request(r.id, r.prompt_tokens, r.max_tokens, r.block_hashes)) for at, r in work]
    engine = Engine(ROOMY)
    first = [request_id for result in run(engine, plain) for request_id in result.first_tokens]
    assert engine.preemptions == 0
    assert first == sorted(first)


@given(workloads())
@QUICK
def test_cached_tokens_are_whole_blocks_and_never_the_whole_prompt(work):
    lengths = {request.id: request for _, request in work}
    engine = Engine(SMALL)
    for result in run(engine, work):
        for admission in result.admitted:
            request = lengths[admission.request_id]
            known = request.prompt_tokens + (request.max_tokens if admission.resumed else 0)
            assert admission.cached_tokens % BLOCK == 0
            assert admission.cached_tokens <= known - 1
    assert engine.prompt_tokens_hit <= engine.prompt_tokens_queried


@given(workloads())
@QUICK
def test_the_same_work_gives_the_same_results(work):
    assert run(Engine(SMALL), work) == run(Engine(SMALL), work)


@given(workloads(), st.sampled_from([SMALL, ROOMY]))
@QUICK
def test_advancing_gives_exactly_what_stepping_gives(work, profile):
    stepped = [_flatten(result) for result in run(Engine(profile), work)]
    advanced = [_flatten(result) for result in run(Engine(profile), work, coast=True)]
    for kind in ("finished", "first", "preempted", "stored", "removed", "admitted"):
        assert [e[kind] for e in stepped if e[kind]] == [e[kind] for e in advanced if e[kind]]
    assert stepped[-1]["end"] == advanced[-1]["end"]


def _flatten(result: StepResult) -> dict[str, object]:
    return {
        "end": result.end,
        "finished": [(request_id, result.end) for request_id in result.finished],
        "first": [(request_id, result.end) for request_id in result.first_tokens],
        "preempted": result.preempted,
        "stored": result.stored,
        "removed": result.removed,
        "admitted": result.admitted,
    }


@given(st.integers(1, 30), st.integers(0, 7), st.integers(0, 7))
@QUICK
def test_alone_a_longer_cached_prefix_never_delays_the_first_token(prompt, blocks, more):
    shorter, longer = sorted((blocks * BLOCK, more * BLOCK))
    assert _lonely_ttft(prompt, longer) <= _lonely_ttft(prompt, shorter)


def _lonely_ttft(prompt: int, warm: int) -> float:
    engine = Engine(ROOMY)
    hashes = tuple(BlockHashes(range(40), BLOCK))
    if warm:
        run(engine, [(0.0, Request("warm", warm, 1, hashes[: warm // BLOCK]))])
    (first,) = [r for r in run(engine, [(100.0, Request("x", prompt, 2, hashes))]) if r.first_tokens]
    return first.end - 100.0


@given(workloads())
@QUICK
def test_events_replay_to_the_cache_that_the_engine_has(work):
    engine = Engine(SMALL)
    cached: set[int] = set()

    def replay(engine: Engine, result: StepResult) -> None:
        for block_hash in result.removed:
            cached.remove(block_hash)
        for event in result.stored:
            assert event.parent is None or event.parent in cached
            assert cached.isdisjoint(event.block_hashes)
            cached.update(event.block_hashes)
        assert all(engine.pool.holders(block_hash) is not None for block_hash in cached)

    run(engine, work, check=replay)
    assert cached == set(engine.pool.idle)


@given(workloads(), st.data())
@QUICK
def test_aborting_at_any_time_frees_what_the_request_held(work, data):
    engine = Engine(SMALL)
    alive = {request.id for _, request in work}
    for _, request in work:
        engine.add_request(request)
    now = 0.0
    while engine.busy:
        if alive and data.draw(st.booleans()):
            victim = data.draw(st.sampled_from(sorted(alive)))
            assert engine.abort(victim)
            assert not engine.abort(victim)
            alive.discard(victim)
        else:
            result = engine.step(now)
            alive -= set(result.finished)
            now = result.end
        assert_blocks_add_up(engine, StepResult(now, now))
    assert engine.pool.available == engine.pool.num_blocks


@given(workloads())
@QUICK
def test_no_step_runs_more_adapters_than_there_are_slots_nor_more_tokens_than_the_budget(work):
    def check(engine: Engine, _: StepResult) -> None:
        assert len(engine.adapters.running) <= SMALL.max_loras
        assert len(engine.adapters.in_slots) <= SMALL.max_loras
        assert len(engine.adapters.in_host_memory) <= SMALL.max_cpu_loras
        assert set(engine.adapters.running) <= set(engine.adapters.in_slots) <= set(engine.adapters.in_host_memory)
        assert engine.running <= SMALL.max_num_seqs

    run(Engine(SMALL), work, check=check)


def test_a_simulator_can_do_without_traces():
    engine = Engine(SMALL, trace=False)
    hashes = tuple(BlockHashes(range(40), BLOCK))
    results = run(engine, [(0.0, Request(i, 20, 10, hashes)) for i in range(6)], coast=True)
    assert not any(result.emitted or result.stored for result in results)
    assert sum(len(result.finished) for result in results) == 6


def test_blocks_of_an_output_that_becomes_known_token_by_token_are_cached_too():
    engine = Engine(ROOMY)
    hashes = BlockHashes(range(3), BLOCK)
    engine.add_request(Request("x", 3, 10, hashes))
    stored = []
    while engine.busy:
        result = engine.step(0.0)
        stored += [(event.first_block, event.block_hashes, event.parent) for event in result.stored]
        hashes.append(7)
    assert stored == [(0, (hashes[0],), None), (1, (hashes[1],), hashes[0]), (2, (hashes[2],), hashes[1])]


def test_an_idle_engine_takes_no_time():
    engine = Engine(SMALL)
    assert not engine.busy
    assert engine.step(3.0) == StepResult(3.0, 3.0)
    assert engine.advance(3.0, 9.0).steps == 0


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks_beside_decodes():
    engine = Engine(ROOMY)
    engine.add_request(Request("decode", 2, 20))
    engine.step(0.0)
    engine.add_request(Request("long", 20, 1))
    steps = [engine.step(float(second)) for second in range(1, 4)]
    assert [step.emitted for step in steps] == [("decode",), ("decode",), ("decode", "long")]
    assert steps[0].duration == pytest.approx(
        SMALL.step_overhead_s
        + 7 * SMALL.prefill_token_s
        + 28 * SMALL.prefill_attention_s
        + SMALL.decode_sequence_s
        + 3 * SMALL.kv_token_s
    )


def test_the_same_prompt_twice_in_one_step_is_computed_once():
    engine = Engine(ROOMY.with_changes(max_num_batched_tokens=64))
    hashes = tuple(BlockHashes(range(17), BLOCK))
    engine.add_request(Request("a", 17, 1, hashes))
    engine.add_request(Request("b", 17, 1, hashes))
    result = engine.step(0.0)
    assert [admission.cached_tokens for admission in result.admitted] == [0, 16]
    assert result.stored == (BlocksStored("a", 0, hashes, None),)


def test_when_blocks_run_out_the_latest_is_preempted_and_later_recomputed():
    engine = Engine(SMALL.with_changes(num_blocks=10, max_num_batched_tokens=40))
    engine.add_request(Request("old", 16, 12))
    engine.add_request(Request("new", 16, 12))
    results = run(engine, [])
    assert [result.preempted for result in results if result.preempted] == [("new",)]
    assert engine.preemptions == 1
    resumed = [a for result in results for a in result.admitted if a.resumed]
    assert [admission.request_id for admission in resumed] == ["new"]
    assert [result.finished for result in results if result.finished] == [("old",), ("new",)]


def test_a_half_computed_prompt_gives_way_when_no_block_is_left():
    engine = Engine(SMALL.with_changes(num_blocks=13))
    engine.add_request(Request("a", 7, 30))
    engine.add_request(Request("b", 8, 30))
    engine.step(0.0)
    engine.step(1.0)
    engine.step(2.0)
    engine.add_request(Request("long", 26, 1))
    preempted = [result.preempted for result in run(engine, []) if result.preempted]
    assert preempted[0] == ("long",)


def test_a_request_for_a_busy_slot_is_passed_over_and_served_later():
    engine = Engine(ROOMY.with_changes(max_loras=1, max_cpu_loras=1))
    engine.add_request(Request("first", 2, 3, adapter=ADAPTERS[0]))
    engine.add_request(Request("other", 2, 3, adapter=ADAPTERS[1]))
    engine.add_request(Request("base", 2, 3))
    result = engine.step(0.0)
    assert [admission.request_id for admission in result.admitted] == ["first", "base"]
    assert engine.waiting_adapters == ("a1",)
    assert result.adapters_loaded == result.adapters_activated == ("a0",)
    assert result.duration > SMALL.adapter_load_s
    assert engine.load_adapter(ADAPTERS[1]) == 0.0
    assert [r.finished for r in run(engine, []) if r.finished] == [("first", "base"), ("other",)]
    assert engine.adapters.in_slots == engine.adapters.in_host_memory == ("a1",)


def test_loading_ahead_costs_the_next_step_and_saves_the_request():
    engine = Engine(ROOMY)
    seconds = engine.load_adapter(ADAPTERS[0])
    assert seconds == pytest.approx(0.5 + 8000 * 1e-9)
    assert engine.load_adapter(ADAPTERS[0]) == 0.0
    engine.add_request(Request("x", 2, 3, adapter=ADAPTERS[0]))
    assert engine.advance(0.0, 9.0).duration > seconds
    assert engine.step(1.0).duration < seconds


def test_clearing_the_prefix_cache_waits_for_running_sequences():
    engine = Engine(ROOMY)
    hashes = tuple(BlockHashes(range(8), BLOCK))
    engine.add_request(Request("x", 8, 2, hashes))
    engine.step(0.0)
    assert not engine.clear_prefix_cache()
    engine.step(1.0)
    assert engine.pool.idle == tuple(reversed(hashes))
    assert engine.clear_prefix_cache()
    assert engine.pool.idle == ()
    assert_blocks_add_up(engine, StepResult(0, 0))


def test_without_prefix_caching_nothing_is_stored_or_found():
    engine = Engine(ROOMY.with_changes(prefix_caching=False))
    hashes = tuple(BlockHashes(range(9), BLOCK))
    results = run(engine, [(0.0, Request(i, 9, 2, hashes)) for i in range(2)])
    assert not any(result.stored for result in results)
    assert {a.cached_tokens for result in results for a in result.admitted} == {0}


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request("x", 0, 1), "at least one prompt token"),
        (Request("x", 1, 0), "at least one prompt token"),
        (Request("x", 40, 1), "max_model_len=40"),
        (Request("waiting", 1, 1), "in use"),
        (Request("running", 1, 1), "in use"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_with_the_reason(request_, said):
    engine = Engine(ROOMY)
    engine.add_request(Request("running", 20, 5))
    engine.step(0.0)
    engine.add_request(Request("waiting", 2, 5))
    with pytest.raises(ValueError, match=said):
        engine.add_request(request_)
