"""Agents may report anything: what cannot be true is brought within bounds, and no request ever stumbles over it."""

import asyncio
import json

import msgspec
import pytest
from gateway_fixtures import ask, chat, make_world  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sheaf_crds.agent_api import AgentState
from sheaf_gateway.admission.slots import adapted
from sheaf_gateway.fleet.assemble import pod_view
from sheaf_gateway.fleet.credible import MOST, MOST_REQUESTS, credible
from sheaf_gateway.fleet.snapshot import PodSnapshot
from sheaf_gateway.gossip.telling import Teller
from sheaf_gateway.gossip.wire import decode
from sheaf_gateway.routing.choose import explain
from sheaf_gateway.routing.router import Ask, Capacity, Router

CHAT = "/v1/chat/completions"
FUZZ = settings(max_examples=60, deadline=None)

figures = st.integers(-20, 20) | st.integers() | st.sampled_from([10**309, -(10**309), 2**53, 2**64, 10**4000])
times = st.floats() | st.sampled_from([10**309, -1])
words = st.text(max_size=6)
adapters = st.fixed_dictionaries(
    {"name": words, "state": st.sampled_from(["Resident", "Loading", "Failed"])}, optional={"digest": words}
)
reports = st.fixed_dictionaries(
    {"engine": st.sampled_from(["Ready", "Ready", "Stopped"])},
    optional={
        "version": figures,
        "engineEpoch": figures,
        "maxModelLen": figures,
        "blockSize": figures,
        "capacity": figures,
        "kvTokens": figures,
        "draining": st.booleans(),
        "drainDeadline": times,
        "load": st.fixed_dictionaries(
            {}, optional={"running": figures, "waiting": figures, "kvUsage": st.floats(0, 1) | times}
        ),
        "adapters": st.lists(adapters, max_size=3),
    },
)
POD = PodSnapshot.model_validate({"name": "p", "model": "m", "engineUrl": "http://127.0.0.1:1", "ready": True})
WANTED = Ask(request_id="r", model="m", adapter="a", chain=[1, 2, 3], prompt_bytes=900)


def told(report: dict) -> AgentState | None:
    """The report as the gateway takes it; None where it is refused."""
    try:
        return credible(AgentState.model_validate_json(json.dumps(report)))
    except ValidationError:
        return None


@FUZZ
@given(st.lists(reports, min_size=1, max_size=3), st.integers(0, 20))
def test_whatever_agents_report_requests_are_routed(found, own):
    states = [state for state in map(told, found) if state is not None]
    pods = tuple(pod_view(POD.model_copy(update={"name": f"p{n}"}), state, own) for n, state in enumerate(states))
    router = Router()
    teller = router.teller = Teller(1, lambda: None)
    sizes = [state.kv_tokens for state in states if state.kv_tokens]
    router.capacities["m"] = Capacity(slots=2, kv_tokens=min(sizes, default=0))
    for turn in range(4):
        decision = router.decide(WANTED, pods, float(turn))
        assert len(explain(decision)) < 200
        msgspec.json.encode(decision.told())
        if decision.pod is not None:
            ticket = router.sent(WANTED, decision, pods[decision.place], float(turn))
            router.answered(ticket, turn + 0.5, streamed=True)
            router.finished(ticket)
    for raw in teller.flush(1.0):
        decode(raw)
    for state in states:
        load = state.load
        assert 1 <= adapted(16, own=own, running=load.running, waiting=load.waiting, ceiling=256) <= 256


@FUZZ
@given(reports)
def test_what_can_be_true_is_left_as_it_is(report):
    try:
        state = AgentState.model_validate_json(json.dumps(report))
    except ValidationError:
        return
    found = credible(state)
    assert credible(found) is found
    assert found.adapters is state.adapters
    assert 0 <= found.load.running <= MOST_REQUESTS
    assert 0 <= found.engine_epoch <= MOST
    assert 0.0 <= found.drain_deadline <= MOST


@pytest.mark.parametrize(
    "load",
    [{"running": 10**400, "waiting": 10**400}, {"running": -8, "waiting": 8}, {"running": -(10**400), "waiting": 3}],
)
async def test_an_absurd_load_makes_no_request_fail(make_world, ask, load):  # noqa: F811
    world = await make_world()
    world.agents[0].load = {**load, "kvUsage": 1.0}
    world.agents[0].epoch = -(10**30)
    world.agents[0].changed()
    await world.until(lambda: world.gateway.store.states["base-0"].version == 2)
    answers = await asyncio.gather(*(ask(world, "POST", CHAT, chat(text=f"{n}")) for n in range(8)))
    assert [status for status, _, _ in answers] == [200] * 8


async def test_a_report_that_is_dear_to_read_is_asked_for_less_often(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1})
    agent = world.agents[0]
    plain = agent.state

    def long() -> dict:
        agent.version += 1
        return {**plain(), "junk": list(range(200_000))}

    agent.state = long
    agent.changed()
    asked = len(agent.seen)
    await asyncio.sleep(0.6)
    assert len(agent.seen) - asked <= 6
    assert (await ask(world, "POST", CHAT, chat()))[0] == 200


async def test_a_report_beyond_the_bound_is_no_report(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1})
    agent = world.agents[0]
    agent.load = {"running": 3, "junk": "x" * 5 * 2**20}
    agent.changed()
    await world.until(lambda: len(agent.seen) >= 3)
    assert world.gateway.store.states["base-0"].load.running == 0
    assert (await ask(world, "POST", CHAT, chat()))[0] == 200
