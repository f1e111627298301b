"""The emulator and real vLLM answer alike: one suite of client checks against both.

Whatever Sheaf relies on in vLLM is checked here, so that the emulator cannot drift, and a new vLLM that changes it is
noticed. Both serve the same random two-layer Llama with the same command line.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import zmq
from contract_engines import BLOCK_SIZE, MAX_LEN, MAX_LORAS, ContractEngine, running
from tiny_models import tiny_adapter, tiny_llama

pytestmark = pytest.mark.timeout(600)
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
FRESH = count(100)


@pytest.fixture(scope="module", params=["emulator", "vllm"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContractEngine]:
    with running(request.param, tmp_path_factory.mktemp("engine") / "log") as engine:
        yield engine


@pytest.fixture
def adapter(engine: ContractEngine) -> Iterator[str]:
    name = f"adapter-{next(FRESH)}"
    response = engine.post(LOAD, {"lora_name": name, "lora_path": str(tiny_adapter(1))})
    assert response.status_code == 200, response.text
    yield name
    engine.post(UNLOAD, {"lora_name": name})


def fresh_prompt(length: int) -> list[int]:
    """Token ids that no other test has sent."""
    return [3 + next(FRESH) % 400, *(10 + (next(FRESH) * 7) % 400 for _ in range(length - 1))]


# Plain endpoints


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


# Whole answers

USAGE = {"prompt_tokens", "total_tokens", "completion_tokens", "prompt_tokens_details", "completion_tokens_details"}


def test_a_chat_answer_has_vllms_fields(engine):
    body = engine.chat()
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{16}", body["id"])
    assert set(body) == {
        *("id", "object", "created", "model", "choices", "service_tier", "system_fingerprint", "usage"),
        *("prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params", "ec_transfer_params", "metrics"),
    }
    assert (body["object"], body["model"]) == ("chat.completion", "tiny")
    (choice,) = body["choices"]
    assert set(choice) == {
        *("index", "message", "logprobs", "finish_reason", "stop_reason", "token_ids", "routed_experts"),
    }
    assert set(choice["message"]) == {
        *("role", "content", "refusal", "annotations", "audio", "function_call", "reasoning"),
    }
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"
    assert_usage_adds_up(body["usage"], completion=4)


def test_a_text_answer_has_vllms_fields(engine):
    body = engine.complete()
    assert re.fullmatch(r"cmpl-[0-9a-f]{16}", body["id"])
    assert set(body) == {
        *("id", "object", "created", "model", "choices", "service_tier", "system_fingerprint", "usage"),
        *("kv_transfer_params", "ec_transfer_params", "metrics"),
    }
    (choice,) = body["choices"]
    assert set(choice) == {
        *("index", "text", "logprobs", "finish_reason", "stop_reason", "token_ids", "prompt_logprobs"),
        *("prompt_token_ids", "routed_experts"),
    }
    assert_usage_adds_up(body["usage"], completion=4)


def assert_usage_adds_up(usage: dict[str, Any], completion: int) -> None:
    assert set(usage) == USAGE
    assert usage["completion_tokens"] == completion
    assert usage["total_tokens"] == usage["prompt_tokens"] + completion
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0


@pytest.mark.parametrize("model", [None, "", "tiny"])
def test_the_base_model_answers_without_a_name_too(engine, model):
    assert engine.complete(model=model)["model"] == "tiny"


def test_token_ids_are_told_when_asked_for(engine):
    prompt = [5, 6, 7, 8]
    (choice,) = engine.complete(prompt, return_token_ids=True)["choices"]
    assert choice["prompt_token_ids"] == prompt
    assert len(choice["token_ids"]) == 4
    body = engine.chat(return_token_ids=True)
    assert len(body["prompt_token_ids"]) == body["usage"]["prompt_tokens"]
    assert len(body["choices"][0]["token_ids"]) == 4


def test_greedy_decoding_goes_on_from_its_own_tokens_as_if_never_interrupted(engine):
    prompt = engine.post("/tokenize", {"prompt": "The river and the sea"}).json()["tokens"]
    whole = token_ids(engine.complete(prompt, max_tokens=8, return_token_ids=True, ignore_eos=True))
    rest = token_ids(engine.complete(prompt + whole[:3], max_tokens=5, return_token_ids=True, ignore_eos=True))
    assert whole[:3] + rest == whole


def token_ids(body: dict[str, Any]) -> list[int]:
    return body["choices"][0]["token_ids"]


@pytest.mark.parametrize(("path", "prefix"), [(CHAT, "chatcmpl"), (TEXT, "cmpl")])
def test_the_request_id_of_the_caller_is_in_the_answers_id(engine, path, prefix):
    body = {"model": "tiny", "max_tokens": 1, "prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    response = engine.client.post(path, json=body, headers={"x-request-id": "abc"})
    assert response.json()["id"] == f"{prefix}-abc"
    assert engine.post(path, {**body, "request_id": "mine"}).json()["id"] == f"{prefix}-mine"


def test_several_prompts_are_answered_in_order_and_counted_together(engine):
    body = engine.complete(["a b", "c d e"], return_token_ids=True)
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    prompts = [choice["prompt_token_ids"] for choice in body["choices"]]
    assert body["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert body["usage"]["completion_tokens"] == 8
    assert len(engine.complete([[5, 6], [7]])["choices"]) == 2


def test_several_choices_share_one_prompt(engine):
    body = engine.chat(n=2, temperature=1, seed=3)
    assert sorted(choice["index"] for choice in body["choices"]) == [0, 1]
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 8


def test_content_parts_are_joined(engine):
    parts = [{"type": "text", "text": "hi"}, {"type": "text", "text": "yo"}]
    whole = engine.chat("hi\nyo", return_token_ids=True)
    split = engine.chat(messages=[{"role": "user", "content": parts}], return_token_ids=True)
    assert split["prompt_token_ids"] == whole["prompt_token_ids"]


def test_an_open_last_message_is_continued(engine):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Sure"}]
    fields = {"messages": turns, "return_token_ids": True}
    body = engine.chat(**fields, continue_final_message=True, add_generation_prompt=False)
    closed = engine.chat(**fields)["prompt_token_ids"]
    assert closed[: body["usage"]["prompt_tokens"]] == body["prompt_token_ids"]


def test_the_answer_is_cut_at_the_context_length(engine):
    usage = engine.complete([7] * (MAX_LEN - 24), max_tokens=100, ignore_eos=True)["usage"]
    assert usage["total_tokens"] == MAX_LEN


def test_max_completion_tokens_is_the_newer_name(engine):
    body = engine.chat(max_tokens=None, max_completion_tokens=3, ignore_eos=True)
    assert body["usage"]["completion_tokens"] == 3


def test_echo_puts_the_prompt_first(engine):
    assert engine.complete("Hello there", echo=True)["choices"][0]["text"].startswith("Hello there")


# Ends


def test_a_stop_string_ends_the_answer_before_it(engine):
    text = engine.complete(max_tokens=24, ignore_eos=True)["choices"][0]["text"]
    stop = re.search(r"[a-zA-Z]{2}", text[3:]).group()
    fields = {"max_tokens": 24, "ignore_eos": True, "stop": [stop]}
    (choice,) = engine.complete(**fields)["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert choice["text"] == text[: text.index(stop)]
    (kept,) = engine.complete(**fields, include_stop_str_in_output=True)["choices"]
    assert kept["text"] == choice["text"] + stop
    streamed = engine.stream_text(**fields)
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == choice["text"]
    assert streamed[-1]["choices"][0]["stop_reason"] == stop


def test_a_stop_token_ends_the_answer_and_min_tokens_puts_it_off(engine):
    tokens = token_ids(engine.complete(max_tokens=8, ignore_eos=True, return_token_ids=True))
    body = engine.complete(max_tokens=8, ignore_eos=True, return_token_ids=True, stop_token_ids=[tokens[3]])
    end = tokens.index(tokens[3])
    assert token_ids(body) == tokens[: end + 1]
    assert body["choices"][0]["stop_reason"] == tokens[3]
    later = engine.complete(max_tokens=8, min_tokens=6, ignore_eos=True, stop=["a", "e", "i", "o"])
    assert later["usage"]["completion_tokens"] >= 6


# Log probabilities


def test_chat_logprobs_have_openais_shape(engine):
    body = engine.chat(logprobs=True, top_logprobs=2, max_tokens=2)
    content = body["choices"][0]["logprobs"]["content"]
    assert len(content) == 2
    assert all(set(entry) == {"token", "logprob", "bytes", "top_logprobs"} for entry in content)
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)
    assert all(top["logprob"] <= 0 for entry in content for top in entry["top_logprobs"])


def test_text_logprobs_have_openais_shape(engine):
    logprobs = engine.complete(logprobs=1, max_tokens=2)["choices"][0]["logprobs"]
    assert set(logprobs) == {"text_offset", "token_logprobs", "tokens", "top_logprobs"}
    assert {len(column) for column in logprobs.values()} == {2}
    streamed = engine.stream_text(logprobs=1, max_tokens=2)
    assert all(set(chunk["choices"][0]["logprobs"]) == set(logprobs) for chunk in streamed)


# Streams


def test_a_chat_stream_begins_with_the_role_and_ends_with_the_reason(engine):
    first, *deltas = engine.stream_chat()
    assert set(first) == {"id", "object", "created", "model", "choices", "prompt_token_ids", "prompt_text"}
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in deltas} == {
        (first["id"], first["created"], "tiny")
    }
    assert all(set(chunk["choices"][0]["delta"]) == {"content"} for chunk in deltas)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in deltas]
    assert reasons == [None] * (len(deltas) - 1) + ["length"]
    assert "usage" not in deltas[-1]
    assert deltas[-1]["choices"][0]["stop_reason"] is None
    assert deltas[-1]["system_fingerprint"]
    assert all("system_fingerprint" not in chunk for chunk in deltas[:-1])


def test_a_text_stream_has_no_opening_chunk(engine):
    chunks = engine.stream_text()
    assert all(set(chunk) >= {"id", "object", "created", "model", "choices"} for chunk in chunks)
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"
    assert set(chunks[0]["choices"][0]) == {
        *("index", "text", "logprobs", "finish_reason", "stop_reason", "prompt_token_ids", "token_ids"),
    }


def test_a_stream_says_what_the_whole_answer_says(engine):
    whole = engine.chat("Hi", max_tokens=12)["choices"][0]["message"]["content"]
    chunks = engine.stream_chat(max_tokens=12)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == whole
    whole = engine.complete(max_tokens=12)["choices"][0]["text"]
    assert "".join(chunk["choices"][0]["text"] for chunk in engine.stream_text(max_tokens=12)) == whole


@pytest.mark.parametrize("kind", ["stream_chat", "stream_text"])
def test_a_stream_tells_its_usage_last_when_asked_to(engine, kind):
    *chunks, last = getattr(engine, kind)(stream_options={"include_usage": True}, ignore_eos=True)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 4
    assert "cached_tokens" in last["usage"]["prompt_tokens_details"]
    assert all("usage" not in chunk and "system_fingerprint" not in chunk for chunk in chunks)


@pytest.mark.parametrize("kind", ["stream_chat", "stream_text"])
def test_a_stream_can_tell_its_usage_so_far_with_every_chunk(engine, kind):
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = getattr(engine, kind)(stream_options=options, ignore_eos=True)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == last["usage"]["completion_tokens"] == 4
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {last["usage"]["prompt_tokens"]}


def test_a_streams_token_ids_come_with_its_chunks_and_the_prompts_once(engine):
    first, *deltas = engine.stream_chat(return_token_ids=True)
    whole = engine.chat("Hi", return_token_ids=True)
    assert first["prompt_token_ids"] == whole["prompt_token_ids"]
    assert not any("prompt_token_ids" in chunk for chunk in deltas)
    assert [token for chunk in deltas for token in chunk["choices"][0]["token_ids"]] == token_ids(whole)
    first, *later = engine.stream_text(prompt=[5, 6, 7], return_token_ids=True)
    assert first["choices"][0]["prompt_token_ids"] == [5, 6, 7]
    assert all(chunk["choices"][0]["prompt_token_ids"] is None for chunk in later)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("stream_chat", {"n": 2, "temperature": 1, "seed": 1}),
        ("stream_text", {"n": 2, "temperature": 1, "seed": 1}),
        ("stream_text", {"prompt": ["a", "b"]}),
    ],
)
def test_every_choice_of_a_stream_ends_once(engine, kind, fields):
    chunks = getattr(engine, kind)(**fields, ignore_eos=True)
    ends = [chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert sorted(ends) == [0, 1]


def test_a_client_that_leaves_frees_the_engine(engine):
    body = {"model": "tiny", "prompt": "Hello", "max_tokens": 1000, "ignore_eos": True, "stream": True}
    with engine.client.stream("POST", TEXT, json=body) as response:
        next(response.iter_bytes())
    wait_for(lambda: engine.metric("vllm:num_requests_running") == 0)
    assert engine.metric("vllm:num_requests_waiting") == 0


def wait_for(condition: Any, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Refusals

HELLO = [{"role": "user", "content": "Hello"}]
REFUSED = [
    (CHAT, {"model": "nope"}, 404, "NotFoundError", "model"),
    (TEXT, {"model": "nope"}, 404, "NotFoundError", "model"),
    ("/tokenize", {"model": "nope"}, 404, "NotFoundError", "model"),
    (CHAT, {"max_tokens": 5000}, 400, "BadRequestError", "max_tokens"),
    (CHAT, {"max_tokens": 0}, 400, "BadRequestError", "max_tokens"),
    (CHAT, {"max_tokens": -1}, 400, "BadRequestError", "max_tokens"),
    (CHAT, {"n": 0}, 400, "BadRequestError", None),
    (CHAT, {"n": 2, "temperature": 0}, 400, "BadRequestError", None),
    (CHAT, {"temperature": -1}, 400, "BadRequestError", "temperature"),
    (CHAT, {"top_p": 2}, 400, "BadRequestError", "top_p"),
    (CHAT, {"messages": []}, 400, "BadRequestError", None),
    (CHAT, {"messages": "x"}, 400, "Bad Request", "body.messages"),
    (CHAT, {"cache_salt": ""}, 400, "BadRequestError", "cache_salt"),
    (CHAT, {"stream_options": {"include_usage": True}}, 400, "BadRequestError", "stream_options"),
    (CHAT, {"min_tokens": 9, "max_tokens": 4}, 400, "BadRequestError", None),
    (CHAT, {"top_logprobs": 3}, 400, "BadRequestError", "top_logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 50}, 400, "BadRequestError", "logprobs"),
    (CHAT, {"stop": [""]}, 400, "BadRequestError", None),
    (CHAT, {"stop": ["a"] * 9}, 400, "Bad Request", "body.stop"),
    (CHAT, {"seed": 2**70}, 400, "Bad Request", "body.seed"),
    (CHAT, {"continue_final_message": True}, 400, "BadRequestError", None),
    (TEXT, {"prompt": None}, 400, "BadRequestError", "prompt"),
    (TEXT, {"prompt": ""}, 400, "BadRequestError", "prompt"),
    (TEXT, {"prompt": []}, 400, "BadRequestError", None),
    (TEXT, {"prompt": [10**6]}, 400, "BadRequestError", None),
    (TEXT, {"prompt": [-1]}, 400, "Bad Request", "body.prompt.0"),
    (TEXT, {"prompt": [7] * 1100}, 400, "BadRequestError", "input_tokens"),
    (TEXT, {"prompt": [7] * MAX_LEN}, 400, "BadRequestError", "max_tokens"),
    (TEXT, {"logprobs": 50}, 400, "BadRequestError", "logprobs"),
    (TEXT, {"suffix": "x"}, 400, "BadRequestError", "suffix"),
    ("/detokenize", {"tokens": ["a"]}, 400, "Bad Request", "body.tokens.0"),
    ("/detokenize", {"tokens": [-1]}, 400, "Bad Request", "body.tokens.0"),
]


@pytest.mark.parametrize(("path", "fields", "status", "kind", "param"), REFUSED)
def test_a_bad_request_is_refused_with_its_parameter(engine, path, fields, status, kind, param):
    body = {"model": "tiny", "messages": HELLO} if path == CHAT else {"model": "tiny", "prompt": "Hello"}
    assert_refused(engine.post(path, {**body, **fields}), status, kind, param)


def assert_refused(response: httpx.Response, status: int, kind: str, param: str | None) -> None:
    error = response.json()["error"]
    assert error.pop("message")
    assert (response.status_code, error) == (status, {"type": kind, "param": param, "code": status})


def test_a_text_beyond_the_context_length_is_refused(engine):
    response = engine.post(CHAT, {"model": "tiny", "messages": [{"role": "user", "content": "zq " * 5000}]})
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (400, "BadRequestError", 400)
    assert error["param"] in ("input_text", "input_tokens")
    assert f"maximum context length is {MAX_LEN} tokens" in error["message"]


@pytest.mark.parametrize(
    ("content", "media_type", "param"),
    [
        (b"{", "application/json", "body.1"),
        (b"", "application/json", "body"),
        (b"[]", "application/json", "body"),
        (b"{}", "text/plain", None),
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(engine, content, media_type, param):
    response = engine.client.post(TEXT, content=content, headers={"content-type": media_type})
    assert_refused(response, 400, "Bad Request", param)


def test_a_body_that_is_not_utf8_is_refused(engine):
    content = b'{"model": "tiny", "prompt": "\xff"}'
    response = engine.client.post(TEXT, content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()) == (400, {"detail": "There was an error parsing the body"})


# Tokens


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


# Adapters


def test_an_adapter_answers_under_its_name_and_in_its_own_way(engine, adapter):
    body = engine.chat(model=adapter, return_token_ids=True, max_tokens=8)
    assert body["model"] == adapter
    assert token_ids(body) != token_ids(engine.chat(return_token_ids=True, max_tokens=8))
    assert {chunk["model"] for chunk in engine.stream_chat(model=adapter)} == {adapter}
    assert engine.post("/tokenize", {"model": adapter, "prompt": "x"}).status_code == 200


def test_a_loaded_adapter_is_listed_under_its_base_model(engine, adapter):
    (card,) = [card for card in engine.client.get("/v1/models").json()["data"] if card["id"] == adapter]
    assert (card["parent"], card["root"], card["max_model_len"]) == ("tiny", str(tiny_adapter(1)), None)


def test_more_adapters_than_slots_are_all_served(engine):
    names = [f"many-{next(FRESH)}" for _ in range(MAX_LORAS + 1)]
    for name in names:
        engine.post(LOAD, {"lora_name": name, "lora_path": str(tiny_adapter(2))}).raise_for_status()
    with ThreadPoolExecutor(len(names)) as pool:
        bodies = list(pool.map(lambda name: engine.chat(model=name, max_tokens=16), names))
    assert [body["model"] for body in bodies] == names
    for name in names:
        engine.post(UNLOAD, {"lora_name": name}).raise_for_status()


def test_loading_and_unloading_say_what_happened(engine):
    name = f"spoken-{next(FRESH)}"
    loaded = engine.post(LOAD, {"lora_name": name, "lora_path": str(tiny_adapter(1))})
    assert (loaded.status_code, loaded.text) == (200, f"Success: LoRA adapter '{name}' added successfully.")
    again = engine.post(LOAD, {"lora_name": name, "lora_path": str(tiny_adapter(2)), "load_inplace": True})
    assert again.status_code == 200
    removed = engine.post(UNLOAD, {"lora_name": name})
    assert (removed.status_code, removed.text) == (200, f"Success: LoRA adapter '{name}' removed successfully.")
    assert_refused(engine.post(UNLOAD, {"lora_name": name}), 404, "NotFoundError", None)
    assert_refused(engine.post(TEXT, {"model": name, "prompt": "x"}), 404, "NotFoundError", "model")


def test_an_adapter_that_is_loaded_is_not_loaded_again(engine, adapter):
    response = engine.post(LOAD, {"lora_name": adapter, "lora_path": str(tiny_adapter(1))})
    assert_refused(response, 400, "InvalidUserInput", None)
    assert "has already been loaded" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "param"),
    [
        (LOAD, {"lora_name": "x", "lora_path": "/nowhere/at/all"}, 404, "NotFoundError", None),
        (LOAD, {"lora_name": "x", "lora_path": "owner/name"}, 404, "NotFoundError", None),
        (LOAD, {"lora_name": "x"}, 400, "Bad Request", "body.lora_path"),
        (LOAD, {"lora_name": "x", "lora_path": ""}, 400, "InvalidUserInput", None),
        (LOAD, {"lora_name": "", "lora_path": "/x"}, 400, "InvalidUserInput", None),
        (LOAD, {"lora_name": "tiny", "lora_path": "/x"}, 400, "InvalidUserInput", None),
        (LOAD, {"lora_name": 3, "lora_path": "/x"}, 400, "Bad Request", "body.lora_name"),
        (UNLOAD, {}, 400, "Bad Request", "body.lora_name"),
        (UNLOAD, {"lora_name": ""}, 400, "InvalidUserInput", None),
        (UNLOAD, {"lora_name": "never"}, 404, "NotFoundError", None),
    ],
)
def test_a_bad_adapter_request_is_refused(engine, path, body, status, kind, param):
    assert_refused(engine.post(path, body), status, kind, param)


def test_a_folder_without_an_adapter_is_not_found(engine, tmp_path: Path):
    assert_refused(engine.post(LOAD, {"lora_name": "x", "lora_path": str(tmp_path)}), 404, "NotFoundError", None)


def test_an_adapter_of_too_high_a_rank_is_refused(engine):
    response = engine.post(LOAD, {"lora_name": "x", "lora_path": str(tiny_adapter(3, rank=64))})
    assert "LoRA rank 64 is greater than max_lora_rank 16" in response.json()["error"]["message"]
    assert_refused(response, 500, "InternalServerError", None)


# Metrics

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


# The prefix cache and its events


def cached_tokens(body: dict[str, Any]) -> int:
    return body["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_a_repeated_prefix_is_found_in_whole_blocks_and_never_whole(engine):
    prompt = fresh_prompt(100)
    assert cached_tokens(engine.complete(prompt)) == 0
    assert cached_tokens(engine.complete(prompt)) == 96
    assert cached_tokens(engine.complete(prompt[:64])) == 32
    assert cached_tokens(engine.complete(prompt[:65])) == 64
    assert cached_tokens(engine.complete(prompt[:50] + fresh_prompt(50))) == 32


def test_another_salt_or_adapter_never_finds_it(engine, adapter):
    prompt = fresh_prompt(100)
    assert cached_tokens(engine.complete(prompt)) == 0
    assert cached_tokens(engine.complete(prompt, cache_salt="pepper")) == 0
    assert cached_tokens(engine.complete(prompt, cache_salt="pepper")) == 96
    assert cached_tokens(engine.complete(prompt, model=adapter)) == 0
    assert cached_tokens(engine.complete(prompt, model=adapter)) == 96


def test_the_same_prompt_twice_in_one_request_is_computed_once(engine):
    prompt = fresh_prompt(100)
    assert cached_tokens(engine.complete([prompt, prompt])) == 96


def test_stored_blocks_are_announced_as_a_chain_of_the_prompts_tokens(engine):
    prompt = fresh_prompt(100)
    engine.complete(prompt)
    (event,) = engine.stored_events(lambda event: event["token_ids"][:32] == prompt[:32])
    assert len(set(event.pop("block_hashes"))) == 3
    assert event == {
        "type": "BlockStored",
        "parent_block_hash": None,
        "token_ids": prompt[:96],
        "block_size": BLOCK_SIZE,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [None, None, None],
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }


def test_later_blocks_name_the_block_before_them(engine):
    prompt = fresh_prompt(164)
    engine.complete(prompt[:100])
    engine.complete(prompt)
    (first,) = engine.stored_events(lambda event: event["token_ids"][:32] == prompt[:32])
    (second,) = engine.stored_events(lambda event: event["token_ids"][:32] == prompt[96:128])
    assert second["parent_block_hash"] == first["block_hashes"][-1]
    assert second["token_ids"] == prompt[96:160]


def test_generated_blocks_are_announced_when_they_are_full(engine):
    prompt = fresh_prompt(30)
    tokens = prompt + token_ids(engine.complete(prompt, max_tokens=40, ignore_eos=True, return_token_ids=True))
    (first,) = engine.stored_events(lambda event: event["token_ids"] == tokens[:32])
    (second,) = engine.stored_events(lambda event: event["parent_block_hash"] == first["block_hashes"][0])
    assert second["token_ids"] == tokens[32:64]


def test_events_tell_adapter_and_salt(engine, adapter):
    prompt = fresh_prompt(70)
    engine.complete(prompt, model=adapter, cache_salt="pepper")
    (event,) = engine.stored_events(lambda event: event["token_ids"] == prompt[:64])
    assert event["lora_name"] == adapter
    assert isinstance(event["lora_id"], int)
    assert event["extra_keys"] == [[adapter, "pepper"], [adapter]]


def test_batches_are_numbered_dated_and_can_be_replayed(engine):
    prompt = fresh_prompt(40)
    engine.complete(prompt)
    engine.stored_events(lambda event: event["token_ids"] == prompt[:32])
    numbers = [number for _, number, _ in engine.batches]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    topic, last, batch = engine.batches[-1]
    assert (topic, len(batch), batch[2]) == (b"kv", 3, 0)
    assert abs(batch[0] - time.time()) < 60
    replayed = replay(engine.replay_port, last)
    assert [frames[1:3] for frames in replayed[:-1]] == [[b"kv", last.to_bytes(8, "big")]]
    assert replayed[-1] == [b"", b"", (-1).to_bytes(8, "big", signed=True), b""]


def replay(port: int, first: int) -> list[list[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.RCVTIMEO, 10_000)
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send_multipart([b"", first.to_bytes(8, "big")])
        frames = [dealer.recv_multipart()]
        while frames[-1][-1]:
            frames.append(dealer.recv_multipart())
    return frames


# The official client


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
