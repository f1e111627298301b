"""Several simulated gateways: told at once they decide as one, told soon nearly so, and apart worse."""

import pytest
from sheaf.simulator.outcome import Outcome
from sheaf.simulator.policies import gateways, product
from sheaf.simulator.policies.base import Policy
from sheaf.simulator.policies.gateways import Gateways
from sheaf.simulator.policies.product import Product
from sheaf.simulator.race import Race
from sheaf.simulator.traces import Chat, Shape, conversations, shaped
from sheaf_engine.timing import PRESETS

ADAPTERS = {f"adapter-{place}": 16 for place in range(8)}


@pytest.fixture(scope="module")
def calls():
    found = list(conversations(Chat(seconds=40.0, rate=6.0), 0))
    return shaped(found, Shape(adapters=list(ADAPTERS), seed=1))


def raced(policy: Policy, calls) -> Outcome:
    profile = PRESETS["h100-8b"].with_changes(block_size=64, num_blocks=2_000, max_loras=4, max_cpu_loras=8)
    return Race(policy, 4, profile, ADAPTERS).run(calls)


def mean(outcome: Outcome) -> float:
    return sum(outcome.ttft) / len(outcome.ttft)


def test_gateways_that_tell_each_other_at_once_decide_exactly_as_one(calls, monkeypatch):
    monkeypatch.setattr(gateways, "FLUSH_S", 0.0)
    monkeypatch.setattr(product, "REPORT_S", 0.0)
    many = Gateways(0, count=3, delay=0.0)
    for gateway in many.gateways[1:]:
        gateway.router.models = many.gateways[0].router.models
    together, one = raced(many, calls), raced(Product(0), calls)
    assert list(together.ttft) == list(one.ttft)
    assert list(together.cached) == list(one.cached)


def test_gateways_that_tell_each_other_soon_find_more_in_caches_than_apart(calls):
    told, apart = raced(Gateways(0, count=3), calls), raced(Gateways(0, count=3, delay=None), calls)
    assert told.hit_rate > apart.hit_rate
    assert mean(told) < mean(apart)


def test_nothing_is_left_in_any_ledger_when_all_is_done(calls):
    many = Gateways(0, count=2)
    raced(many, calls)
    many._catch_up(1e9)
    assert all(not ledger.running for each in many.gateways for ledger in each.router.ledgers.values())
