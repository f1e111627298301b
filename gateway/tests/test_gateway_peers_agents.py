"""Workers that divide the agents among themselves: each agent is asked by one, known to all, and never lost."""

import asyncio

import pytest
from gateway_raw_servers import TOKEN, Agent, Engine
from sheaf_gateway.fleet import residency as module
from sheaf_gateway.fleet.agents import AGENT_LIMITS, AgentClient
from sheaf_gateway.fleet.residency import Residency
from sheaf_gateway.fleet.snapshot import read_snapshot
from sheaf_gateway.fleet.store import FleetStore
from sheaf_gateway.peers import agents as shared
from sheaf_gateway.peers.agents import SharedAgents
from sheaf_gateway.proxy.upstream import Pool

PODS = 6


async def until(truth, within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while not truth():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Worker:
    """What a worker has of the fleet."""

    def __init__(self, room, name: str) -> None:
        self.store, self.pool = FleetStore(), Pool(AGENT_LIMITS)
        self.residency = Residency(self.store, AgentClient(self.pool, room / "token"))
        self.shared = SharedAgents(room, name, self.residency)

    def running(self, pod: str) -> int:
        state = self.store.states.get(pod)
        return -1 if state is None else state.load.running

    async def close(self) -> None:
        await self.shared.close()
        await self.residency.stop()
        await self.pool.close()


@pytest.fixture
async def agents(closing):
    made = []
    for place in range(PODS):
        agent = Agent(Engine(f"pod-{place}", "base"))
        await agent.open()
        closing.push_async_callback(agent.close)
        made.append(agent)
    return made


@pytest.fixture
def start(closing, tmp_path, agents, monkeypatch):
    """`worker = await start("name")`: one more worker that follows the agents."""
    monkeypatch.setattr(shared, "LOOK_S", 0.02)
    monkeypatch.setattr(module, "_OTHERS_LOOK_S", 0.05)
    (tmp_path / "token").write_text(TOKEN)

    async def make(name: str) -> Worker:
        made = Worker(tmp_path, name)
        closing.push_async_callback(made.close)
        pods = [
            {
                "name": a.engine.name,
                "uid": "u",
                "model": "base",
                "engineUrl": "http://127.0.0.1:1",
                "agentUrl": a.url,
                "ready": True,
            }
            for a in agents
        ]
        made.store.apply_snapshot(read_snapshot({"version": 1, "pods": pods})[0])
        await made.residency.first_round(2.0)
        return made

    return make


def polls(agents) -> int:
    return sum("after=" in seen.path for agent in agents for seen in agent.seen)


async def test_every_agent_belongs_to_one_worker(start, agents):
    workers = [await start(name) for name in ("w0", "w1", "w2")]
    await until(lambda: all(len(worker.shared._siblings.targets) == 2 for worker in workers))
    owners = [[worker.shared.mine(agent.engine.name) for worker in workers] for agent in agents]
    assert [sum(row) for row in owners] == [1] * PODS
    assert workers[0].shared._siblings.names == ("w1", "w2")


async def test_what_one_worker_learns_all_know(start, agents):
    one, other = await start("w0"), await start("w1")
    await until(lambda: one.shared._siblings.targets and other.shared._siblings.targets)
    for worker in (one, other):
        assert all(worker.running(agent.engine.name) == 0 for agent in agents)
    await asyncio.sleep(0.3)
    for agent in agents:
        agent.load = {"running": 7, "waiting": 0, "kvUsage": 0.5}
        agent.changed()
    await until(lambda: all(w.running(a.engine.name) == 7 for w in (one, other) for a in agents))
    await asyncio.sleep(0.2)
    before = polls(agents)
    for agent in agents:
        agent.load = {"running": 8, "waiting": 0, "kvUsage": 0.5}
        agent.changed()
    await until(lambda: all(w.running(a.engine.name) == 8 for w in (one, other) for a in agents))
    await asyncio.sleep(0.2)
    assert polls(agents) - before <= PODS + 1, "each agent was asked again by one worker"


async def test_the_share_of_a_worker_that_goes_is_taken_over(start, agents):
    one, other = await start("w0"), await start("w1")
    await until(lambda: one.shared._siblings.targets and other.shared._siblings.targets)
    await asyncio.sleep(0.2)
    await one.close()
    await until(lambda: not other.shared._siblings.targets)
    await asyncio.sleep(0.2)
    for agent in agents:
        agent.load = {"running": 9, "waiting": 0, "kvUsage": 0.5}
        agent.changed()
    await until(lambda: all(other.running(agent.engine.name) == 9 for agent in agents))


async def test_an_agent_that_does_not_answer_one_worker_is_doubted_by_all(start, agents):
    one, other = await start("w0"), await start("w1")
    await until(lambda: one.shared._siblings.targets and other.shared._siblings.targets)
    await asyncio.sleep(0.3)
    await agents[0].close()
    await until(lambda: all("pod-0" in worker.store.suspects for worker in (one, other)), 4.0)
    await agents[0].open()
    await until(lambda: not any("pod-0" in worker.store.suspects for worker in (one, other)), 6.0)


async def test_who_hears_nothing_asks_by_itself(start, agents, monkeypatch):
    monkeypatch.setattr(module, "OTHERS_SILENT_S", 0.1)
    one, other = await start("w0"), await start("w1")
    other.residency.hear = lambda key, state: None
    await until(lambda: one.shared._siblings.targets and other.shared._siblings.targets)
    await asyncio.sleep(0.3)
    for agent in agents:
        agent.load = {"running": 5, "waiting": 0, "kvUsage": 0.5}
        agent.changed()
    await until(lambda: all(other.running(agent.engine.name) == 5 for agent in agents))


async def test_garbage_and_pods_that_are_not_there_change_nothing(start):
    one = await start("w0")
    before = dict(one.store.states)
    for data in (b"", b"\xc1", b"\x94\xa1a\xa1b\xa1c\xc4\x02{}", b"\x94\xa1a\xa1b\xa1c\xc0"):
        one.shared._hear(data)
    assert one.store.states == before
