"""What the gateway expects to be cached against what real vLLM reports, request by request: precision and recall.

One vLLM with a small KV cache, so that it evicts; a base model and two adapters, two tenants with salts of their own;
conversations that grow, prompts that share beginnings, repeats, text that is not ASCII. The engine announces its blocks,
and the gateway turns them into bytes without a tokeniser.
"""

import hashlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_sheaf import Sheaf, manifest, sheaf_up, write_manifests
from tiny_models import tiny_adapter, tiny_llama

pytestmark = pytest.mark.timeout(420)

BLOCKS, BLOCK_TOKENS = 96, 32
ENGINE = ["--dtype=float32", "--max-model-len=1024", "--enforce-eager", "--max-num-seqs=8"]
ENGINE += [f"--num-gpu-blocks-override={BLOCKS}", f"--block-size={BLOCK_TOKENS}"]
MODELS = ("tiny", "style-1", "style-2")
WORDS = [
    "sheaf",
    "stalk",
    "band",
    "harbour",
    "wind",
    "river",
    "Paris",
    "Seine",
    "poem",
    "sea",
    "town",
    "answer",
    "model",
    "prefix",
    "block",
    "token",
    "Größe",
    "東京",
    "🙂",
]


@dataclass(frozen=True)
class Seen:
    """One request: its kind, and the prompt's tokens that were expected to be cached and that were."""

    kind: str
    expected: int
    cached: int
    prompt: int


def entry(tenant: str, *scopes: str) -> dict[str, Any]:
    digest = hashlib.sha256(f"k-{tenant}".encode()).hexdigest()
    return {"name": tenant, "tenant": tenant, "sha256": digest, "scopes": list(scopes or ("inference",))}


def bearer(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer k-{tenant}"}


@pytest.fixture(scope="module")
def sheaf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sheaf]:
    folder = tmp_path_factory.mktemp("cache")
    (folder / "manifests").mkdir()
    (folder / "keys.yaml").write_text(
        json.dumps({"keys": [entry("gold"), entry("free"), entry("ops", "inference", "admin")]})
    )
    declare(folder / "manifests" / "all.yaml")
    with sheaf_up(folder / "manifests", folder / "state", "--keys", str(folder / "keys.yaml"), timeout=300) as running:
        running.wait_for(
            "the engine's events to be heard", lambda: metric(running, "sheaf_gateway_kv_subscriptions") == 1
        )
        yield running


def declare(path: Path) -> None:
    lora = {"slots": 2, "maxRank": 8}
    model = manifest("Model", "tiny", source=f"file://{tiny_llama()}", replicas=1, lora=lora, engine={"args": ENGINE})
    adapters = [
        manifest("Adapter", f"style-{seed}", modelRef={"name": "tiny"}, source=f"file://{tiny_adapter(seed)}")
        for seed in (1, 2)
    ]
    write_manifests(path, model, *adapters)


def metric(sheaf: Sheaf, name: str) -> float:
    lines = httpx.get(f"{sheaf.url}/metrics", headers=bearer("ops"), timeout=10).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


class Caller:
    """Sends requests one after the other and keeps what was expected and what was so."""

    def __init__(self, sheaf: Sheaf) -> None:
        self.sheaf = sheaf
        self.client = httpx.Client(base_url=sheaf.url, timeout=120)
        self.seen: list[Seen] = []

    def send(self, kind: str, tenant: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.client.post(path, json={"max_tokens": 6, "temperature": 0, **body}, headers=bearer(tenant))
        assert answer.status_code == 200, answer.text
        time.sleep(0.02)
        record = self.client.get(f"/sheaf/v1/decisions/{answer.headers['x-request-id']}", headers=bearer("ops")).json()
        expected = record["attempts"][-1]["expected_cached"]
        self.seen.append(Seen(kind, expected, record["cached_tokens"] or 0, record["prompt_tokens"]))
        return dict(answer.json())

    def chat(self, kind: str, tenant: str, model: str, messages: list[dict[str, str]]) -> str:
        answer = self.send(kind, tenant, "/v1/chat/completions", {"model": model, "messages": messages})
        return str(answer["choices"][0]["message"]["content"] or "")

    def complete(self, kind: str, tenant: str, model: str, prompt: str) -> None:
        self.send(kind, tenant, "/v1/completions", {"model": model, "prompt": prompt})


def text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(words))


def messages(system: str, user: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def traffic(caller: Caller) -> None:
    """Everything that users do to a cache."""
    draw = random.Random(7)
    shared = [text(draw, 70) for _ in range(2)]
    for turn in range(36):
        tenant, model = draw.choice(("gold", "free")), draw.choice(MODELS)
        kind = "base model" if model == "tiny" else "adapters"
        caller.chat(kind, tenant, model, messages(draw.choice(shared), text(draw, 12)))
        if turn % 3 == 0:
            again = messages(shared[0], "What does a sheaf bind, and what is lost?")
            caller.chat("repeated", "gold", "tiny", again)
        if turn % 4 == 0:
            caller.complete("plain prompts", tenant, model, f"{shared[1]} {text(draw, 8)}")
    for place in range(4):
        talk = messages(text(draw, 50), text(draw, 10))
        for _ in range(4):
            told = caller.chat("conversations", "gold", MODELS[place % 3], talk)
            talk += [{"role": "assistant", "content": told}, {"role": "user", "content": text(draw, 14)}]


def shares(seen: list[Seen]) -> tuple[float, float]:
    """Precision and recall, by tokens."""
    both = sum(min(one.expected, one.cached) for one in seen)
    expected, cached = sum(one.expected for one in seen), sum(one.cached for one in seen)
    return both / expected if expected else 1.0, both / cached if cached else 1.0


def table(seen: list[Seen]) -> str:
    lines = [
        f"{'requests':<16}{'count':>6}{'prompt':>9}{'cached':>9}{'expected':>10}{'precision':>11}{'recall':>8}{'exact':>7}"
    ]
    for kind in [*dict.fromkeys(one.kind for one in seen), "all"]:
        rows = [one for one in seen if kind in (one.kind, "all")]
        precision, recall = shares(rows)
        sums = [sum(getattr(one, name) for one in rows) for name in ("prompt", "cached", "expected")]
        exact = sum(one.expected == one.cached for one in rows) / len(rows)
        lines.append(
            f"{kind:<16}{len(rows):>6}{sums[0]:>9}{sums[1]:>9}{sums[2]:>10}{precision:>11.3f}{recall:>8.3f}{exact:>7.2f}"
        )
    return "\n".join(lines)


def test_what_is_expected_to_be_cached_agrees_with_what_vllm_reports(sheaf: Sheaf) -> None:
    caller = Caller(sheaf)
    traffic(caller)
    caller.client.close()
    told = table(caller.seen)
    print(f"\n{told}")
    precision, recall = shares(caller.seen)
    assert sum(one.cached for one in caller.seen) > 5_000, told
    assert precision >= 0.95, told
    assert recall >= 0.95, told
    assert metric(sheaf, "sheaf_gateway_kv_gaps_total") == 0
    assert 0 < metric(sheaf, "sheaf_gateway_kv_blocks") <= BLOCKS
