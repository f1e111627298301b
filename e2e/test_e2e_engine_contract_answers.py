"""The emulator and real vLLM answer alike: whole answers, where they end, and their log probabilities."""

import re
from typing import Any

import pytest
from contract_checks import CHAT, TEXT, token_ids
from contract_engines import MAX_LEN

pytestmark = pytest.mark.timeout(600)


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
