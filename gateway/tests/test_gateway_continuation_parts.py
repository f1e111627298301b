"""The parts of a continuation by themselves: reading requests, journals and their bounds, refusals."""

import json
from collections import deque

import pytest
from gateway_token_engine import TokenEngine, event
from sheaf_gateway.continuation import chunks
from sheaf_gateway.continuation.joiner import Joiner, SeamError
from sheaf_gateway.continuation.journal import Journal, Mark, Purse, Sent
from sheaf_gateway.continuation.plan import Ending, Facts, Refusal, Rest, decide, seam
from sheaf_gateway.continuation.wish import CHAT, TEXT, read_wish

BODY = {
    "model": "base",
    "messages": [{"role": "user", "content": "a"}],
    "stream": True,
    "max_tokens": 30,
    "temperature": 0,
}
LONG = {**BODY, "ignore_eos": True}


def stream_of(body, path=CHAT, **engine):
    return TokenEngine(**engine).events(path, {**body, "return_token_ids": True})


def sent_of(events):
    sent = Sent()
    for each in events:
        sent.read(each)
    return sent


def decided(events, body=None, facts=Facts(2048), path=CHAT):  # noqa: B008
    body = LONG if body is None else body
    raw = json.dumps(body).encode()
    return decide(sent_of(events), read_wish(raw, path), facts, raw, path)


@pytest.mark.parametrize(
    "data",
    [
        b"data: {}\n\n",
        b'data: {"choices":[{"text":"a","token_ids":null}]}\n\n',
        b'data: {"choices":[{"text":"say \\"token_ids\\":[1,2]","token_ids":[1,22]}]}\n\n',
        b'data: {"choices":[{"token_ids":[]}],"prompt_token_ids":[1,2,3]}\n\ndata: {"choices":[{"token_ids":[7]}]}\n\n',
    ],
)
def test_masking_takes_ids_and_nothing_else(data):
    found = chunks.masked(data)
    told = [json.loads(part.removeprefix(b"data: ")) for part in found.split(b"\n\n")[:-1]]
    before = [json.loads(part.removeprefix(b"data: ")) for part in data.split(b"\n\n")[:-1]]
    for after, was in zip(told, before, strict=True):
        for choice in was.get("choices", []):
            choice["token_ids"] = None
        if "prompt_token_ids" in was:
            was["prompt_token_ids"] = None
        assert after == was


@pytest.mark.parametrize("body", [b'{"a":1}', b'{"a":1} \n', b'{"return_token_ids":false,"a":1}'])
def test_the_last_key_counts(body):
    assert json.loads(chunks.asking_for_ids(body)) == {"a": 1, "return_token_ids": True}


@pytest.mark.parametrize(
    ("more", "never", "whole"),
    [
        ({}, "", ""),
        ({"n": 1, "logprobs": False, "tools": [], "echo": False, "metadata": {"a": "b"}}, "", ""),
        ({"n": 2}, "several_choices", ""),
        ({"prompt": ["a", "b"]}, "several_choices", ""),
        ({"prompt": ["a"]}, "", ""),
        ({"prompt": [1, 2]}, "", ""),
        ({"kv_transfer_params": {"a": 1}}, "kv_transfer", "parameter"),
        ({"tools": [{}]}, "", "tools"),
        ({"structured_outputs": {"regex": "a"}}, "", "structured_output"),
        ({"response_format": {"type": "json_object"}}, "", "structured_output"),
        ({"response_format": {"type": "text"}}, "", ""),
        ({"logprobs": True}, "", "chat_logprobs"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "", "multimodal"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}]}, "", ""),
        ({"something_new": 1}, "", "parameter"),
    ],
)
def test_what_a_request_allows(more, never, whole):
    wish = read_wish(json.dumps({**BODY, **more}).encode(), CHAT)
    assert (wish.never, wish.whole) == (never, whole)


def test_limits_and_stops_are_read_as_engines_read_them():
    def of(path=CHAT, **more):
        return read_wish(json.dumps({**{k: v for k, v in BODY.items() if k != "max_tokens"}, **more}).encode(), path)

    assert of().limit is None
    assert of(max_tokens=5).limit == 5
    assert of(max_tokens=5, max_completion_tokens=4).limit == 4
    assert of(TEXT).limit == 16
    assert of(TEXT, max_tokens=3).limit == 3
    assert (of(stop="abc").held, of(stop=["a", "abcd"]).held, of().held) == (2, 3, 0)
    assert (of(TEXT, logprobs=0).logprobs, of(TEXT, logprobs=0).shows_tokens, of().shows_tokens) == (0, True, False)


def test_a_stream_of_which_nothing_came_is_asked_for_again():
    found = decided([])
    assert isinstance(found, Rest)
    assert (found.whole, found.path, found.keep, json.loads(found.body)) == (
        True,
        CHAT,
        0,
        {**LONG, "return_token_ids": True},
    )


def test_after_the_end_only_the_end_is_missing():
    counted = {**LONG, "stream_options": {"include_usage": True}}
    events = stream_of(counted)
    for sent, missing in ((events, 0), (events[:-1], 1), (events[:-2], 2)):
        found = decided(sent, counted)
        assert isinstance(found, Ending)
        assert found.events == b"".join(events[len(events) - missing :])
    assert decided(stream_of(LONG)[:-1]) == Ending(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([b"data: garbage\n\n"], "unreadable"),
        ([b": comment\n\n"], "unreadable"),
        ([b'data: {"n":1}\n\n'], "unreadable"),
        ([b'data: {"error":{"message":"x"}}\n\n'], "engine_error"),
        ([b'data: {"id":"a","choices":[{"index":1,"text":"a","token_ids":[1]}]}\n\n'], "several_choices"),
        ([b'data: {"id":"a","choices":[{"index":0,"text":"a"}]}\n\n'], "no_token_ids"),
        ([b'data: {"id":"a","choices":[{"index":0,"text":"a","token_ids":[1]}]}\n\n'], "no_token_ids"),
    ],
)
def test_streams_that_cannot_be_read_are_refused(events, reason):
    assert decided(events) == Refusal(reason)


def test_what_would_be_wrong_is_refused():
    part = stream_of(LONG)[:12]
    hot = {**LONG, "temperature": 1}
    assert decided(part, {**hot, "tools": [{}]}) == Refusal("tools")
    assert decided(part, hot, Facts(2048, parses=True)) == Refusal("reasoning")
    assert decided(part, {**hot, "presence_penalty": 1}) == Refusal("penalties")
    assert decided(part, {**hot, "tools": [{}]}, Facts(2048, plugin=True, max_replay=3)) == Refusal(
        "too_long_to_repeat"
    )
    assert decided(part, {**LONG, "stop": "long stop"}, Facts(2048, max_replay=0)) == Refusal("too_long_to_repeat")
    assert decided(part, {**hot, "stop": "long stop"}) == Refusal("sampled_text_held_back")
    no_limit = {name: value for name, value in LONG.items() if name != "max_tokens"}
    assert decided(part, no_limit, Facts(0)) == Refusal("context_unknown")
    odd = json.loads(part[-1][6:])
    odd["choices"][0]["delta"] = {"reasoning": "a"}
    assert decided([*part[:-1], event(odd)], hot) == Refusal("reasoning")


def test_a_full_context_ends_as_an_engine_would_end_it():
    part = stream_of(LONG)[:12]
    sent = sent_of(part)
    for body, path in ((LONG, CHAT), ({**LONG, "prompt": "a"}, TEXT)):
        found = decided(part, body, Facts(len(sent.prompt) + len(sent.tokens)), path)
        assert isinstance(found, Ending)
        assert b'"finish_reason":"length"' in found.events
        assert found.events.endswith(b"data: [DONE]\n\n")


def test_the_plug_in_is_told_what_was_spoken_and_what_must_come():
    part = stream_of(LONG)[:12]
    hot = {**LONG, "temperature": 1, "presence_penalty": 1}
    asked = json.loads(decided(part, hot, Facts(2048, plugin=True)).body)
    assert asked["vllm_xargs"] == {"sheaf_spoken": 30 - asked["max_tokens"]}
    found = decided(part, {**hot, "stop": "long stop"}, Facts(2048, plugin=True))
    assert json.loads(found.body)["vllm_xargs"]["sheaf_forced"] == list(found.replay)
    tied = decided(part, {**LONG, "temperature": 0, "stop": "long stop"}, Facts(2048, plugin=True))
    assert json.loads(tied.body)["vllm_xargs"] == {"sheaf_forced": list(tied.replay)}
    seeded = {**hot, "seed": 4, "vllm_xargs": {"mine": 1}}
    found = decided(part, seeded, Facts(2048, plugin=True))
    assert json.loads(found.body)["vllm_xargs"] == {"mine": 1, "sheaf_forced": list(found.replay)}
    assert found.path == CHAT
    again = decided(part[:1], seeded, Facts(2048, plugin=True))
    assert json.loads(again.body)["vllm_xargs"] == {"mine": 1}


def joiner_of(part, body=None, facts=Facts(2048)):  # noqa: B008
    body = LONG if body is None else body
    raw = json.dumps(body).encode()
    sent, wish = sent_of(part), read_wish(raw, CHAT)
    rest = decide(sent, wish, facts, raw, CHAT)
    return Joiner(sent, wish, rest), rest


def told(rest):
    return TokenEngine(created=2).events(rest.path, json.loads(rest.body))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (b"data: nonsense\n\n", "unreadable"),
        (b"x" * 1_100_000, "unreadable"),
        (b'data: {"error":{"message":"x"}}\n\n', "engine_error"),
        (b'data: {"id":"a","choices":[{"index":0,"text":"a"}]}\n\n', "no_token_ids"),
        (b'data: {"id":"a","choices":[{"index":0,"text":"a","token_ids":[99]}]}\n\n', "not_the_same"),
        (b"data: [DONE]\n\n", "not_the_same"),
    ],
)
def test_what_is_not_the_rest_is_refused(wrong, reason):
    joiner, _ = joiner_of(stream_of(LONG)[:12], {**LONG, "tools": [{}]})
    with pytest.raises(SeamError, match=reason):
        joiner.feed(wrong)


def test_the_same_tokens_with_another_text_are_refused():
    joiner, rest = joiner_of(stream_of(LONG)[:12], {**LONG, "tools": [{}]})
    changed = (
        b"".join(told(rest))
        .replace(b'"content":" be"', b'"content":" he"')
        .replace(b'"content":"cat"', b'"content":"cot"')
    )
    with pytest.raises(SeamError, match="not_the_same"):
        joiner.feed(changed)


def test_a_parsed_delta_across_the_seam_is_refused_and_one_after_it_passes():
    part = stream_of(LONG)[:12]
    joiner, rest = joiner_of(part, {**LONG, "tools": [{}]})
    events = told(rest)
    merged = json.loads(events[11][6:])
    after = json.loads(events[12][6:])
    merged["choices"][0]["token_ids"] += after["choices"][0]["token_ids"]
    merged["choices"][0]["delta"] = {"tool_calls": [{"index": 0}]}
    with pytest.raises(SeamError, match="seam_within_a_chunk"):
        joiner.feed(b"".join(events[:11]) + event(merged))
    joiner, _ = joiner_of(part, {**LONG, "tools": [{}]})
    after["choices"][0]["delta"] = {"tool_calls": [{"index": 0}]}
    got = joiner.feed(b"".join(events[:12]) + event(after))
    assert json.loads(got[6:])["choices"][0]["delta"] == {"tool_calls": [{"index": 0}]}


def test_an_end_that_comes_with_the_last_repeated_token_is_told_and_an_earlier_one_refused():
    part = stream_of(LONG)[:12]
    for place, fine in ((11, True), (8, False)):
        joiner, rest = joiner_of(part, {**LONG, "tools": [{}]})
        events = told(rest)
        last = json.loads(events[place][6:])
        last["choices"][0] |= {"finish_reason": "stop", "stop_reason": None}
        data = b"".join(events[:place]) + event(last)
        if fine:
            assert json.loads(joiner.feed(data)[6:])["choices"][0]["finish_reason"] == "stop"
        else:
            with pytest.raises(SeamError, match="not_the_same"):
                joiner.feed(data)


def test_a_repeated_text_completion_keeps_its_text_offsets():
    body = {
        **{k: v for k, v in LONG.items() if k != "messages"},
        "prompt": "a",
        "logprobs": 0,
        "temperature": 1,
        "seed": 3,
    }
    raw, events = json.dumps(body).encode(), stream_of(body, TEXT)
    sent, wish = sent_of(events[:12]), read_wish(raw, TEXT)
    rest = decide(sent, wish, Facts(2048), raw, TEXT)
    assert Joiner(sent, wish, rest).feed(b"".join(TokenEngine().events(TEXT, json.loads(rest.body)))) == b"".join(
        events[12:]
    )


def test_a_role_that_was_not_sent_comes_once():
    sent, raw = Sent(), json.dumps({**LONG, "tools": [{}]}).encode()
    sent.read(b'data: {"id":"a","created":3,"model":"m","choices":[],"prompt_token_ids":[1,2]}\n\n')
    wish = read_wish(raw, CHAT)
    rest = decide(sent, wish, Facts(2048), raw, CHAT)
    got = Joiner(sent, wish, rest).feed(told(rest)[0])
    assert json.loads(got[6:])["id"] == "a"
    assert b'"role":"assistant"' in got


def test_cached_tokens_never_count_what_was_generated():
    counted = {**LONG, "stream_options": {"include_usage": True}}
    part = stream_of(counted)[:12]
    joiner, rest = joiner_of(part, counted)
    *events, usage, done = told(rest)
    last = json.loads(usage[6:])
    last["usage"]["prompt_tokens_details"] = {"cached_tokens": 9}
    got = json.loads(joiner.feed(b"".join(events) + event(last)).split(b"\n\n")[-2][6:])
    prompt = len(sent_of(part).prompt)
    assert got["usage"]["prompt_tokens_details"] == {"cached_tokens": min(9, prompt)}
    assert (got["usage"]["prompt_tokens"], got["usage"]["completion_tokens"]) == (prompt, 30)
    assert joiner.feed(done) == b"data: [DONE]\n\n"
    assert joiner.done


def test_a_journal_holds_few_bytes_for_each_token_and_gives_them_back():
    purse = Purse(2**30)
    journal = Journal(purse, 2**20)
    body = {**LONG, "max_tokens": 1_000}
    events = stream_of(body)
    for each in events[:900]:
        journal.add(each)
    assert purse.used < 60_000
    sent = journal.sent()
    assert len(sent.tokens) == 899
    assert sent.chars == len(sent_of(events[:900]).__dict__ and "".join(m.text for m in sent_of(events[:900]).marks))
    journal.close()
    assert purse.used == 0
    journal.add(events[900])
    assert journal.full


@pytest.mark.parametrize(("purse", "limit"), [(500, 2**20), (2**20, 500)])
def test_a_journal_beyond_a_bound_is_given_up(purse, limit):
    shared = Purse(purse)
    journal = Journal(shared, limit)
    for each in stream_of({**LONG, "max_tokens": 500}):
        journal.add(each)
    assert journal.full
    assert shared.used == 0


def test_a_long_journal_of_log_probabilities_keeps_its_places():
    body = {**LONG, "prompt": "a", "logprobs": 0, "max_tokens": 400}
    events = stream_of(body, TEXT)
    journal = Journal(Purse(2**30), 2**30)
    for each in events[:300]:
        journal.add(each)
    slow = sent_of(events[:300])
    assert (journal.sent().offset, journal.sent().chars) == (slow.offset, slow.chars)


def test_a_cut_far_behind_the_texts_that_are_kept_begins_at_the_start():
    events = stream_of({**LONG, "max_tokens": 400})[:300]
    journal = Journal(Purse(2**30), 2**30)
    for each in events:
        journal.add(each)
    raw = json.dumps({**LONG, "max_tokens": 400, "stop": "x" * 150}).encode()
    found = decide(journal.sent(), read_wish(raw, CHAT), Facts(2048), raw, CHAT)
    assert isinstance(found, Rest)
    assert found.keep in {0, journal.sent().start.tokens}


def test_where_every_remembered_place_is_unclean_it_begins_before_them():
    sent = sent_of(stream_of(LONG)[:12])
    sent.start = Mark(5, "", clean=True)
    sent.marks = deque([Mark(8, "abc", clean=False), Mark(11, "def", clean=False)])
    wish = read_wish(json.dumps({**LONG, "stop": "xyz"}).encode(), CHAT)
    assert seam(sent, wish) == (5, 4)
    sent.start = Mark(5, "", clean=False)
    assert seam(sent, wish) == (0, sent.chars)


def test_tokens_are_counted_also_when_the_journal_is_full():
    journal = Journal(Purse(2**30), 4096)
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    for number in range(300):
        choice = {"index": 0, "delta": {"content": "word " * 10}, "token_ids": list(range(number, number + 10))}
        journal.add(event({**head, "prompt_token_ids": [1, 2], "choices": [choice]}))
    assert journal.full
    assert journal.tokens() == 3000
    assert journal.about() == 3000
