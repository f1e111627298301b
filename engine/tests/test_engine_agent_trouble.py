"""An engine that is slow, sick, confused or gone: the state says so, and one adapter's trouble stays its own."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_agent_helpers import FakeEngine, agent_running, engine_running, entry, is_in, write_adapter
from sheaf_crds.agent_api import AdapterState
from sheaf_engine.agent import engine_client, supervisor
from sheaf_engine.agent.base_model import read_base_model
from sheaf_engine.agent.engine_client import EngineClient
from sheaf_engine.agent.errors import AdapterError, ConfigError
from sheaf_engine.agent.memory import Board
from starlette.applications import Starlette


def phase(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda state: state["engine"] == name


async def test_a_sick_engine_is_unhealthy_until_it_recovers_and_keeps_its_epoch(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "sources" / "a")
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        await agent.put(entry("a", folder, pinned=True))
        before = await agent.until(is_in("a", "Resident"))
        engine.healthy = False
        sick = await agent.until(phase("Unhealthy"))
        assert is_in("a", "Resident")(sick), "a sick engine may still hold its adapters"
        engine.healthy = True
        well = await agent.until(phase("Ready"))
        assert well["engineEpoch"] == before["engineEpoch"]
        assert engine.loads() == ["a"]


async def test_one_slow_answer_is_forgiven_and_several_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_client, "LOOK_TIMEOUT", 0.05)
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        await agent.until(phase("Ready"))
        engine.health_gate = asyncio.Event()
        await asyncio.sleep(0.08)
        assert (await agent.state())["engine"] == "Ready"
        await agent.until(phase("Unhealthy"))
        engine.health_gate.set()
        await agent.until(phase("Ready"))


async def test_an_engine_that_never_starts_is_starting_and_then_unhealthy(tmp_path: Path) -> None:
    engine = FakeEngine(url="http://127.0.0.1:1")
    async with agent_running(tmp_path, engine, startupTimeout=0.3) as agent:
        assert (await agent.state())["engine"] == "Starting"
        await agent.until(phase("Unhealthy"))


async def test_an_engine_that_talks_nonsense_is_not_ready(tmp_path: Path) -> None:
    engine = FakeEngine(nonsense=True, started=None)
    async with engine_running(engine), agent_running(tmp_path, engine, startupTimeout=0.1) as agent:
        await agent.until(phase("Unhealthy"))
        engine.nonsense = False
        assert (await agent.until(phase("Ready")))["engineVersion"] == ""


async def test_an_adapter_that_the_engine_lists_elsewhere_is_not_called_resident(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "sources" / "a")
    engine = FakeEngine(lists={"a": "/somewhere/else"})
    async with engine_running(engine), agent_running(tmp_path, engine) as agent:
        await agent.put(entry("a", folder, pinned=True))
        state = await agent.until(lambda s: any(a["reason"] == "EngineRefused" for a in s["adapters"]))
        assert "/somewhere/else" in state["adapters"][0]["message"]


async def test_files_that_vanish_from_the_cache_are_prepared_again(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "sources" / "a")
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        await agent.until(phase("Ready"))
        await agent.put(entry("a", folder))
        await agent.http.post("/v1/adapters/a/load")
        path = Path(engine.adapters["a"])
        engine.adapters.clear()
        await agent.until(lambda s: s["adapters"] == [])
        agent.agent.supervisor._store.release(path)
        agent.agent.supervisor._holding.clear()
        await asyncio.to_thread(path.with_suffix(".json").unlink)
        assert (await agent.http.post("/v1/adapters/a/load")).status_code == 200
        assert engine.adapters["a"] == str(path)


@pytest.mark.timeout(10)
async def test_a_surprise_in_one_adapter_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: write_adapter(tmp_path / "sources" / name) for name in ("odd", "fine")}
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        preparer = agent.agent.supervisor._preparer
        real = type(preparer).prepare

        def surprising(self: object, wanted: AdapterState, **options: bool) -> object:
            if wanted.name == "odd":
                raise RuntimeError("nobody thought of this")
            return real(preparer, wanted, **options)

        monkeypatch.setattr(type(preparer), "prepare", surprising)
        await agent.put(*(entry(name, folder, pinned=True) for name, folder in folders.items()))
        state = await agent.until(lambda s: is_in("fine", "Resident")(s) and is_in("odd", "Failed")(s))
        odd = next(a for a in state["adapters"] if a["name"] == "odd")
        assert (odd["reason"], "nobody thought" in odd["message"]) == ("AgentError", True)


async def test_a_verdict_about_a_source_that_was_replaced_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write_adapter(tmp_path / "sources" / "good")
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        await agent.put(entry("a", tmp_path / "sources" / "gone", pinned=True))
        await agent.put(entry("a", good, pinned=True), generation=2)
        await agent.until(is_in("a", "Resident"))


async def test_adapters_that_wait_to_be_loaded_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "MOST_REQUESTED", 1)
    folders = {name: write_adapter(tmp_path / "sources" / name) for name in ("a", "b")}
    engine = FakeEngine(load_gate=asyncio.Event())
    async with engine_running(engine), agent_running(tmp_path, engine) as agent:
        await agent.until(phase("Ready"))
        await agent.put(*(entry(name, folder) for name, folder in folders.items()))
        first = asyncio.create_task(agent.http.post("/v1/adapters/a/load"))
        await agent.until(is_in("a", "Loading"))
        second = await agent.http.post("/v1/adapters/b/load")
        assert (second.status_code, second.json()["error"]["code"]) == (503, "busy")
        engine.load_gate.set()
        assert (await first).status_code == 200


async def test_files_of_an_unloaded_adapter_are_kept_for_a_while_and_then_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LINGER", 0.2)
    folder = write_adapter(tmp_path / "sources" / "a")
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        await agent.put(entry("a", folder, pinned=True))
        await agent.until(is_in("a", "Resident"))
        await agent.put(generation=2)
        await agent.until(lambda s: s["adapters"] == [])
        assert len(agent.agent.supervisor._holding) == 1
        await asyncio.sleep(0.3)
        assert agent.agent.supervisor._holding == set()


async def test_an_engine_without_lora_endpoints_gets_a_hint(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.app = Starlette  # type: ignore[method-assign]
    async with engine_running(engine):
        client = EngineClient(engine.url, 1.0)
        with pytest.raises(AdapterError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            await client.load("a", "/a")
        await client.close()


def test_a_base_model_that_cannot_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_base_model(tmp_path)


async def test_a_closed_board_ends_every_wait() -> None:
    board = Board()
    wait = asyncio.create_task(board.newer(0, 30.0))
    await asyncio.sleep(0)
    board.close()
    assert (await wait).version == 0
