"""The main job on one machine: manifests in, one OpenAI endpoint out, real vLLM with many adapters behind it.

Stock vLLM, alone and one request at a time, says first what every adapter answers. Then Sheaf serves the same model on two
replicas, and every answer under concurrent streaming load must be the same, token for token (greedy, float32). A difference
counts as none only where vLLM's own log-probabilities show the two tokens to be a tie within rounding.
"""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from running_sheaf import Sheaf, bare_vllm, manifest, sheaf_up, write_manifests
from tiny_models import tiny_adapter, tiny_llama

ADAPTERS = {f"style-{seed}": seed for seed in (1, 2, 3, 4)}
MODELS = ["tiny", *ADAPTERS]
PROMPTS = [
    "Tell me about the harbour town and the wind.",
    "What does a sheaf bind, and what is lost?",
    "Write one sentence about the river in Paris. " * 12,
]
TOKENS = 24
TIE = 1e-3
ENGINE = ["--dtype=float32", "--max-model-len=1024", "--enforce-eager", "--max-num-seqs=16"]


def chat(model: str, prompt: str) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "extra_body": {"ignore_eos": True, "return_token_ids": True},
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[list[int], list[float]]]:
    """What stock vLLM answers to each (model, prompt): token ids, and the gap between the two likeliest at each step."""
    folder = tmp_path_factory.mktemp("bare")
    adapters = {name: tiny_adapter(seed) for name, seed in ADAPTERS.items()}
    arguments = [*ENGINE, "--block-size", "32", "--enable-lora", "--max-loras", "4", "--max-lora-rank", "8"]
    with bare_vllm(tiny_llama(), "tiny", adapters, arguments, folder / "vllm.log") as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        answers = {(m, p): ask_alone(client, m, p) for m in MODELS for p in PROMPTS}
        client.close()
    return answers


def ask_alone(client: openai.OpenAI, model: str, prompt: str) -> tuple[list[int], list[float]]:
    answer = client.chat.completions.create(**chat(model, prompt), logprobs=True, top_logprobs=2)
    choice = answer.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    gaps = [step.top_logprobs[0].logprob - step.top_logprobs[1].logprob for step in choice.logprobs.content]
    return list(choice.token_ids), gaps


@pytest.fixture(scope="module")
def sheaf(tmp_path_factory: pytest.TempPathFactory, alone: object) -> Iterator[Sheaf]:
    folder = tmp_path_factory.mktemp("sheaf")
    manifests = folder / "manifests"
    manifests.mkdir()
    write_manifests(manifests / "models.yaml", *model_manifests())
    write_manifests(manifests / "adapters.yaml", *adapter_manifests())
    with sheaf_up(manifests, folder / "state", timeout=400) as running:
        running.wait_for("every adapter on both replicas", lambda: residency(running) == dict.fromkeys(ADAPTERS, 2))
        yield running


def model_manifests() -> list[str]:
    lora = {"slots": 4, "maxRank": 8}
    return [
        manifest("Model", "tiny", source=f"file://{tiny_llama()}", replicas=2, lora=lora, engine={"args": ENGINE}),
        manifest(
            "Model",
            "words",
            source=f"file://{tiny_llama()}",
            task="Embed",
            lora={"slots": 0},
            engine={"name": "emulator"},
        ),
    ]


def adapter_manifests() -> list[str]:
    return [
        manifest("Adapter", name, modelRef={"name": "tiny"}, source=f"file://{tiny_adapter(seed)}", replicas=2)
        for name, seed in ADAPTERS.items()
    ]


def residency(sheaf: Sheaf) -> dict[str, int]:
    return {item["metadata"]["name"]: item["status"]["readyReplicas"] for item in sheaf.get("adapters")}


async def stream(client: openai.AsyncOpenAI, model: str, prompt: str) -> list[int]:
    tokens: list[int] = []
    async for chunk in await client.chat.completions.create(**chat(model, prompt), stream=True):
        assert chunk.model == model
        for choice in chunk.choices:
            tokens += getattr(choice, "token_ids", None) or []
    return tokens


def difference(got: list[int], answer: tuple[list[int], list[float]]) -> str:
    """Where the answers differ, other than from a tie on; empty where they do not."""
    expected, gaps = answer
    first = next((i for i, (a, b) in enumerate(zip(got, expected, strict=True)) if a != b), None)
    if first is None or gaps[first] <= TIE:
        return ""
    return f"token {first}: {got[first]} instead of {expected[first]}, which led by {gaps[first]:.4f}"


async def test_under_concurrent_streams_every_adapter_answers_as_it_does_alone(
    sheaf: Sheaf, alone: dict[tuple[str, str], tuple[list[int], list[float]]]
) -> None:
    asked = [(model, prompt) for _ in range(3) for model in MODELS for prompt in PROMPTS]
    async with openai.AsyncOpenAI(base_url=f"{sheaf.url}/v1", api_key="none", max_retries=0) as client:
        got = await asyncio.gather(*(stream(client, model, prompt) for model, prompt in asked))
    found = {
        (model, prompt[:12]): difference(t, alone[model, prompt]) for (model, prompt), t in zip(asked, got, strict=True)
    }
    assert {key: text for key, text in found.items() if text} == {}


def test_the_adapters_answers_differ_from_each_other_and_from_the_base(
    alone: dict[tuple[str, str], tuple[list[int], list[float]]],
) -> None:
    answers = {model: tuple(alone[model, PROMPTS[0]][0]) for model in MODELS}
    assert len(set(answers.values())) == len(MODELS)


def test_a_repeated_long_prefix_goes_to_the_pod_that_has_it(sheaf: Sheaf) -> None:
    prompt = "The story of the sheaf and the band that holds it. " * 20
    with openai.OpenAI(base_url=f"{sheaf.url}/v1", api_key="none") as client:
        answers = [
            client.chat.completions.with_raw_response.create(**chat("style-1", prompt + end)) for end in ("One", "Two")
        ]
    assert answers[0].headers["x-sheaf-pod"] == answers[1].headers["x-sheaf-pod"]
    usage = answers[1].parse().usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens_details.cached_tokens or 0) > 0


async def test_a_killed_engine_comes_back_with_its_adapters_and_nobody_notices(sheaf: Sheaf) -> None:
    before = {pod["name"]: pod for pod in sheaf.get("pods") if pod["model"] == "tiny"}
    victim = min(before)
    os.kill(engine_pid(sheaf, before[victim]["engineUrl"]), signal.SIGKILL)
    async with openai.AsyncOpenAI(base_url=f"{sheaf.url}/v1", api_key="none", max_retries=0) as client:
        for turn in range(20):
            tokens = await stream(client, MODELS[turn % len(MODELS)], f"question {turn}")
            assert len(tokens) == TOKENS
            await asyncio.sleep(0.2)
    sheaf.wait_for("the engine is back with its adapters", lambda: back(sheaf, victim), timeout=240)


def back(sheaf: Sheaf, victim: str) -> bool:
    pods = {pod["name"]: pod for pod in sheaf.get("pods")}
    return (
        bool(pods[victim]["ready"]) and pods[victim]["restarts"] == 1 and residency(sheaf) == dict.fromkeys(ADAPTERS, 2)
    )


def engine_pid(sheaf: Sheaf, engine_url: str) -> int:
    """The process that listens as the engine, found by its command line."""
    port = engine_url.rsplit(":", 1)[1]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"vllm.entrypoints.openai.api_server" in command and port.encode() in command:
                return int(entry.name)
    raise AssertionError(f"no engine on port {port}")


def test_the_official_client_lists_every_model_and_adapter(sheaf: Sheaf) -> None:
    with openai.OpenAI(base_url=f"{sheaf.url}/v1", api_key="none") as client:
        assert {model.id for model in client.models.list()} == {*MODELS, "words"}
        assert client.models.retrieve("style-2").id == "style-2"


def test_completions_and_embeddings_and_responses_answer(sheaf: Sheaf) -> None:
    with openai.OpenAI(base_url=f"{sheaf.url}/v1", api_key="none") as client:
        text = client.completions.create(model="style-3", prompt="Once", max_tokens=8, temperature=0)
        assert text.model == "style-3"
        assert text.choices[0].text
        vectors = client.embeddings.create(model="words", input=["one", "two"])
        assert len(vectors.data) == 2
        answer = client.responses.create(model="tiny", input="Say one word.", max_output_tokens=8)
        assert answer.status in {"completed", "incomplete"}


def test_the_anthropic_client_is_answered(sheaf: Sheaf) -> None:
    with anthropic.Anthropic(base_url=sheaf.url, api_key="none") as client:
        asked = [{"role": "user", "content": "hi"}]
        message = client.messages.create(model="style-4", max_tokens=8, messages=asked)
    assert (message.role, message.model) == ("assistant", "style-4")
    assert message.usage.output_tokens > 0


def test_an_unknown_model_is_told_its_nearest_names(sheaf: Sheaf) -> None:
    with (
        openai.OpenAI(base_url=f"{sheaf.url}/v1", api_key="none") as client,
        pytest.raises(openai.NotFoundError) as caught,
    ):
        client.chat.completions.create(model="stlye-1", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "model_not_found"
    assert "style-1" in caught.value.message


def test_the_engines_management_calls_are_out_of_reach(sheaf: Sheaf) -> None:
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/reset_prefix_cache", "/invocations"):
        assert httpx.post(f"{sheaf.url}{path}", json={}, timeout=10).status_code == 404
