"""The agent's HTTP API: tokens, bounds, long polls, drain; and that nothing unsound reaches the engine."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from engine_agent_helpers import (
    TOKEN,
    FakeEngine,
    agent_running,
    engine_running,
    entry,
    is_in,
    lora_shapes,
    write_adapter,
)
from sheaf_engine.agent import server

PROTECTED = [
    ("PUT", "/v1/catalog"),
    ("POST", "/v1/adapters/a/load"),
    ("GET", "/v1/state"),
    ("GET", "/v1/vocabulary"),
    ("POST", "/v1/drain"),
]


async def test_every_call_but_the_open_ones_needs_the_token(tmp_path: Path) -> None:
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        for given in ("", "Bearer", "Bearer x", f"bearer {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN):
            for method, path in PROTECTED:
                answer = await agent.http.request(method, path, headers={"authorization": given}, content=b"{")
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
                assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/healthz", "/metrics"):
            assert (await agent.http.get(path, headers={"authorization": ""})).status_code == 200
        assert engine.calls == []


BODIES: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 400),
    "not json": (b"{", 400),
    "a list": (b"[]", 400),
    "invalid utf-8": (b'{"generation": "\xff"}', 400),
    "deep": (b'{"adapters":' * 100_000, 400),
    "negative generation": (b'{"generation": -1}', 400),
    "unknown field": (b'{"generation": 1, "adaptors": []}', 400),
    "generation as text": (b'{"generation": "x"}', 400),
    "name with a slash": (b'{"adapters": [{"name": "a/b", "source": "file:///a"}]}', 400),
    "name upwards": (b'{"adapters": [{"name": "..", "source": "file:///a"}]}', 400),
    "name with a capital": (b'{"adapters": [{"name": "Pirate", "source": "file:///a"}]}', 400),
    "name with a newline": (b'{"adapters": [{"name": "a\\n", "source": "file:///a"}]}', 400),
    "long name": (b'{"adapters": [{"name": "' + b"a" * 64 + b'", "source": "file:///a"}]}', 400),
    "unicode name": ('{"adapters": [{"name": "п", "source": "file:///a"}]}'.encode(), 400),
    "no source": (b'{"adapters": [{"name": "a"}]}', 400),
    "source of another kind": (b'{"adapters": [{"name": "a", "source": "http://a/b"}]}', 400),
    "source with space": (b'{"adapters": [{"name": "a", "source": "file:///a b"}]}', 400),
    "digest of another kind": (b'{"adapters": [{"name": "a", "source": "file:///a", "digest": "md5:1"}]}', 400),
}


@pytest.mark.timeout(10)
async def test_a_catalog_that_is_not_one_is_refused_with_the_field(tmp_path: Path, subtests: pytest.Subtests) -> None:
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        for case, (body, status) in BODIES.items():
            with subtests.test(case):
                answer = await agent.http.put("/v1/catalog", content=body)
                assert answer.status_code == status
                assert set(answer.json()["error"]) == {"code", "message"}
        assert engine.calls == []


async def test_a_body_is_bounded_in_bytes_and_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_TIMEOUT", 0.1)

    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(0.3)

    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        big = await agent.http.post("/v1/drain", content=b'{"reason": "' + b"x" * 70_000)
        assert (big.status_code, big.json()["error"]["code"]) == (413, "too_large")
        assert (await agent.http.post("/v1/drain", content=slow())).status_code == 408


async def test_an_older_catalog_is_refused_and_the_same_one_taken_again(tmp_path: Path) -> None:
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        assert (await agent.put(generation=5)).status_code == 200
        older = await agent.put(generation=4)
        assert (older.status_code, older.json()["error"]["code"]) == (409, "older_generation")
        assert (await agent.put(generation=5)).json()["catalogGeneration"] == 5


async def test_unknown_paths_methods_and_queries_get_an_answer_in_the_same_shape(tmp_path: Path) -> None:
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        for method, path, status in (
            ("GET", "/nope", 404),
            ("GET", "/v1/catalog", 405),
            ("GET", "/v1/state?after=x", 400),
            ("GET", "/v1/state?after=1&wait=nan", 400),
            ("GET", "/openapi.json", 404),
        ):
            answer = await agent.http.request(method, path)
            assert (answer.status_code, set(answer.json())) == (status, {"error"})


async def test_a_long_poll_answers_when_the_state_changes_and_when_the_wait_ends(tmp_path: Path) -> None:
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        state = await agent.until(lambda s: s["engine"] == "Ready")
        same = await agent.http.get("/v1/state", params={"after": state["version"], "wait": 0.05})
        assert same.json()["version"] == state["version"]
        poll = asyncio.create_task(agent.http.get("/v1/state", params={"after": state["version"], "wait": 5}))
        await asyncio.sleep(0.05)
        assert not poll.done()
        await agent.put(generation=7)
        assert (await poll).json()["catalogGeneration"] == 7


async def test_a_drain_is_told_and_refuses_new_adapters_and_only_gets_nearer(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "sources" / "a")
    async with engine_running(FakeEngine(running=3)) as engine, agent_running(tmp_path, engine) as agent:
        await agent.until(lambda s: s["load"]["running"] == 3)
        await agent.put(entry("a", folder))
        assert (await agent.http.get("/readyz")).status_code == 200
        first = (await agent.http.post("/v1/drain", json={"deadline": 30, "reason": "spot"})).json()
        assert first["draining"]
        assert abs(first["drainDeadline"] - time.time() - 30) < 5
        nearer = (await agent.http.post("/v1/drain", json={"deadline": 5})).json()["drainDeadline"]
        assert nearer < first["drainDeadline"]
        assert (await agent.http.post("/v1/drain", json={"deadline": 500})).json()["drainDeadline"] == nearer
        refused = await agent.http.post("/v1/adapters/a/load")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert (await agent.http.get("/readyz")).status_code == 200, "running streams keep their endpoint"


async def test_a_load_that_takes_too_long_is_told_and_goes_on(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "sources" / "a")
    gate = asyncio.Event()
    engine = FakeEngine(load_gate=gate)
    async with engine_running(engine), agent_running(tmp_path, engine, loadTimeout=0.2) as agent:
        await agent.until(lambda s: s["engine"] == "Ready")
        await agent.put(entry("a", folder))
        answer = await agent.http.post("/v1/adapters/a/load")
        assert answer.status_code in {503, 504}
        assert answer.json()["error"]["code"] in {"load_timeout", "EngineUnreachable"}
        gate.set()


async def test_many_requests_for_one_adapter_make_one_load(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "sources" / "a")
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        await agent.until(lambda s: s["engine"] == "Ready")
        await agent.put(entry("a", folder))
        answers = await asyncio.gather(*(agent.http.post("/v1/adapters/a/load") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        assert engine.loads() == ["a"]


def unsound(root: Path) -> dict[str, tuple[dict[str, Any], str, int]]:
    """Catalog entries that must not reach the engine: entry, reason, status."""
    good = write_adapter(root / "good")
    pickled = write_adapter(root / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    cut = write_adapter(root / "cut")
    (cut / "adapter_model.safetensors").write_bytes((cut / "adapter_model.safetensors").read_bytes()[:-1])
    wide = {name: tuple(size * 2 if size == 32 else size for size in s) for name, s in lora_shapes().items()}
    return {
        "pickled": (entry("pickled", pickled), "PickledWeights", 422),
        "cut": (entry("cut", cut), "BadWeights", 422),
        "high-rank": (entry("high-rank", write_adapter(root / "r64", rank=64)), "RankTooHigh", 422),
        "other-rank": (entry("other-rank", good, rank=8), "RankMismatch", 422),
        "other-base": (entry("other-base", write_adapter(root / "wide", shapes=wide)), "WrongBase", 422),
        "other-digest": (entry("other-digest", good, digest="sha256:" + "0" * 64), "DigestMismatch", 422),
        "too-large": (entry("too-large", good, sizeLimit=10), "SizeLimitExceeded", 422),
        "outside": (entry("outside", Path("/etc")), "SourceRefused", 422),
        "upwards": (entry("upwards", root / ".." / ".." / "etc"), "SourceRefused", 422),
        "gone": (entry("gone", root / "gone"), "SourceNotFound", 422),
        "metadata": ({"name": "metadata", "source": "https://169.254.169.254/latest"}, "SourceRefused", 422),
        "decimal": ({"name": "decimal", "source": "https://2852039166/latest"}, "SourceRefused", 422),
        "mapped": ({"name": "mapped", "source": "https://[::ffff:a9fe:a9fe]/latest"}, "SourceRefused", 422),
        "loopback": ({"name": "loopback", "source": "https://localhost/a"}, "SourceRefused", 422),
        "base": (entry("base", good), "NameTaken", 422),
    }


@pytest.mark.timeout(10)
async def test_nothing_unsound_reaches_the_engine_and_the_caller_learns_why(
    tmp_path: Path, subtests: pytest.Subtests
) -> None:
    cases = unsound(tmp_path / "sources")
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        await agent.until(lambda s: s["engine"] == "Ready")
        await agent.put(*(wanted for wanted, _, _ in cases.values()))
        for case, (_, reason, status) in cases.items():
            with subtests.test(case):
                answer = await agent.http.post(f"/v1/adapters/{case}/load")
                assert (answer.status_code, answer.json()["error"]["code"]) == (status, reason)
                assert int(answer.headers["retry-after"]) > 100
                told = await agent.adapter(case)
                assert (told["state"], told["reason"], bool(told["retryAt"])) == ("Failed", reason, True)
                assert (await agent.http.post(f"/v1/adapters/{case}/load")).json() == answer.json()
        assert engine.calls == []
        found = await asyncio.to_thread(lambda: {path.name for path in (tmp_path / "adapters").rglob("*")})
        assert found == {".incoming"}, "half downloads never survive"


async def test_metrics_count_what_was_done_under_bounded_labels(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "sources" / "a")
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        await agent.put(entry("a", folder, pinned=True), entry("b", tmp_path / "gone", pinned=True))
        await agent.until(lambda s: is_in("a", "Resident")(s) and is_in("b", "Failed")(s))
        text = (await agent.http.get("/metrics")).text
        assert 'sheaf_agent_operations_total{operation="Loading",result="ok"} 1.0' in text
        assert 'sheaf_agent_operations_total{operation="Preparing",result="SourceRefused"} 1.0' in text
        assert 'sheaf_agent_adapters{state="Resident"} 1.0' in text
        assert 'sheaf_agent_engine_phase{phase="Ready"} 1.0' in text


async def test_a_large_catalog_is_taken_and_costs_nothing_until_asked_for(tmp_path: Path) -> None:
    entries = [{"name": f"adapter-{i}", "source": f"s3://bucket/{i}"} for i in range(1_000)]
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        answer = await agent.http.put("/v1/catalog", content=json.dumps({"generation": 1, "adapters": entries}))
        assert (answer.status_code, answer.json()["adapters"]) == (200, [])
        assert engine.calls == []
