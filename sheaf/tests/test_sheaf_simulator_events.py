"""The simulated gateway that hears engines' KV events knows what each of them holds, and nothing else."""

import pytest
from sheaf.simulator.calls import BYTES_PER_TOKEN, GATEWAY_TOKENS, Call, block_hashes
from sheaf.simulator.policies.events import listen
from sheaf.simulator.policies.product import Product
from sheaf.simulator.race import Race
from sheaf.simulator.traces import Chat, Shape, conversations, shaped
from sheaf_engine.timing import PRESETS

NAMES = [f"a{number}" for number in range(6)]


def raced(block: int, *, hears: bool = True) -> tuple[Race, Product, list[Call]]:
    """Conversations on three pods whose caches are much too small for them."""
    profile = PRESETS["h100-8b"].with_changes(block_size=block, num_blocks=40_000 // block)
    calls = shaped(conversations(Chat(seconds=16.0, rate=6.0), 7), Shape(adapters=NAMES, seed=2))
    policy = Product(0, hears=hears)
    race = Race(policy, 3, profile, dict.fromkeys(NAMES, 8))
    race.run(calls)
    return race, policy, calls


@pytest.mark.parametrize("block", [16, 64])
def test_it_knows_what_every_engine_holds(block):
    race, policy, calls = raced(block)
    policy.router.move_on(policy.router._unsettled[-1][1], race.clock.now + 10.0)
    keys = [(pod.name, 0) for pod in race.pods]
    most = []
    for call in calls:
        hashes, chain = block_hashes(call, "", (block, GATEWAY_TOKENS))
        found = policy.router.index.match(list(chain), keys)
        held = [pod.cached_tokens(hashes) // GATEWAY_TOKENS for pod in race.pods]
        most.append(max(held))
        for real, key in zip(held, keys, strict=True):
            assert found.get(key, 0) == real
            assert policy.router.index.depth(list(chain), b"", key).end == real * GATEWAY_TOKENS * BYTES_PER_TOKEN
    assert 100 < sum(most) < sum(call.input_tokens // GATEWAY_TOKENS for call in calls)


def test_engines_that_hash_larger_blocks_are_predicted():
    race, policy, _ = raced(128)
    assert not policy.router.index.announced
    assert race.outcome.hit_rate > 0.0


def test_those_that_were_gone_are_heard_anew():
    race, policy, _ = raced(64)
    policy.fleet_changed(race.pods[:1], race.clock.now)
    assert list(policy.router.index.announced) == [("pod-0", 0)]
    listen(policy.router.index, race.pods)
    assert len(policy.router.index.announced) == 3


def test_nothing_is_announced_to_who_does_not_listen():
    _, policy, _ = raced(64, hears=False)
    assert not policy.router.index.announced
