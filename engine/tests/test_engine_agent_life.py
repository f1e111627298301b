"""What outlives a start of agent or engine: readiness that does not flap, the catalog, the preStop hook."""

import asyncio
import itertools
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from engine_agent_helpers import (
    TOKEN,
    FakeEngine,
    RunningAgent,
    agent_running,
    config_for,
    engine_running,
    entry,
    is_in,
    write_adapter,
    write_base,
)
from sheaf_engine.agent import drain_hook
from sheaf_engine.agent.cli import main
from sheaf_engine.agent.errors import AdapterError, ConfigError
from sheaf_engine.agent.model_fetch import point
from sheaf_engine.agent.run import outside_of
from sheaf_engine.agent.run_dir import HOOK, KEY, Shelf, write_hook


async def readiness(agent: RunningAgent) -> tuple[int, str]:
    answer = await agent.http.get("/readyz")
    return answer.status_code, answer.json().get("error", {}).get("message", "")


async def test_a_pod_is_ready_once_its_first_pinned_adapters_were_tried_and_stays_so(tmp_path: Path) -> None:
    first, later = (write_adapter(tmp_path / "sources" / name) for name in ("first", "later"))
    engine = FakeEngine()
    async with engine_running(engine), agent_running(tmp_path, engine) as agent:
        await agent.until(lambda s: s["engine"] == "Ready")
        assert await readiness(agent) == (503, "the operator has not sent a catalog yet")
        engine.load_gate = asyncio.Event()
        await agent.put(entry("first", first, pinned=True))
        assert await readiness(agent) == (503, "1 pinned adapters are still loading")
        engine.load_gate.set()
        await agent.until(is_in("first", "Resident"))
        assert await readiness(agent) == (200, "")
        engine.load_gate = asyncio.Event()
        await agent.put(entry("first", first, pinned=True), entry("later", later, pinned=True), generation=2)
        assert await readiness(agent) == (200, ""), "an adapter pinned later loads beside the requests"
        engine.load_gate.set()


async def test_an_engine_that_starts_anew_is_ready_when_its_adapters_are_back(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "sources" / "a")
    engine = FakeEngine()
    async with engine_running(engine), agent_running(tmp_path, engine) as agent:
        await agent.put(entry("a", folder, pinned=True))
        before = await agent.until(is_in("a", "Resident"))
        assert (await readiness(agent))[0] == 200
        engine.load_gate = asyncio.Event()
        engine.restart()
        await agent.until(lambda s: s["engineEpoch"] > before["engineEpoch"])
        assert (await readiness(agent))[0] == 503
        engine.load_gate.set()
        await agent.until(is_in("a", "Resident"))
        assert (await readiness(agent))[0] == 200


async def test_a_drain_of_the_engine_alone_ends_with_its_new_start_and_one_of_the_pod_does_not(tmp_path: Path) -> None:
    engine = FakeEngine()
    async with engine_running(engine), agent_running(tmp_path, engine) as agent:
        await agent.until(lambda s: s["engine"] == "Ready")
        for reasons in ([True], [True, False], [False, True]):
            for alone in reasons:
                told = await agent.http.post("/v1/drain", json={"deadline": 30, "untilRestart": alone})
            assert told.json()["drainsUntilRestart"] is all(reasons)
            before = told.json()["engineEpoch"]
            engine.restart()
            after = await agent.until(lambda s, before=before: s["engineEpoch"] > before)
            assert after["draining"] is not all(reasons)


async def test_an_unhealthy_engine_is_not_ready(tmp_path: Path) -> None:
    engine = FakeEngine()
    async with engine_running(engine), agent_running(tmp_path, engine) as agent:
        await agent.put()
        await agent.until(lambda s: s["engine"] == "Ready")
        assert (await readiness(agent))[0] == 200
        engine.healthy = False
        await agent.until(lambda s: s["engine"] == "Unhealthy")
        assert (await readiness(agent))[0] == 503


async def test_without_an_operator_a_pod_serves_after_a_while(tmp_path: Path) -> None:
    engine = FakeEngine()
    async with engine_running(engine), agent_running(tmp_path, engine, catalogPatience=0.1) as agent:
        await agent.until(lambda s: s["engine"] == "Ready")
        assert (await readiness(agent))[0] == 503
        await asyncio.sleep(0.15)
        assert (await readiness(agent))[0] == 200


async def test_a_new_start_of_the_agent_restores_the_adapters_with_no_operator_there(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "sources" / "a")
    (tmp_path / "run").mkdir()
    run = str(tmp_path / "run")
    engine = FakeEngine()
    async with engine_running(engine):
        async with agent_running(tmp_path, engine, runDir=run) as agent:
            await agent.put(entry("a", folder, pinned=True), generation=7)
            await agent.until(is_in("a", "Resident"))
        engine.restart()
        async with agent_running(tmp_path, engine, runDir=run) as agent:
            state = await agent.until(is_in("a", "Resident"))
            assert state["catalogGeneration"] == 7
            assert (await readiness(agent))[0] == 200
            assert (await agent.put(generation=6)).status_code == 409
    assert engine.loads() == ["a", "a"]


async def test_a_new_start_of_the_agent_disturbs_no_adapter_that_the_engine_holds(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "sources" / "a")
    (tmp_path / "run").mkdir()
    engine = FakeEngine()
    async with engine_running(engine):
        for _ in range(2):
            async with agent_running(tmp_path, engine, runDir=str(tmp_path / "run")) as agent:
                await agent.put(entry("a", folder, pinned=True), generation=7)
                await agent.until(is_in("a", "Resident"))
    assert [kind for kind, _, _ in engine.calls] == ["load"]


async def test_a_catalog_that_cannot_be_kept_is_taken_all_the_same(tmp_path: Path) -> None:
    engine = FakeEngine()
    async with engine_running(engine), agent_running(tmp_path, engine, runDir=str(tmp_path / "gone")) as agent:
        assert (await agent.put(generation=3)).status_code == 200


@pytest.mark.parametrize("content", [b"", b"{", b'{"generation": -1}', b'{"generation": 1, "more": 2}'])
def test_a_kept_catalog_that_is_not_sound_is_no_catalog(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "catalog.json").write_bytes(content)
    assert Shelf(tmp_path).kept() is None


def test_a_hook_that_cannot_be_left_stops_the_agent_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="runDir"):
        write_hook(tmp_path / "gone", agent_url="http://127.0.0.1:1", engine_url="http://127.0.0.1:2", key="k")


async def test_the_hook_runs_by_itself_and_its_key_is_good_for_draining_only(tmp_path: Path) -> None:
    engine = FakeEngine()
    async with engine_running(engine), agent_running(tmp_path, engine) as agent:
        await agent.until(lambda s: s["engine"] == "Ready")
        key = agent.agent.drain_key
        write_hook(tmp_path, agent_url=agent.url, engine_url=engine.url, key=key)
        command = [sys.executable, "-I", str(tmp_path / HOOK), "0.6"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=10)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (await agent.state())["draining"]
        mine = {"authorization": f"Bearer {key}"}
        assert (await agent.http.get("/v1/state", headers=mine)).status_code == 401
        assert (await agent.http.put("/v1/catalog", headers=mine, content=b"{}")).status_code == 401
    assert ((tmp_path / KEY).stat().st_mode & 0o007) == 0


async def test_the_hook_works_without_an_agent(tmp_path: Path) -> None:
    engine = FakeEngine()
    async with engine_running(engine):
        write_hook(tmp_path, agent_url="http://127.0.0.1:1", engine_url=engine.url, key="k")
        command = [sys.executable, "-I", str(tmp_path / HOOK), "0.6"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=10)
        assert done.returncode == 0
        assert "cannot be asked to drain" in done.stderr


class Clock:
    """Time that passes only in pauses; `then` happens in them, one after the other."""

    def __init__(self, *then: object) -> None:
        self.now, self._then = 0.0, itertools.chain(then, itertools.repeat(None))

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds
        act = next(self._then)
        if callable(act):
            act()


async def test_draining_waits_for_the_last_request_and_for_those_on_their_way() -> None:
    engine = FakeEngine(running=1)
    clock = Clock(*[None] * 20, lambda: setattr(engine, "running", 0))
    async with engine_running(engine):
        assert await asyncio.to_thread(drain_hook.wait, engine.url, 60.0, clock.pause, clock) == ""
        assert 10 < clock.now < 12
        idle = Clock()
        assert await asyncio.to_thread(drain_hook.wait, engine.url, 60.0, idle.pause, idle) == ""
        assert idle.now == drain_hook.LINGER


async def test_draining_ends_with_the_deadline_and_says_what_was_left() -> None:
    engine = FakeEngine(running=2)
    clock = Clock()
    async with engine_running(engine):
        why = await asyncio.to_thread(drain_hook.wait, engine.url, 5.0, clock.pause, clock)
    assert (why, clock.now) == ("the deadline passed with 2 requests", 5.0)


def test_draining_does_not_wait_for_an_engine_that_is_gone() -> None:
    clock = Clock()
    assert "does not say" in drain_hook.wait("http://127.0.0.1:1", 600.0, clock.pause, clock)
    assert clock.now == drain_hook.SILENCE
    short = Clock()
    assert "unknown number" in drain_hook.wait("http://127.0.0.1:1", 1.0, short.pause, short)


async def test_by_hand_a_pod_is_drained_with_the_agents_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = FakeEngine()
    async with engine_running(engine), agent_running(tmp_path, engine) as agent:
        await agent.until(lambda s: s["engine"] == "Ready")
        config = config_for(tmp_path, engine.url, listen=agent.url.removeprefix("http://"))
        file = tmp_path / "agent.json"
        file.write_text(config.model_dump_json(by_alias=True))
        command = ["drain", "--config", str(file), "--deadline", "0.2"]
        assert await asyncio.to_thread(main, command) == 0
        assert capsys.readouterr().out.endswith("drained\n")
        engine.running = 2
        assert await asyncio.to_thread(main, command) == 1
        assert "2 requests" in capsys.readouterr().err


async def test_an_agent_that_refuses_is_told_apart_from_one_that_is_gone(tmp_path: Path) -> None:
    engine = FakeEngine()
    async with engine_running(engine), agent_running(tmp_path, engine) as agent:
        assert "status 401" in await asyncio.to_thread(drain_hook.ask, agent.url, "wrong", 1.0)
        assert await asyncio.to_thread(drain_hook.ask, agent.url, TOKEN, 1.0) == ""
    assert await asyncio.to_thread(drain_hook.busy, f"{agent.url}/nowhere") is None


def test_fetch_leaves_a_link_and_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "termination-log"
    words.touch()
    monkeypatch.setattr("sheaf_engine.agent.cli.TERMINATION_LOG", words)
    model, link = write_base(tmp_path / "models" / "base"), tmp_path / "model"
    command = ["fetch", "--to", str(tmp_path), "--link", str(link), "--allow-file-root", str(tmp_path / "models")]
    for _ in range(2):
        assert main([*command, "--source", f"file://{model}"]) == 0
        assert link.resolve() == model
    assert main([*command, "--source", "file:///etc"]) == 1
    assert words.read_text() == capsys.readouterr().err
    assert words.read_text().startswith("error: /etc is outside")


def test_a_link_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="cannot be written"):
        point(tmp_path / "gone" / "model", tmp_path)


async def test_the_hubs_token_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "from-the-environment")
    assert outside_of(config_for(tmp_path, "http://127.0.0.1:1")).hf_token == "from-the-environment"
    (tmp_path / "hub").write_text("a-token-from-a-file")
    config = config_for(tmp_path, "http://127.0.0.1:1", hfTokenFile=str(tmp_path / "hub"))
    assert outside_of(config).hf_token == "a-token-from-a-file"


async def test_what_an_adapter_is_used_is_told(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "sources" / "a")
    engine = FakeEngine(active="a", running=1)
    async with engine_running(engine), agent_running(tmp_path, engine) as agent:
        supervisor = agent.agent.supervisor
        supervisor._watch._looked = 1.0
        await agent.put(entry("a", folder, pinned=True))
        state = await agent.until(lambda s: any(a["activity"] == 1.0 for a in s["adapters"]))
        assert json.dumps(state["adapters"]).count('"activity": 1.0') == 1


def test_agents_urls_name_loopback(tmp_path: Path) -> None:
    urls = [
        config_for(tmp_path, "http://127.0.0.1:1", listen=f"{host}:8001").own_url(8001)
        for host in ("0.0.0.0", "[::]", "10.0.0.1")
    ]
    assert urls == ["http://127.0.0.1:8001", "http://[::1]:8001", "http://10.0.0.1:8001"]
    assert all(httpx.URL(url).port == 8001 for url in urls)
