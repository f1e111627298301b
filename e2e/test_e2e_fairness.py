"""Fair shares and kept promises over `sheaf up`: real gateway, agents and emulated engines, tenants with keys."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_sheaf import Sheaf, manifest, sheaf_up, write_manifests
from tiny_models import tiny_llama

pytestmark = pytest.mark.timeout(300)

PODS, SEQUENCES, OUTPUT = 2, 4, 12
RESERVE = 2
PROFILE = {
    "step_overhead_s": 0.04,
    "prefill_token_s": 1e-5,
    "num_blocks": 4096,
    "max_model_len": 2048,
    "max_num_seqs": SEQUENCES,
}
CAPACITY = PODS * SEQUENCES / (OUTPUT * PROFILE["step_overhead_s"])
"""Requests a second."""
PROMPT = "Tell me a story. " * 8


def entry(tenant: str, *scopes: str) -> dict[str, Any]:
    digest = hashlib.sha256(f"k-{tenant}".encode()).hexdigest()
    return {"name": tenant, "tenant": tenant, "sha256": digest, "scopes": list(scopes or ("inference",))}


def bearer(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer k-{tenant}"}


def declare(path: Path, profile: Path, **slo: Any) -> None:
    engine = {"name": "emulator", "args": [f"--profile={profile}"]}
    source = f"file://{tiny_llama()}"
    base = manifest(
        "Model", "base", source=source, engine=engine, replicas=PODS, sloRef={"name": "chat"}, lora={"slots": 0}
    )
    write_manifests(path, base, manifest("SLO", "chat", **slo))


@pytest.fixture(scope="module")
def sheaf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sheaf]:
    folder = tmp_path_factory.mktemp("fairness")
    (folder / "profile.json").write_text(json.dumps(PROFILE))
    keys = [entry(tenant) for tenant in ("heavy", "light", "gold", "free")] + [entry("ops", "inference", "admin")]
    (folder / "keys.yaml").write_text(json.dumps({"keys": keys}))
    (folder / "manifests").mkdir()
    declare(folder / "manifests" / "base.yaml", folder / "profile.json", fairness={"policy": "VTC"})
    with sheaf_up(folder / "manifests", folder / "state", "--keys", str(folder / "keys.yaml"), timeout=120) as running:
        yield running


def shown(sheaf: Sheaf, what: str) -> dict[str, Any]:
    answer = httpx.get(f"{sheaf.url}/sheaf/v1/{what}", headers=bearer("ops"), timeout=10)
    return answer.raise_for_status().json()


def demand(sheaf: Sheaf) -> dict[str, Any]:
    (found,) = shown(sheaf, "demand")["models"]
    return found


def ask(client: httpx.Client, sheaf: Sheaf, tenant: str, **more: Any) -> httpx.Response:
    body = {
        "model": "base",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": OUTPUT,
        "ignore_eos": True,
    }
    return client.post(f"{sheaf.url}/v1/chat/completions", json={**body, **more}, headers=bearer(tenant), timeout=60)


@dataclass
class Backlog:
    """One tenant that always has so many requests under way, and what it was served when."""

    sheaf: Sheaf
    tenant: str
    width: int
    stop: threading.Event = field(default_factory=threading.Event)
    served: list[tuple[float, float]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def run(self) -> None:
        with ThreadPoolExecutor(self.width) as pool:
            for future in [pool.submit(self.client) for _ in range(self.width)]:
                future.result()

    def client(self) -> None:
        with httpx.Client() as client:
            while not self.stop.is_set():
                answer = ask(client, self.sheaf, self.tenant)
                if answer.status_code != 200:
                    self.bad.append(answer.text)
                    continue
                usage = answer.json()["usage"]
                self.served.append((time.monotonic(), usage["prompt_tokens"] + 2.0 * usage["completion_tokens"]))

    def between(self, begin: float, end: float) -> float:
        return sum(cost for at, cost in self.served if begin <= at < end)


def test_a_tenant_at_many_times_the_load_gets_no_more_than_its_share(sheaf: Sheaf) -> None:
    heavy, light = Backlog(sheaf, "heavy", 60), Backlog(sheaf, "light", 20)
    threads = [threading.Thread(target=backlog.run) for backlog in (heavy, light)]
    for thread in threads:
        thread.start()
    try:
        sheaf.wait_for(
            "slots that follow the engines", lambda: demand(sheaf)["slots"] <= PODS * (SEQUENCES + RESERVE), 30
        )
        time.sleep(3)
        begin = time.monotonic()
        time.sleep(12)
        end = time.monotonic()
        asked = demand(sheaf)
    finally:
        heavy.stop.set()
        light.stop.set()
        for thread in threads:
            thread.join()
    assert heavy.bad == light.bad == []
    assert asked["waiting"] > 20
    assert asked["slots"] >= PODS * SEQUENCES
    request = max(cost for _, cost in heavy.served)
    bound = 2 * request * (PODS * (SEQUENCES + RESERVE))
    one, other = heavy.between(begin, end), light.between(begin, end)
    assert abs(one - other) <= bound
    assert one + other > 4 * bound, "too little was served for the bound to say anything"


def test_paid_traffic_keeps_its_promise_at_one_and_a_half_times_the_load(sheaf: Sheaf) -> None:
    promise = {"ttft": {"p95": "1500ms"}, "queue": {"maxRequests": 100, "maxWait": "4s"}}
    fairness = {"policy": "DLPM", "weights": {"gold": 4, "free": 1}}
    profile = sheaf.manifests.parent / "profile.json"
    declare(sheaf.manifests / "base.yaml", profile, fairness=fairness, **promise)
    sheaf.wait_for(
        "the new SLO", lambda: shown(sheaf, "objects/slos")["items"][0]["spec"]["fairness"]["policy"] == "DLPM"
    )
    sheaf.wait_for("an empty queue", lambda: demand(sheaf)["running"] == 0)
    answers: dict[str, list[tuple[httpx.Response, float]]] = {"gold": [], "free": []}
    with httpx.Client(limits=httpx.Limits(max_connections=300)) as client, ThreadPoolExecutor(200) as pool:

        def one(tenant: str) -> None:
            began = time.monotonic()
            answer = ask(client, sheaf, tenant)
            answers[tenant].append((answer, time.monotonic() - began))

        began, sent = time.monotonic(), {"gold": 0, "free": 0}
        rates = {"gold": 0.4 * CAPACITY, "free": 1.1 * CAPACITY}
        while (passed := time.monotonic() - began) < 10:
            for tenant, rate in rates.items():
                while sent[tenant] < passed * rate:
                    sent[tenant] += 1
                    pool.submit(one, tenant)
            time.sleep(0.01)
    everything = [answer for found in answers.values() for answer, _ in found]
    assert len(everything) == sum(sent.values()), "something hangs or was lost"
    assert {answer.status_code for answer in everything} <= {200, 429, 503}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in everything if answer.status_code != 200)
    whole = 1.5 + OUTPUT * PROFILE["step_overhead_s"] * 2
    kept = [answer.status_code == 200 and took <= whole for answer, took in answers["gold"]]
    assert sum(kept) >= 0.95 * len(kept)
    free = [answer.status_code for answer, _ in answers["free"]]
    assert 200 in free
    assert set(free) - {200}
    (window, _) = shown(sheaf, "slos")["slos"][0]["windows"]
    assert window["failed"] > 0
    assert window["requests"] >= len(everything)
