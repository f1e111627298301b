"""The emulator and real vLLM answer alike: plain endpoints, tokens, metrics, the official client."""

import json

import openai
import pytest
from contract_checks import CHAT, HELLO, fresh_prompt, wait_for
from contract_engines import BLOCK_SIZE, MAX_LEN, MAX_LORAS
from tiny_models import tiny_llama

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("path", ["/health", "/ping"])
def test_health_is_an_empty_200(engine, path):
    response = engine.client.get(path)
    assert (response.status_code, response.content) == (200, b"")


def test_the_version_is_told(engine):
    assert engine.client.get("/version").json() == {"version": "0.32.0"}


def test_the_load_is_a_number(engine):
    assert isinstance(engine.client.get("/load").json()["server_load"], int)


def test_models_lists_the_base_model_with_its_length(engine):
    body = engine.client.get("/v1/models").json()
    assert body["object"] == "list"
    (card,) = [card for card in body["data"] if card["id"] == "tiny"]
    (permission,) = card.pop("permission")
    assert isinstance(card.pop("created"), int)
    assert card == {
        "id": "tiny",
        "object": "model",
        "owned_by": "vllm",
        "root": str(tiny_llama()),
        "parent": None,
        "max_model_len": MAX_LEN,
    }
    assert permission["object"] == "model_permission"


def test_kv_event_sources_tells_where_events_come_from(engine):
    (source,) = engine.client.get("/kv_event_sources").json().values()
    assert source == {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{engine.events_port}",
        "replay_endpoint": f"tcp://*:{engine.replay_port}",
        "buffer_steps": 10000,
        "hwm": 100000,
        "max_queue_size": 100000,
        "topic": "kv",
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [("GET", "/nowhere", 404, None), ("POST", "/v1/embeddings", 404, None), ("GET", CHAT, 405, "POST")],
)
def test_a_path_that_is_not_served_is_refused(engine, method, path, status, allow):
    response = engine.client.request(method, path)
    assert (response.status_code, response.headers.get("allow")) == (status, allow)
    assert response.json() == {"detail": {404: "Not Found", 405: "Method Not Allowed"}[status]}


def test_tokenizing_a_conversation_gives_the_prompt_that_is_used(engine):
    body = engine.post("/tokenize", {"messages": HELLO, "return_token_strs": True}).json()
    assert set(body) == {"count", "max_model_len", "tokens", "token_strs"}
    assert body["count"] == len(body["tokens"]) == len(body["token_strs"])
    assert body["max_model_len"] == MAX_LEN
    assert engine.chat("Hello", return_token_ids=True)["prompt_token_ids"] == body["tokens"]


def test_detokenizing_gives_the_text_again(engine):
    text = "Zwölf Boxkämpfer, 漢字 and 🙂"
    tokens = engine.post("/tokenize", {"prompt": text}).json()["tokens"]
    assert engine.post("/detokenize", {"tokens": tokens}).json() == {"prompt": text}
    assert engine.post("/detokenize", {"tokens": []}).json() == {"prompt": ""}


METRICS = """
    num_requests_running num_requests_waiting kv_cache_usage_perc prefix_cache_queries_total prefix_cache_hits_total
    prompt_tokens_total generation_tokens_total prompt_tokens_cached_total num_preemptions_total request_success_total
    time_to_first_token_seconds_bucket inter_token_latency_seconds_bucket e2e_request_latency_seconds_bucket
    request_time_per_output_token_seconds_bucket request_queue_time_seconds_bucket request_prefill_time_seconds_bucket
    request_decode_time_seconds_bucket request_inference_time_seconds_bucket request_prompt_tokens_bucket
    request_generation_tokens_bucket iteration_tokens_total_bucket cache_config_info lora_requests_info
"""


def test_metrics_have_vllms_names_and_labels(engine, adapter):
    engine.chat(model=adapter)
    response = engine.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    samples = {line.split("{")[0]: line for line in response.text.splitlines() if not line.startswith("#")}
    assert not [name for name in METRICS.split() if f"vllm:{name}" not in samples]
    assert 'engine="0",model_name="tiny"' in samples["vllm:num_requests_running"]
    assert f'block_size="{BLOCK_SIZE}"' in samples["vllm:cache_config_info"]
    assert f'max_lora="{MAX_LORAS}"' in samples["vllm:lora_requests_info"]
    assert "running_lora_adapters=" in samples["vllm:lora_requests_info"]


def test_metrics_count_tokens(engine):
    wait_for(lambda: engine.metric("vllm:num_requests_running") == 0)
    names = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total", "vllm:request_success_total")
    before = [engine.metric(name) for name in names]
    engine.complete(fresh_prompt(10), max_tokens=6, ignore_eos=True)
    wait_for(lambda: [engine.metric(name) - old for name, old in zip(names, before, strict=True)] == [6, 10, 1])


def test_the_openai_client_works(engine):
    with openai.OpenAI(base_url=str(engine.client.base_url.join("/v1")), api_key="none") as client:
        whole = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=6, temperature=0)
        chunks = client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=6, temperature=0, stream=True, extra_body={"ignore_eos": True}
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text.startswith(whole.choices[0].message.content or "")
        assert "tiny" in [model.id for model in client.models.list()]
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="nope", prompt="x")


def test_answers_are_plain_json(engine):
    response = engine.post(CHAT, {"model": "tiny", "messages": HELLO, "max_tokens": 1})
    assert response.headers["content-type"] == "application/json"
    json.loads(response.content)
