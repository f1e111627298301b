"""Every agent is followed by one long poll, bounded in number; the silent ones make their pods suspect."""

import asyncio

import pytest
from gateway_fixtures import model
from gateway_raw_servers import TOKEN, Agent, Engine
from sheaf_crds import Model
from sheaf_gateway.fleet import residency
from sheaf_gateway.fleet.agents import AGENT_LIMITS, AgentClient
from sheaf_gateway.fleet.residency import Residency
from sheaf_gateway.fleet.snapshot import PodSnapshot
from sheaf_gateway.fleet.store import FleetStore
from sheaf_gateway.proxy.upstream import Pool


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(residency, "_MAX_BACKOFF_S", 0.05)


@pytest.fixture
async def agents(closing):
    """`await agents(3)`: agents that answer."""

    async def start(count):
        made = [Agent(Engine(f"p{place}", "base")) for place in range(count)]
        for each in made:
            await each.open()
            closing.push_async_callback(each.close)
        return made

    return start


@pytest.fixture
def follow(closing, tmp_path):
    (tmp_path / "token").write_text(TOKEN)

    def start(**options):
        pool, store = Pool(AGENT_LIMITS), FleetStore()
        closing.push_async_callback(pool.close)
        followed = Residency(store, AgentClient(pool, tmp_path / "token"), **options)
        closing.push_async_callback(followed.stop)
        return store, followed

    return start


def pod(name, url, **facts):
    return {("pods", name): PodSnapshot.model_validate(
        {"name": name, "uid": "u", "model": "base", "engineUrl": "http://127.0.0.1:9", "agentUrl": url, "ready": True, **facts})}  # fmt: skip


def declared(agents):
    changes = {("models", "base"): Model.model_validate(model("base"))}
    for place, agent in enumerate(agents):
        changes |= pod(f"p{place}", agent.url)
    return changes


async def until(truth, within=10.0):
    async with asyncio.timeout(within):
        while not truth():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_all_agents_are_asked_at_once_and_none_without_the_token(agents, follow):
    many, (store, followed) = await agents(20), follow()
    store.apply(declared(many))
    await followed.first_round(1.0)
    assert len(store.states) == 20
    assert {seen.headers.get("authorization") for agent in many for seen in agent.seen} == {f"Bearer {TOKEN}"}


async def test_polls_wait_for_different_times(agents, follow):
    many, (store, followed) = await agents(5), follow(seed=3)
    store.apply(declared(many))
    await followed.first_round(1.0)
    await until(lambda: all(len(agent.seen) >= 2 for agent in many))
    waits = {float(agent.seen[1].path.partition("wait=")[2].partition("&")[0]) for agent in many}
    assert len(waits) == 5
    assert all(20 <= wait <= 30 for wait in waits)


async def test_a_poll_keeps_its_connection(agents, follow):
    (agent,), (store, followed) = await agents(1), follow()
    store.apply(declared([agent]))
    await followed.first_round(1.0)
    for _ in range(5):
        seen = len(agent.seen)
        agent.changed()
        await until(lambda seen=seen: len(agent.seen) > seen)
    assert not agent.gone.is_set()


async def test_an_agent_that_does_not_answer_makes_its_pod_suspect_until_it_does(agents, follow):
    many, (store, followed) = await agents(2), follow()
    await many[0].close()
    store.apply(declared(many))
    await followed.first_round(1.0)
    await until(lambda: store.suspects == {"p0"})
    assert store.fleet.ready == {"base": 1}
    await many[0].open()
    await until(lambda: store.fleet.ready == {"base": 2})


async def test_agents_on_silent_nodes_are_asked_anew_and_often(agents, follow, monkeypatch):
    monkeypatch.setattr(residency, "_UNHEARD_WAIT_S", 0.05)
    many, (store, followed) = await agents(2), follow()
    store.apply(declared(many))
    await followed.first_round(1.0)
    await until(lambda: all(len(agent.seen) == 2 for agent in many))
    await many[1].close()
    store.apply({**pod("p0", many[0].url, unheard=True), **pod("p1", many[1].url, unheard=True)})
    await until(lambda: store.suspects == {"p1"})
    await until(lambda: len(many[0].seen) == 4)
    assert "after" not in many[0].seen[2].path
    assert float(many[0].seen[3].path.partition("wait=")[2].partition("&")[0]) < 0.1
    assert store.fleet.ready == {"base": 1}


async def test_an_agent_that_hangs_up_twice_makes_its_pod_suspect(start_engine, agents, follow):
    async def hang_up(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    endpoint = await start_engine(hang_up)
    (other,), (store, followed) = await agents(1), follow()
    store.apply({**declared([other]), **pod("bad", f"http://127.0.0.1:{endpoint.port}")})
    await followed.first_round(1.0)
    await until(lambda: store.suspects == {"bad"})


async def test_an_agent_that_talks_nonsense_is_there_all_the_same(agents, follow):
    (agent,), (store, followed) = await agents(1), follow()
    agent.load = {"running": "a few"}
    store.apply(declared([agent]))
    await followed.first_round(1.0)
    await until(lambda: len(agent.seen) > 3)
    assert (store.states, store.suspects) == ({}, set())


async def test_a_pod_that_becomes_ready_is_asked_again_without_waiting(agents, follow, monkeypatch):
    monkeypatch.setattr(residency, "_MAX_BACKOFF_S", 30.0)
    monkeypatch.setattr(residency, "_FIRST_BACKOFF_S", 30.0)
    (agent,), (store, followed) = await agents(1), follow()
    await agent.close()
    store.apply({**declared([]), **pod("p0", agent.url, ready=False)})
    await followed.first_round(1.0)
    await agent.open()
    await asyncio.sleep(0.05)
    assert store.states == {}
    store.apply(pod("p0", agent.url))
    await until(lambda: "p0" in store.states)


async def test_a_pod_that_is_not_ready_yet_is_no_cause_for_alarm(agents, follow, logged):
    (agent,), (store, followed) = await agents(1), follow()
    await agent.close()
    store.apply({**declared([]), **pod("p0", agent.url, ready=False)})
    await followed.first_round(1.0)
    assert logged == []


async def test_no_more_agents_are_followed_than_allowed_and_the_next_takes_a_free_place(agents, follow):
    many, (store, followed) = await agents(4), follow(max_pollers=3)
    store.apply(declared(many))
    await followed.first_round(1.0)
    assert len(store.states) == 3
    gone = next(iter(store.states))
    store.apply({("pods", gone): None})
    await until(lambda: len(store.states) == 3)
    assert gone not in store.states


async def test_a_silent_agent_does_not_hold_up_the_start_for_long(start_engine, follow, logged):
    async def silent(reader, writer):
        await reader.read()

    endpoint = await start_engine(silent)
    store, followed = follow()
    store.apply({**declared([]), **pod("p", f"http://127.0.0.1:{endpoint.port}")})
    await followed.first_round(0.1)
    assert [(line["event"], line["pods"]) for line in logged] == [("agents_silent", 1)]


async def test_pods_that_go_are_not_waited_for(start_engine, follow):
    async def silent(reader, writer):
        await reader.read()

    endpoint = await start_engine(silent)
    store, followed = follow()
    store.apply({**declared([]), **pod("p", f"http://127.0.0.1:{endpoint.port}")})
    waiting = asyncio.create_task(followed.first_round(10.0))
    await asyncio.sleep(0.02)
    store.apply({("pods", "p"): None})
    async with asyncio.timeout(1):
        await waiting


async def test_many_pods_are_asked_less_often(agents, follow, monkeypatch):
    monkeypatch.setattr(residency, "MAX_POLLS_PER_S", 4.0)
    many, (store, followed) = await agents(2), follow()
    store.apply(declared(many))
    await followed.first_round(1.0)
    ends = asyncio.get_running_loop().time() + 1.0
    while asyncio.get_running_loop().time() < ends:
        for agent in many:
            agent.changed()
        await asyncio.sleep(0.01)
    assert all(len(agent.seen) <= 5 for agent in many)
