"""Peer policies choose as their sources say: each table of loads and matches gives the published choice."""

from collections import Counter
from typing import Any

import pytest
from sheaf.simulator.calls import Call, block_hashes
from sheaf.simulator.clock import Clock
from sheaf.simulator.flights import Flight
from sheaf.simulator.pods import Pod
from sheaf.simulator.policies.balance import BoundedHash, LeastRequest, RoundRobin, Session
from sheaf.simulator.policies.base import Policy
from sheaf.simulator.policies.registry import POLICIES
from sheaf.simulator.policies.scorers import Dynamo, LlmD, queue_scores
from sheaf.simulator.policies.trees import CacheAware, History, Preble, PrefixAware, PrefixCache
from sheaf.simulator.race import Race
from sheaf.simulator.traces import Chat, Shape, conversations, shaped
from sheaf_engine.timing import PRESETS, Adapter

PROFILE = PRESETS["h100-8b"].with_changes(block_size=64, num_blocks=6250)


def pods(count: int) -> list[Pod[Flight]]:
    clock = Clock()
    return [
        Pod(f"pod-{place}", "model", PROFILE, clock, lambda *_: None, lambda _: None, lambda _: None)
        for place in range(count)
    ]


def flight(number: int = 1, names: tuple[int, ...] = (1, 2), size: int = 640, **more: Any) -> Flight:
    segments = tuple((name, size) for name in names)
    call = Call(0.0, "model", segments, size * len(names), 10, **more)
    hashes, chain = block_hashes(call, "", (64, 64))
    return Flight(number, call, hashes, chain)


def load(policy: Policy, **running: int) -> None:
    for name, count in running.items():
        policy.running[name.replace("_", "-")] = count


def picked(policy: Policy, asked: Flight, fleet: list[Pod[Flight]], now: float = 0.0) -> str:
    return policy.choose(asked, fleet, now).name


def warm(pod: Pod[Flight], asked: Flight) -> None:
    """Put its prompt into the pod's cache."""
    pod.submit(asked, asked.call.input_tokens, 1, asked.hashes, None)
    pod._clock.run()


def test_round_robin_goes_round():
    policy, fleet = RoundRobin(), pods(3)
    assert [picked(policy, flight(n), fleet) for n in range(4)] == ["pod-0", "pod-1", "pod-2", "pod-0"]


def test_least_request_takes_the_fewest_and_spreads_ties():
    policy, fleet = LeastRequest(), pods(3)
    load(policy, pod_0=1)
    assert Counter(picked(policy, flight(n), fleet) for n in range(200)).keys() == {"pod-1", "pod-2"}


def test_a_session_stays_where_it_is_when_another_pod_leaves():
    policy, fleet = Session(), pods(5)
    before = {n: picked(policy, flight(session=n), fleet) for n in range(200)}
    after = {n: picked(policy, flight(session=n), fleet[:-1]) for n in range(200)}
    assert len(set(before.values())) == 5
    assert all(after[n] == name for n, name in before.items() if name != "pod-4")


def test_chwbl_never_passes_its_load_bound_and_follows_its_key_below_it():
    policy, fleet = BoundedHash(), pods(4)
    home = picked(policy, flight(), fleet)
    assert picked(policy, flight(2, names=(1, 2, 9)), fleet) == home
    for number in range(100):
        chosen = policy.choose(flight(number), fleet, 0.0)
        assert policy.running[chosen.name] <= (number + 1) / 4 * 1.25
        policy.sent(flight(number), chosen, 0.0)


def test_chwbl_keys_by_adapter():
    policy, fleet = BoundedHash(), pods(8)
    assert len({picked(policy, flight(adapter=f"a{n}"), fleet) for n in range(40)}) > 4


def test_cache_aware_follows_a_match_above_its_threshold_until_loads_part():
    policy, fleet = CacheAware(), pods(2)
    policy.tree.add(flight().chain, "pod-1", 0.0)
    load(policy, pod_1=60)
    assert picked(policy, flight(), fleet) == "pod-1"
    load(policy, pod_0=1, pod_1=66)
    assert picked(policy, flight(), fleet) == "pod-0"


def test_cache_aware_takes_the_least_loaded_below_its_threshold():
    policy, fleet = CacheAware(), pods(2)
    policy.tree.add(flight().chain, "pod-1", 0.0)
    load(policy, pod_1=5)
    assert picked(policy, flight(names=(1, 3, 4, 5, 6)), fleet) == "pod-0"


def test_prefix_cache_leaves_overloaded_pods_out():
    policy, fleet = PrefixCache(), pods(3)
    policy.table.add(flight().chain, "pod-2", 0.0)
    load(policy, pod_0=1, pod_1=1, pod_2=1)
    assert picked(policy, flight(), fleet) == "pod-2"
    load(policy, pod_2=10)
    assert picked(policy, flight(), fleet) == "pod-0"


def test_prefix_cache_forgets_after_twenty_minutes():
    policy, fleet = PrefixCache(), pods(2)
    policy.table.add(flight().chain, "pod-1", 0.0)
    load(policy, pod_1=1)
    assert picked(policy, flight(), fleet, now=1201.0) == "pod-0"


def test_prefix_aware_knows_no_load():
    policy, fleet = PrefixAware(1), pods(4)
    home = picked(policy, flight(), fleet)
    policy.running[home] = 1000
    assert {picked(policy, flight(names=(1, 7)), fleet) for _ in range(20)} == {home}


def test_preble_exploits_what_is_mostly_shared_and_explores_the_rest():
    policy, fleet = Preble(), pods(2)
    policy.tree.add(flight(names=(1, 2, 3)).chain, "pod-1", 0.0)
    load(policy, pod_1=3)
    assert picked(policy, flight(names=(1, 2, 3, 4)), fleet) == "pod-1"
    assert picked(policy, flight(names=(1, 8, 9, 10)), fleet) == "pod-0"


def test_prebles_load_forgets_after_its_window():
    policy, fleet = Preble(), pods(1)
    policy.choose(flight(), fleet, 0.0)
    assert policy.load(fleet[0], 1.0) > 0.0
    assert policy.load(fleet[0], 200.0) == pytest.approx(0.0)


def test_llm_ds_queue_score_is_the_published_one():
    assert queue_scores([0, 5, 10]) == [1.0, 0.5, 0.0]
    assert queue_scores([3, 3]) == [1.0, 1.0]


def test_llm_d_weighs_prefix_three_to_two():
    policy, fleet = LlmD(), pods(2)
    policy.history.add(flight().chain, "pod-1", 0.0)
    assert picked(policy, flight(), fleet) == "pod-1"
    policy.metrics.refresh(fleet, 1.0)
    policy.metrics.waiting["pod-1"], policy.metrics.usage["pod-1"] = 9, 0.9
    assert picked(policy, flight(2), fleet, now=1.0) == "pod-0"


def test_llm_d_sees_at_most_256_engine_blocks_of_a_prompt():
    policy, fleet = LlmD(), pods(2)
    long = flight(names=tuple(range(10)), size=1024)
    policy.history.add(long.chain[:64], "pod-1", 0.0)
    other = flight(names=(0, 1, 2, 3, 99, 98), size=1024)
    assert picked(policy, other, fleet) == "pod-1"


def test_lora_affinity_prefers_who_runs_the_adapter():
    policy, fleet = LlmD(lora=True), pods(3)
    fleet[2].submit(flight(9), 100, 50, [], Adapter("a", 8))
    fleet[2]._clock.run(0.01)
    assert picked(policy, flight(adapter="a"), fleet) == "pod-2"


def test_dynamo_adds_prefill_not_cached_to_blocks_that_decode():
    policy, fleet = Dynamo(), pods(2)
    warm(fleet[1], flight(7))
    asked = flight()
    assert policy.cost(asked, fleet[0], 0) == 20.0
    assert policy.cost(asked, fleet[1], 1280) == 0.0
    chosen = policy.choose(asked, fleet, 0.0)
    assert chosen.name == "pod-1"
    asked.pod = chosen
    policy.sent(asked, chosen, 0.0)
    assert policy.cost(flight(2), fleet[1], 1280) == 20.0
    policy.first_token(asked, 1.0)
    policy.finished(asked, 2.0)
    assert policy.cost(flight(2), fleet[1], 1280) == 0.0


def test_a_history_forgets_the_oldest_and_the_end_of_a_prompt_first():
    history = History(3)
    history.add([1, 2], "p", 0.0)
    history.add([5, 6], "p", 1.0)
    assert history.matched([1, 2], "p") == 1
    history.expire(0.5)
    assert history.matched([1, 2], "p") == 0
    assert history.matched([5, 6], "p") == 2


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_serves_every_request_and_replays_bit_for_bit(name):
    names = [f"a{n}" for n in range(12)]
    calls = shaped(conversations(Chat(seconds=20.0, rate=6.0), 3), Shape(adapters=names, seed=3))
    outcomes = [Race(POLICIES[name](5), 3, PROFILE, dict.fromkeys(names, 8)).run(calls) for _ in range(2)]
    assert len(outcomes[0].ttft) == len(calls)
    assert outcomes[0] == outcomes[1]
    assert min(outcomes[0].ttft) > 0.0


def test_ours_beats_what_knows_no_prefix_and_no_slot():
    names = [f"a{n}" for n in range(24)]
    calls = shaped(conversations(Chat(seconds=25.0, rate=24.0), 1), Shape(adapters=names, seed=1))
    ours, blind = (
        Race(POLICIES[name](1), 3, PROFILE, dict.fromkeys(names, 8)).run(calls) for name in ("sheaf", "least-request")
    )
    assert ours.hit_rate > blind.hit_rate
    assert sum(ours.ttft) < sum(blind.ttft)
