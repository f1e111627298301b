"""The agent's decisions, over all small worlds: pinned adapters win, slots are never exceeded, everything that can settles."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_crds.agent_api import Catalog, CatalogEntry
from sheaf_engine.agent.errors import AdapterError, Reason
from sheaf_engine.agent.plan import (
    LONGEST_BACKOFF,
    MOST_PREPARING,
    Facts,
    Failure,
    Files,
    Index,
    Load,
    Plan,
    Prepare,
    Resident,
    Unload,
    failed,
    make_plan,
    over,
    waits,
)

NAMES = list("abcdef")


def files(name: str, version: int = 1) -> Files:
    return Files(f"/cache/{name}/{version}", f"sha256:{version}", 4, 10)


def world(*entries: CatalogEntry, capacity: int = 2, ready: bool = True, **more: object) -> Facts:
    empty: dict[str, object] = {"resident": {}, "files": {}, "failures": {}, "requested": {}, "working": {}}
    return Facts(Index.of(Catalog(adapters=entries)), capacity, ready, 100.0, **(empty | more))  # type: ignore[arg-type]


def entry(name: str, *, pinned: bool = True, priority: int = 0) -> CatalogEntry:
    return CatalogEntry(name=name, source=f"file:///{name}", pinned=pinned, priority=priority)


def resident(*names: str) -> dict[str, Resident]:
    return {name: Resident(files(name).path) for name in names}


def test_pinned_adapters_are_prepared_and_then_loaded_by_priority() -> None:
    facts = world(entry("a"), entry("b", priority=3))
    assert make_plan(facts).prepare == (Prepare("b"), Prepare("a"))
    ready = replace(facts, files={"a": files("a"), "b": files("b")})
    assert make_plan(ready).engine == Load("b", "/cache/b/1")


def test_nothing_is_asked_of_an_engine_that_is_not_ready_but_files_are_prepared() -> None:
    facts = world(entry("a"), ready=False)
    assert make_plan(facts) == Plan((Prepare("a"),), None, ())
    assert make_plan(replace(facts, files={"a": files("a")})).engine is None


def test_a_request_goes_before_the_rest() -> None:
    facts = world(entry("a"), entry("b"), entry("c", pinned=False), capacity=3, requested={"c": 5.0, "b": 9.0})
    assert [step.name for step in make_plan(facts).prepare] == ["b", "c", "a"]


def test_only_so_many_fetches_run_at_once() -> None:
    facts = world(*(entry(f"x{i}") for i in range(20)), capacity=20)
    assert len(make_plan(facts).prepare) == MOST_PREPARING
    busy = replace(facts, working={"x0": "Preparing", "x1": "Loading"})
    assert [step.name for step in make_plan(busy).prepare] == ["x10", "x11", "x12"]


def test_one_engine_call_at_a_time() -> None:
    facts = world(entry("a"), entry("b"), files={"a": files("a"), "b": files("b")}, working={"a": "Loading"})
    assert make_plan(facts).engine is None


def test_another_version_replaces_the_resident_one() -> None:
    facts = world(entry("a"), files={"a": files("a", 2)}, resident=resident("a"))
    assert make_plan(facts).engine == Load("a", "/cache/a/2", replaces=True)


def test_another_version_that_nobody_waits_for_is_unloaded() -> None:
    facts = world(entry("a", pinned=False), files={"a": files("a", 2)}, resident=resident("a"))
    assert isinstance(make_plan(facts).engine, Unload)
    active = replace(facts, resident={"a": Resident("/cache/a/1", active=True)})
    assert make_plan(active).engine == Load("a", "/cache/a/2", replaces=True)


def test_what_is_resident_on_demand_is_verified_from_the_cache_only() -> None:
    facts = world(entry("a", pinned=False), resident=resident("a"))
    assert make_plan(facts).prepare == (Prepare("a", cached_only=True),)
    gone = replace(facts, failures={"a": Failure(Reason.FILES_MISSING, "", 1, 999.0)})
    assert isinstance(make_plan(gone).engine, Unload)


def test_a_passing_failure_of_what_nobody_wants_is_over_when_it_may_be_tried_again() -> None:
    failures = {
        "passed": Failure(Reason.SOURCE_UNREACHABLE, "", 1, 99.0),
        "waits": Failure(Reason.SOURCE_UNREACHABLE, "", 1, 101.0),
        "lasting": Failure(Reason.DIGEST_MISMATCH, "", 1, 99.0),
        "pinned": Failure(Reason.SOURCE_UNREACHABLE, "", 1, 99.0),
        "asked": Failure(Reason.SOURCE_UNREACHABLE, "", 1, 99.0),
    }
    entries = [entry(name, pinned=name == "pinned") for name in failures]
    assert over(world(*entries, failures=failures, requested={"asked": 1.0})) == {"passed"}


def test_what_left_the_catalog_is_unloaded_but_not_before_the_first_catalog() -> None:
    facts = world(resident=resident("a"))
    assert make_plan(facts).engine == Unload("a", "it is not in the catalog any more")
    assert make_plan(replace(facts, index=Index({}, (), 0, known=False))).engine is None


def test_a_failed_adapter_waits_and_its_slot_serves_others_meanwhile() -> None:
    failure = Failure(Reason.WRONG_BASE, "", 1, 200.0)
    facts = world(
        entry("a"),
        entry("b", pinned=False),
        capacity=1,
        failures={"a": failure},
        files={"b": files("b")},
        requested={"b": 1.0},
    )
    assert make_plan(facts).engine == Load("b", "/cache/b/1")
    assert waits(facts, "a")
    assert not waits(replace(facts, now=200.0), "a")
    assert Prepare("a") in make_plan(replace(facts, now=200.0)).prepare


def test_an_adapter_on_demand_finds_no_slot_where_pinned_ones_fill_them() -> None:
    facts = world(entry("a"), entry("b", pinned=False), capacity=1, files={"b": files("b")}, requested={"b": 1.0})
    assert make_plan(facts).short == ("b",)
    assert make_plan(facts).engine is None


def test_pinned_adapters_without_a_slot_are_told() -> None:
    assert make_plan(world(entry("a"), entry("b"), entry("c", priority=1))).short == ("b",)
    assert make_plan(world(entry("a"), capacity=0)).short == ("a",)


def test_the_idle_one_that_was_used_longest_ago_goes() -> None:
    loaded = {"b": Resident(files("b").path, 5.0), "c": Resident(files("c").path, 1.0, active=True)}
    known = {name: files(name) for name in "abc"}
    facts = world(entry("a"), *(entry(n, pinned=False) for n in "bc"), resident=loaded, files=known)
    assert make_plan(facts).engine == Unload("b", "its slot is needed for a")


def test_waits_double_up_to_a_bound_and_verdicts_wait_longest_at_once() -> None:
    passing, lasting = AdapterError(Reason.SOURCE_UNREACHABLE, "x"), AdapterError(Reason.WRONG_BASE, "x")
    one = failed(passing, None, 10.0)
    assert (one.attempts, one.retry_at) == (1, 11.0)
    assert failed(passing, one, 10.0).retry_at == 12.0
    assert failed(passing, replace(one, attempts=1000), 10.0).retry_at == 10.0 + LONGEST_BACKOFF
    assert failed(lasting, None, 10.0).retry_at == 10.0 + LONGEST_BACKOFF


@st.composite
def worlds(draw: st.DrawFn) -> Facts:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    entries = [entry(n, pinned=draw(st.booleans()), priority=draw(st.integers(-1, 1))) for n in names]
    capacity = draw(st.integers(0, 4))
    loaded = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=capacity))
    some = st.lists(st.sampled_from(NAMES), unique=True)
    return world(
        *entries,
        capacity=capacity,
        resident={
            n: Resident(files(n, draw(st.integers(1, 2))).path, draw(st.floats(0, 9)), draw(st.booleans()))
            for n in loaded
        },
        files={n: files(n) for n in draw(some)},
        failures={n: Failure(Reason.WRONG_BASE, "", 1, draw(st.sampled_from([50.0, 999.0]))) for n in draw(some)},
        requested={n: draw(st.floats(0, 9)) for n in draw(some) if n in names},
    )


def apply(facts: Facts, plan: Plan) -> Facts:
    loaded, known, asked = dict(facts.resident), dict(facts.files), dict(facts.requested)
    known |= {step.name: files(step.name) for step in plan.prepare}
    if isinstance(plan.engine, Load):
        loaded[plan.engine.name] = Resident(plan.engine.path, facts.now)
        asked.pop(plan.engine.name, None)
    elif plan.engine is not None:
        del loaded[plan.engine.name]
    failures = {n: f for n, f in facts.failures.items() if n not in {step.name for step in plan.prepare}}
    return replace(facts, resident=loaded, files=known, requested=asked, failures=failures)


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_plans_settle_within_the_slots_and_pinned_adapters_win(facts: Facts) -> None:
    kept = facts.index.pinned[: facts.capacity]
    for _ in range(60):
        plan = make_plan(facts)
        if isinstance(plan.engine, Unload) and plan.engine.why.startswith("its slot"):
            assert plan.engine.name not in kept
        if not plan.prepare and plan.engine is None:
            break
        facts = apply(facts, plan)
        assert len(facts.resident) <= facts.capacity
    else:
        pytest.fail("the plan never settles")
    for name in kept:
        assert waits(facts, name) or facts.resident[name].path == facts.files[name].path
    assert facts.resident.keys() <= facts.index.by_name.keys()
    for name in facts.requested:
        assert waits(facts, name) or name in plan.short or facts.resident[name].path == facts.files[name].path


@settings(max_examples=40, deadline=None)
@given(worlds())
def test_the_same_facts_give_the_same_plan(facts: Facts) -> None:
    assert make_plan(facts) == make_plan(replace(facts, resident=dict(reversed(facts.resident.items()))))
