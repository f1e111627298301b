"""What the agent promises of adapters in a living engine: loaded, verified, evicted, brought back."""

import asyncio
import time
from pathlib import Path

import pytest
from engine_agent_helpers import FakeEngine, agent_running, engine_running, entry, is_in, write_adapter
from sheaf_crds.digest import directory_digest


def source(tmp_path: Path, name: str, **more: int) -> Path:
    return write_adapter(tmp_path / "sources" / name, **more)


async def test_a_pinned_adapter_is_loaded_from_a_path_that_ends_in_its_digest(tmp_path: Path) -> None:
    folder = source(tmp_path, "pirate")
    digest = directory_digest(folder)
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        await agent.put(entry("pirate", folder, pinned=True, digest=digest, rank=4))
        state = await agent.until(is_in("pirate", "Resident"))
        found = state["adapters"][0]
        assert (found["digest"], found["rank"], found["reason"]) == (digest, 4, "")
        assert found["sizeBytes"] == sum(file.stat().st_size for file in folder.iterdir())
        assert engine.adapters["pirate"] == str(tmp_path / "adapters" / "pirate" / digest.removeprefix("sha256:"))
        assert (state["engine"], state["engineVersion"], state["blockSize"]) == ("Ready", "0.32.0", 32)
        assert (state["maxModelLen"], state["capacity"], state["catalogGeneration"]) == (2048, 4, 1)


async def test_an_adapter_on_demand_is_loaded_when_a_request_comes_for_it(tmp_path: Path) -> None:
    folder = source(tmp_path, "chef")
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        await agent.until(lambda state: state["engine"] == "Ready")
        await agent.put(entry("chef", folder))
        assert engine.calls == []
        answer = await agent.http.post("/v1/adapters/chef/load")
        assert (answer.status_code, answer.json()["state"]) == (200, "Resident")
        again = await agent.http.post("/v1/adapters/chef/load")
        assert again.json() == answer.json()
        assert engine.loads() == ["chef"]


async def test_a_restarted_engine_gets_its_pinned_adapters_back_and_the_epoch_grows(tmp_path: Path) -> None:
    folder = source(tmp_path, "pirate")
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        await agent.put(entry("pirate", folder, pinned=True))
        before = await agent.until(is_in("pirate", "Resident"))
        engine.restart()
        after = await agent.until(
            lambda state: state["engineEpoch"] > before["engineEpoch"] and is_in("pirate", "Resident")(state)
        )
        assert engine.loads() == ["pirate", "pirate"]
        assert after["engineEpoch"] == 1010


async def test_lost_adapters_alone_show_a_restart_where_the_engine_tells_no_start_time(tmp_path: Path) -> None:
    folder = source(tmp_path, "pirate")
    async with engine_running(FakeEngine(started=None)) as engine, agent_running(tmp_path, engine) as agent:
        await agent.put(entry("pirate", folder, pinned=True))
        before = await agent.until(is_in("pirate", "Resident"))
        engine.restart()
        await agent.until(lambda state: state["engineEpoch"] == before["engineEpoch"] + 1)
        await agent.until(is_in("pirate", "Resident"))


async def test_an_adapter_that_left_the_catalog_leaves_the_engine(tmp_path: Path) -> None:
    folder = source(tmp_path, "pirate")
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        await agent.put(entry("pirate", folder, pinned=True))
        await agent.until(is_in("pirate", "Resident"))
        await agent.put(generation=2)
        await agent.until(lambda state: state["adapters"] == [])
        assert engine.adapters == {}


async def test_a_changed_digest_swaps_the_adapter_by_a_new_path(tmp_path: Path) -> None:
    old, new = source(tmp_path, "v1", seed=1), source(tmp_path, "v2", seed=2)
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        await agent.put(entry("pirate", old, pinned=True, digest=directory_digest(old)))
        await agent.until(is_in("pirate", "Resident"))
        wanted = directory_digest(new)
        await agent.put(entry("pirate", new, pinned=True, digest=wanted), generation=2)
        await agent.until(lambda s: is_in("pirate", "Resident")(s) and s["adapters"][0]["digest"] == wanted)
        assert engine.adapters["pirate"].endswith(wanted.removeprefix("sha256:"))
        assert [kind for kind, _, _ in engine.calls] == ["load", "unload", "load"]
        assert await asyncio.to_thread(Path(engine.calls[0][2]).is_dir), "running requests may still read the old files"


async def test_a_new_version_that_is_refused_leaves_the_old_one_serving_and_says_why(tmp_path: Path) -> None:
    good, bad = source(tmp_path, "good"), source(tmp_path, "bad", rank=64)
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        await agent.put(entry("pirate", good, pinned=True))
        await agent.until(is_in("pirate", "Resident"))
        await agent.put(entry("pirate", bad, pinned=True), generation=2)
        state = await agent.until(lambda s: s["adapters"][0]["reason"] == "RankTooHigh")
        assert state["adapters"][0]["state"] == "Resident"
        assert list(engine.adapters) == ["pirate"]


async def test_the_least_recently_used_adapter_on_demand_makes_room_and_never_a_pinned_one(tmp_path: Path) -> None:
    folders = {name: source(tmp_path, name) for name in ("kept", "a", "b", "c")}
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine, capacity=3) as agent:
        catalog = [entry(name, folder, pinned=name == "kept") for name, folder in folders.items()]
        await agent.put(*catalog)
        await agent.until(is_in("kept", "Resident"))
        for name in ("a", "b", "c"):
            assert (await agent.http.post(f"/v1/adapters/{name}/load")).status_code == 200
        assert sorted(engine.adapters) == ["b", "c", "kept"]


async def test_an_adapter_that_serves_requests_is_not_the_one_to_go(tmp_path: Path) -> None:
    folders = {name: source(tmp_path, name) for name in ("a", "b", "c")}
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine, capacity=2) as agent:
        await agent.until(lambda state: state["engine"] == "Ready")
        await agent.put(*(entry(name, folder) for name, folder in folders.items()))
        await agent.http.post("/v1/adapters/a/load")
        await agent.http.post("/v1/adapters/b/load")
        engine.active = "a"
        await asyncio.sleep(0.1)
        await agent.http.post("/v1/adapters/c/load")
        assert sorted(engine.adapters) == ["a", "c"]


async def test_pinned_adapters_beyond_capacity_fail_by_priority_with_the_reason(tmp_path: Path) -> None:
    folders = {name: source(tmp_path, name) for name in ("low", "mid", "high")}
    priority = {"low": -1, "mid": 0, "high": 5}
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine, capacity=2) as agent:
        await agent.put(*(entry(n, f, pinned=True, priority=priority[n]) for n, f in folders.items()))
        state = await agent.until(lambda s: is_in("mid", "Resident")(s) and is_in("high", "Resident")(s))
        low = next(a for a in state["adapters"] if a["name"] == "low")
        assert (low["state"], low["reason"]) == ("Failed", "CapacityExceeded")
        answer = await agent.http.post("/v1/adapters/low/load")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "CapacityExceeded")
        assert sorted(engine.adapters) == ["high", "mid"]


@pytest.mark.timeout(10)
async def test_a_refusal_is_not_told_for_ever_of_an_adapter_that_nobody_asks_for_any_more(tmp_path: Path) -> None:
    folder = source(tmp_path, "pirate")
    async with engine_running(FakeEngine(refuse={"pirate"})) as engine, agent_running(tmp_path, engine) as agent:
        await agent.until(lambda state: state["engine"] == "Ready")
        await agent.put(entry("pirate", folder))
        answer = await agent.http.post("/v1/adapters/pirate/load")
        assert answer.json()["error"]["code"] == "EngineRefused"
        assert is_in("pirate", "Failed")(await agent.state())
        assert (await agent.until(lambda state: not state["adapters"]))["engine"] == "Ready"


async def test_an_engine_that_refuses_an_adapter_is_asked_again_later_and_quoted(tmp_path: Path) -> None:
    folder = source(tmp_path, "pirate")
    async with engine_running(FakeEngine(refuse={"pirate"})) as engine, agent_running(tmp_path, engine) as agent:
        await agent.put(entry("pirate", folder, pinned=True))
        state = await agent.until(is_in("pirate", "Failed"))
        assert state["adapters"][0]["reason"] == "EngineRefused"
        assert "no such luck" in state["adapters"][0]["message"]
        assert (await agent.http.get("/readyz")).status_code == 200, "one broken adapter must not stop the pod"
        engine.refuse.clear()
        agent.agent.supervisor._clock = lambda: time.time() + 60
        await agent.until(is_in("pirate", "Resident"))


async def test_adapters_that_nobody_knows_never_reach_the_engine(tmp_path: Path) -> None:
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        await agent.until(lambda state: state["engine"] == "Ready")
        for name in ("unknown", "..%2f..%2fetc", "%2e%2e", "pi%00rate", "a%2fb", "x" * 300, "%F0%9F%92%A9", "base"):
            assert (await agent.http.post(f"/v1/adapters/{name}/load")).status_code == 404
        assert engine.calls == []


async def test_a_restarted_agent_finds_what_is_resident_and_leaves_it_alone(tmp_path: Path) -> None:
    kept, idle = source(tmp_path, "kept"), source(tmp_path, "idle")
    catalog = (entry("kept", kept, pinned=True), entry("idle", idle))
    async with engine_running(FakeEngine()) as engine:
        async with agent_running(tmp_path, engine) as agent:
            await agent.put(*catalog)
            await agent.until(is_in("kept", "Resident"))
            await agent.http.post("/v1/adapters/idle/load")
        done = list(engine.calls)
        async with agent_running(tmp_path, engine) as agent:
            await agent.until(is_in("idle", "Resident"))
            await agent.put(*catalog)
            await agent.until(lambda s: all(a["state"] == "Resident" and a["rank"] == 4 for a in s["adapters"]))
            await asyncio.sleep(0.1)
            assert sorted(engine.adapters) == ["idle", "kept"]
        assert engine.calls == done


async def test_an_engine_that_is_away_is_told_as_stopped_and_comes_back_with_its_adapters(tmp_path: Path) -> None:
    folder = source(tmp_path, "pirate")
    engine = FakeEngine()
    async with engine_running(engine):
        port = int(engine.url.rpartition(":")[2])
        stack = agent_running(tmp_path, engine)
        agent = await stack.__aenter__()
        await agent.put(entry("pirate", folder, pinned=True))
        await agent.until(is_in("pirate", "Resident"))
    await agent.until(lambda state: state["engine"] == "Stopped")
    assert (await agent.http.post("/v1/adapters/pirate/load")).json()["error"]["code"] == "engine_not_ready"
    assert (await agent.http.get("/readyz")).status_code == 503
    engine.restart()
    async with engine_running(engine, port):
        await agent.until(is_in("pirate", "Resident"))
        await stack.__aexit__(None, None, None)
