"""What a request asks for, read as engines read it; whatever it holds, deciding answers and does not raise. What it got is
counted in tokens."""

import json

import pytest
from gateway_token_engine import TokenEngine, event
from hypothesis import given
from hypothesis import strategies as st
from sheaf_gateway.continuation.journal import UNREADABLE, Journal, Purse, Sent
from sheaf_gateway.continuation.plan import Ending, Facts, Refusal, Rest, decide
from sheaf_gateway.continuation.wish import CHAT, TEXT, read_wish

BODY = {"model": "base", "messages": [{"role": "user", "content": "a"}], "stream": True, "max_tokens": 30}
FIELDS = (
    *("temperature", "seed", "presence_penalty", "frequency_penalty", "stop", "include_stop_str_in_output", "n"),
    *("min_tokens", "max_completion_tokens", "logprobs", "stream_options", "response_format", "tools", "messages"),
    *("return_token_ids", "vllm_xargs", "prompt", "echo", "cache_salt", "watermarking", "thinking_token_budget"),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**62) | st.floats(-2, 2) | st.sampled_from(["", "3", "true", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "content", "x"]), inner),
    max_leaves=4,
)


def wish_of(path=CHAT, **more):
    return read_wish(json.dumps({**BODY, **more}).encode(), path)


def sent_of(path=CHAT):
    sent = Sent()
    body = {**BODY, "prompt": "a", "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    for each in TokenEngine().events(path, body)[:12]:
        sent.read(each)
    return sent


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5), st.sampled_from([CHAT, TEXT]), st.booleans())
def test_no_value_of_any_field_fails_the_decision(more, path, plugin):
    raw = json.dumps({**BODY, **more}).encode()
    try:
        wish = read_wish(raw, path)
    except UNREADABLE:
        return
    assert isinstance(decide(sent_of(path), wish, Facts(2048, plugin), raw, path), Refusal | Ending | Rest)


def test_numbers_in_strings_are_read_as_engines_do():
    wish = wish_of(min_tokens="3", temperature="0", presence_penalty="0.0", max_completion_tokens=7)
    assert (wish.least, wish.greedy, wish.penalised, wish.limit) == (3, True, False, 7)


@pytest.mark.parametrize("more", [{"min_tokens": "a"}, {"stop": ["a", 1]}, {"temperature": []}, {"stream_options": 1}])
def test_what_no_engine_takes_is_unreadable(more):
    with pytest.raises(UNREADABLE):
        wish_of(**more)


@pytest.mark.parametrize(
    "more", [{"watermarking": False}, {"thinking_token_budget": 0}, {"new": False}, {"bad_words": ["x"]}]
)
def test_a_field_that_is_false_may_mean_something(more):
    assert wish_of(**more).whole == "parameter"


@pytest.mark.parametrize(
    "more", [{"watermarking": None}, {"length_penalty": 1}, {"echo": False}, {"top_logprobs": 0}, {"bad_words": []}]
)
def test_a_field_that_is_what_it_is_by_itself_means_nothing(more):
    assert (wish_of(**more).whole, wish_of(**more).never) == ("", "")


@given(st.lists(st.integers(0, 400), max_size=30), st.integers(1, 400))
def test_tokens_are_counted_by_their_ids_whether_read_or_not(sizes, prompt):
    journal = Journal(Purse(2**30), 2**20)
    journal.add(event({"id": "x", "choices": [{"delta": {"role": "assistant"}}], "prompt_token_ids": [7] * prompt}))
    for size in sizes:
        journal.add(event({"id": "x", "choices": [{"delta": {"content": "a" * size}, "token_ids": [5] * size}]}))
    quickly = journal.about()
    assert journal.tokens() == sum(sizes)
    assert quickly in {sum(sizes), len(sizes) + 1}
    assert len(journal.sent().tokens) == sum(sizes) == journal.about() == journal.tokens()
