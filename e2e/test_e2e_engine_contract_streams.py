"""The emulator and real vLLM answer alike: streams, chunk by chunk."""

import pytest
from contract_checks import TEXT, token_ids, wait_for

pytestmark = pytest.mark.timeout(600)


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


GENERATION = {"max_tokens": 24, "ignore_eos": True, "return_token_ids": True}


def streamed(chunks):
    """Text and token ids of a stream's choices; chats and texts alike."""
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    text = "".join(choice["delta"]["content"] if "delta" in choice else choice["text"] for choice in choices)
    return text, [token for choice in choices for token in choice.get("token_ids") or ()]


@pytest.mark.parametrize("kept", [1, 9, 23])
def test_a_prompt_of_tokens_goes_on_where_a_chat_was_broken_off(engine, kept):
    first, *deltas = engine.stream_chat(**GENERATION)
    text, tokens = streamed(deltas)
    assert len(tokens) == 24
    prompt = first["prompt_token_ids"] + tokens[:kept]
    rest = engine.stream_text(**{**GENERATION, "prompt": prompt, "max_tokens": 24 - kept})
    more, ids = streamed(rest)
    assert ids == tokens[kept:]
    assert text.endswith(more)
    assert rest[0]["choices"][0]["prompt_token_ids"] == prompt


def test_every_token_of_a_stream_comes_with_a_chunk_and_text_waits_for_stop_strings(engine):
    """What lies between what was generated and what was said is known from the longest stop string alone."""
    plain, _ = streamed(engine.stream_text(**GENERATION))
    chunks = engine.stream_text(**GENERATION, stop=["~~~~~", "~"])
    said = 0
    for count, chunk in enumerate(chunks[:-1], 1):
        assert chunk["choices"][0]["token_ids"]
        said += len(chunk["choices"][0]["text"])
        whole, _ = streamed(engine.stream_text(**{**GENERATION, "max_tokens": count}))
        assert said == max(0, len(whole) - 4) or not chunk["choices"][0]["text"]
    assert streamed(chunks)[0] == plain


def test_a_token_limit_and_a_least_length_count_from_the_prompt_on(engine):
    _, tokens = streamed(engine.stream_text(**GENERATION))
    prompt = engine.stream_text(**GENERATION)[0]["choices"][0]["prompt_token_ids"]
    *_, last = engine.stream_text(**{**GENERATION, "prompt": prompt + tokens[:20], "max_tokens": 4, "min_tokens": 2})
    assert last["choices"][0]["finish_reason"] == "length"
    assert streamed([last])[1] == tokens[-1:]


def test_forced_tokens_come_first_whatever_would_be_drawn(engine):
    assert engine.metric("sheaf:continuation_info") == 1
    _, tokens = streamed(engine.stream_text(**GENERATION))
    for sampling in ({}, {"temperature": 1.5, "seed": 7}, {"temperature": 1.5, "presence_penalty": 1.5}):
        extra = {"sheaf_forced": tokens[:9]}
        assert streamed(engine.stream_text(**{**GENERATION, **sampling}, vllm_xargs=extra))[1][:9] == tokens[:9]


def test_a_seed_goes_on_after_forced_tokens_as_after_drawn_ones(engine):
    sampling = {"temperature": 1.0, "seed": 11}
    _, tokens = streamed(engine.stream_text(**{**GENERATION, **sampling}))
    again = engine.stream_text(**{**GENERATION, **sampling}, vllm_xargs={"sheaf_forced": tokens[:10]})
    assert streamed(again)[1] == tokens


@pytest.mark.parametrize("repetition", [1.0, 1.2])
def test_tokens_that_were_spoken_before_are_penalised_like_output(engine, repetition):
    penalties = {"presence_penalty": 0.6, "frequency_penalty": 0.4, "repetition_penalty": repetition}
    chunks = engine.stream_text(**GENERATION, **penalties)
    tokens, prompt = streamed(chunks)[1], chunks[0]["choices"][0]["prompt_token_ids"]
    rest = {**GENERATION, **penalties, "prompt": prompt + tokens[:14], "max_tokens": 10}
    assert streamed(engine.stream_text(**rest, vllm_xargs={"sheaf_spoken": 14}))[1] == tokens[14:]


@pytest.mark.parametrize("wrong", [{"sheaf_forced": "1"}, {"sheaf_spoken": -1}])
def test_arguments_that_no_gateway_sends_are_refused(engine, wrong):
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1, "vllm_xargs": wrong}
    assert engine.post(TEXT, body).status_code == 400
