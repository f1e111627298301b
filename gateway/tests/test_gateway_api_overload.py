"""At one and a half times what an engine can do: paid interactive traffic keeps its promise, the rest is told when to
come back, and nothing hangs. The engine is the emulator in a process of its own, behind real HTTP."""

import asyncio
import hashlib
import json
import os
import socket
import sys
from collections import Counter

import pytest
from gateway_fixtures import ask, chat, make_world, model, slo  # noqa: F401

CHAT = "/v1/chat/completions"
PROFILE = {
    "step_overhead_s": 0.04,
    "prefill_token_s": 1e-5,
    "num_blocks": 4096,
    "max_model_len": 4096,
    "max_num_seqs": 4,
}
CAPACITY = 4 / (8 * PROFILE["step_overhead_s"])
"""Requests of eight tokens a second."""


def key(name: str, tenant: str, **more) -> str:
    digest = hashlib.sha256(f"k-{name}".encode()).hexdigest()
    return f"  - {json.dumps({'name': name, 'tenant': tenant, 'sha256': digest, **more})}\n"


KEYS = "keys:\n" + key("gold", "gold") + key("free", "free") + key("batch", "free", **{"class": "Batch"})


@pytest.fixture
async def emulator(tmp_path):
    """An emulator that serves `base`, four requests at once; its URL."""
    (tmp_path / "profile.json").write_text(json.dumps(PROFILE))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ("--model", "base", "--profile", str(tmp_path / "profile.json"), "--port", str(port))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sheaf_engine.emulator", *flags, stdout=quiet, stderr=quiet, env=environment
    )
    async with asyncio.timeout(15):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except OSError:
                await asyncio.sleep(0.02)
    writer.close()
    await writer.wait_closed()
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    await process.wait()


@pytest.fixture
async def overloaded(make_world, emulator):  # noqa: F811
    """A gateway over the emulator: `world = await overloaded(**spec_of_the_slo)`."""

    async def make(**spec):
        declared = {"models": [model("base", sloRef={"name": "chat"})], "slos": [slo("chat", **spec)]}
        world = await make_world(pods={"base": 1}, agents=False, keys=KEYS, limits={"maxInflightPerPod": 5}, **declared)
        world.snapshot["pods"][0]["engineUrl"] = emulator
        world.write()
        await world.settled()
        return world

    return make


async def offer(world, ask, seconds: float, **rates: float) -> dict[str, list]:  # noqa: F811
    """Send each key's requests at its rate, evenly, whatever becomes of them; the answers by key."""
    loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    body = chat(max_tokens=8, stream=True, ignore_eos=True, text="x" * 64)

    async def one(name: str, number: int, at: float):
        await asyncio.sleep(began + at - loop.time())
        headers = {"authorization": f"Bearer k-{name}", "x-request-id": f"{name}-{number}"}
        status, headers, answer = await ask(world, "POST", CHAT, body, headers)
        return status, headers, answer, world.gateway.inference.records.get(f"{name}-{number}").ttft_ms

    sent = {name: [one(name, n, n / rate) for n in range(int(seconds * rate))] for name, rate in rates.items()}
    results = await asyncio.gather(*(asyncio.gather(*calls) for calls in sent.values()))
    return dict(zip(sent, results, strict=True))


def check_refusals(answers: dict[str, list]) -> None:
    """No failure for load but 429 and 503, each with its reason and when to come back."""
    for status, headers, body, _ in (answer for found in answers.values() for answer in found):
        assert status in {200, 429, 503}
        if status != 200:
            assert json.loads(body)["error"]["code"] in {"slo_unattainable", "queue_full", "queue_timeout"}
            assert int(headers["retry-after"]) >= 1
            assert headers["x-sheaf-reason"]
        else:
            assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("policy", ["VTC", "DLPM"])
async def test_paid_interactive_traffic_keeps_its_promise_in_overload(overloaded, ask, policy):  # noqa: F811
    fairness = {"policy": policy, "weights": {"gold": 4, "free": 1}}
    world = await overloaded(ttft={"p95": "1200ms"}, fairness=fairness, queue={"maxRequests": 64, "maxWait": "2s"})
    async with asyncio.timeout(12):
        answers = await offer(world, ask, 2.5, gold=0.4 * CAPACITY, free=1.1 * CAPACITY)
    check_refusals(answers)
    kept = [status == 200 and ttft <= 1200.0 for status, _, _, ttft in answers["gold"]]
    assert sum(kept) >= 0.9 * len(kept)
    free = Counter(status for status, _, _, _ in answers["free"])
    assert free[200] >= 0.25 * len(answers["free"])
    assert free[429] + free[503] > 0
    assert world.gateway.inference.admission.waiting("base") == world.gateway.inference.admission.running("base") == 0


async def test_batch_yields_to_interactive_in_overload_and_is_not_starved(overloaded, ask):  # noqa: F811
    world = await overloaded(ttft={"p95": "1200ms"}, queue={"maxRequests": 200, "maxWait": "8s"})
    async with asyncio.timeout(15):
        answers = await offer(world, ask, 2.5, gold=0.4 * CAPACITY, batch=1.1 * CAPACITY)
    check_refusals(answers)
    kept = [status == 200 and ttft <= 1200.0 for status, _, _, ttft in answers["gold"]]
    assert sum(kept) >= 0.9 * len(kept)
    assert all(status == 200 for status, _, _, _ in answers["batch"])
