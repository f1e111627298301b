"""Requests are known by the bytes that the engine renders where that is sure, and by canonical bytes otherwise."""

import json

import pytest
from sheaf_gateway.api.body import CHAT, COMPLETION, MESSAGES, parse
from sheaf_gateway.routing.form import Form

FORM = Form(
    text="<s>", begins={"user": "<u>"}, gaps={"user": {"assistant": "<a>"}}, ends={"user": "<a>", "assistant": "<u>"}
)
HI = {"role": "user", "content": "hi"}


def read(decode=CHAT, form=FORM, **body):
    return parse(json.dumps({"model": "m", **body}).encode(), decode, 64, {"m": form}.get)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tools": []},
        {"tools": None},
        {"add_generation_prompt": True},
        {"chat_template_kwargs": {}},
        {"stream": True},
    ],
)
def test_a_plain_conversation_is_rendered(more):
    found = read(messages=[HI], **more)
    assert (found.prompt, found.exact) == (b"<u>hi<a>", True)
    assert read(messages=[HI, {"role": "assistant", "content": "ho"}]).prompt == b"<u>hi<a>ho<u>"


@pytest.mark.parametrize(
    "more",
    [
        {"messages": [HI, HI]},
        {"messages": []},
        {"messages": [HI | {"content": [{"type": "text", "text": "hi"}]}]},
        {"messages": [HI | {"content": None}]},
        {"messages": [HI | {"name": "ann"}]},
        {"messages": [HI, {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
        {"tools": [{"type": "function"}]},
        {"chat_template": "x"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"add_generation_prompt": False},
        {"continue_final_message": True},
        {"documents": [{}]},
        {"reasoning_effort": "low"},
        {"truncate_prompt_tokens": 5},
        {"add_special_tokens": True},
    ],
)
def test_whatever_an_engine_renders_otherwise_is_known_by_canonical_bytes(more):
    body = {"messages": [HI]} | more
    found = read(**body)
    assert not found.exact
    assert found.prompt == read(form=None, **body).prompt


def test_a_plain_prompt_is_taken_as_the_tokenizer_begins_it():
    found = read(COMPLETION, prompt="hi")
    assert (found.prompt, found.exact) == (b"<s>hi", True)


@pytest.mark.parametrize(
    "more", [{"prompt": [1, 2]}, {"prompt": ["a", "b"]}, {"prompt": "hi", "add_special_tokens": False}]
)
def test_prompts_of_tokens_or_without_the_tokenizers_beginning_are_canonical(more):
    assert not read(COMPLETION, **more).exact


def test_endpoints_that_translate_first_and_models_without_a_form_are_canonical():
    assert not read(MESSAGES, messages=[HI]).exact
    assert not read(form=None, messages=[HI]).exact
