"""Whatever bytes come in, reading a body ends in an answer, and a stream is passed on in whole events."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.api.body import CHAT, COMPLETION, MESSAGES, PLAIN, RESPONSES, Parsed, parse
from sheaf_gateway.api.errors import ApiError
from sheaf_gateway.api.stream import MAX_HELD, EventRelay

QUICK = settings(max_examples=60, deadline=None)
DECODERS = [CHAT, COMPLETION, MESSAGES, PLAIN, RESPONSES]
VALID = b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"\\u00e9 \xc3\xa9"}]}],"n":2,"stream":true}'


class Sink:
    """The part of a responder that a relay writes to."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)


def read(raw: bytes, decode=CHAT) -> Parsed | ApiError:
    try:
        return parse(raw, decode, 16)
    except ApiError as error:
        return error


@QUICK
@given(st.binary(max_size=60), st.sampled_from(DECODERS))
def test_random_bytes_are_refused_or_read(raw, decode):
    assert getattr(read(raw, decode), "status", 400) == 400


@QUICK
@given(st.integers(0, len(VALID) - 1), st.integers(0, 255), st.sampled_from(DECODERS))
def test_one_changed_byte_is_refused_or_read(place, byte, decode):
    changed = VALID[:place] + bytes([byte]) + VALID[place + 1 :]
    assert getattr(read(changed, decode), "status", 400) == 400


@pytest.mark.parametrize("depth", range(10, 22))
def test_depth_is_exact(depth):
    nested = (
        b'{"model":"m","x":'
        + b'{"a":[' * (depth // 2)
        + b"[" * (depth % 2)
        + b"]" * (depth % 2)
        + b"]}" * (depth // 2)
        + b"}"
    )
    assert isinstance(read(nested), Parsed) == (depth + 1 <= 16)


@pytest.mark.parametrize("item", [b"[]", b'""', b"{}", b'{"role":"u","content":[]}'])
@pytest.mark.parametrize("decode", [CHAT, COMPLETION, RESPONSES, MESSAGES, PLAIN])
def test_a_body_of_very_many_small_things_is_refused_before_it_is_read(decode, item):
    raw = b'{"model":"base","messages":[' + b",".join([item] * 150_000) + b"]}"
    with pytest.raises(ApiError) as refused:
        parse(raw, decode, 64)
    assert refused.value.code == "body_too_complex"


@pytest.mark.parametrize(
    ("value", "asked"),
    [("true", 1), ("false", 0), ("null", 0), ('"no"', 0), ('"False"', 0), ('"true"', 1), ("1", 1), ("0", 0)],
)
def test_token_ids_are_asked_for_as_engines_read_it(value, asked):
    raw = b'{"model":"base","messages":[],"return_token_ids":%b}' % value.encode()
    assert parse(raw, CHAT, 64).ids == bool(asked)


@pytest.mark.parametrize("text", [b"a" * 2**20, b'\\"' * 200_000, b"[{" * 200_000])
def test_a_long_text_is_no_such_body_whatever_it_holds(text):
    raw = b'{"model":"base","messages":[{"role":"user","content":"' + text + b'"}]}'
    assert len(parse(raw, CHAT, 64).prompt) > 2**17


@pytest.mark.parametrize(
    ("decode", "one", "other"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "a"}]}, {"messages": [{"role": "system", "content": "a"}]}),
        (CHAT, {"messages": [{"role": "user", "content": "a"}]}, {"messages": [{"role": "user", "content": "b"}]}),
        (CHAT, {"messages": [], "tools": [1]}, {"messages": [], "tools": [2]}),
        (CHAT, {"messages": [{"role": "a", "tool_calls": [1]}]}, {"messages": [{"role": "a", "tool_calls": [2]}]}),
        (COMPLETION, {"prompt": "a"}, {"prompt": [1, 2]}),
        (RESPONSES, {"input": "a", "instructions": "b"}, {"input": "b", "instructions": "a"}),
        (MESSAGES, {"messages": [], "system": "a"}, {"messages": [], "system": [{"type": "text", "text": "b"}]}),
    ],
)
def test_prompts_that_differ_have_other_canonical_bytes(decode, one, other):
    first, second = (parse(json.dumps({"model": "m", **found}).encode(), decode, 16) for found in (one, other))
    assert first.prompt != second.prompt


def test_spaces_and_escapes_do_not_change_the_canonical_bytes():
    spaced = b'{ "messages": [ {"content": "\\u00e9", "role": "user"} ], "model": "m" }'
    tight = '{"model":"m","messages":[{"role":"user","content":"é"}]}'.encode()
    assert parse(spaced, CHAT, 16).prompt == parse(tight, CHAT, 16).prompt


@pytest.mark.parametrize(
    ("decode", "more", "tokens"),
    [
        (CHAT, {"max_tokens": 5, "n": 3}, 15),
        (CHAT, {"max_tokens": 5, "max_completion_tokens": 7}, 7),
        (COMPLETION, {"max_tokens": 5}, 5),
        (RESPONSES, {"max_output_tokens": 9}, 9),
        (MESSAGES, {"max_tokens": 4}, 4),
        (PLAIN, {}, 0),
    ],
)
def test_the_tokens_asked_for_are_read_in_every_dialect(decode, more, tokens):
    parsed = parse(json.dumps({"model": "m", **more}).encode(), decode, 16)
    assert parsed.max_tokens == tokens
    assert parsed.tokens() >= tokens


EVENTS = [b'data: {"n": 1}\n\n', b": ping\n\n", b'event: x\r\ndata: {"y":1}\r\n\r\n', b"data: [DONE]\n\n"]


@QUICK
@given(st.lists(st.sampled_from(EVENTS), max_size=6), st.lists(st.integers(0, 100), max_size=8), st.booleans())
def test_any_cut_of_a_stream_arrives_unchanged_and_in_whole_events(events, cuts, whole):
    stream = b"".join(events) if whole else b"".join(events) + b"data: {"
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    sink = Sink()
    relay = EventRelay(sink)
    for start, end in itertools.pairwise(places):
        relay.feed(stream[start:end])
    passed = b"".join(sink.written)
    assert stream.startswith(passed)
    assert passed == b"" or passed.endswith((b"\n\n", b"\r\n\r\n"))
    relay.finish()
    assert b"".join(sink.written) == stream


def test_what_is_whole_passes_without_a_copy():
    sink = Sink()
    EventRelay(sink).feed(EVENTS[0])
    assert sink.written[0] is EVENTS[0]


def test_an_endless_event_is_passed_on_rather_than_held():
    sink = Sink()
    relay = EventRelay(sink)
    for _ in range(5):
        relay.feed(b"x" * (MAX_HELD // 2))
    assert sum(map(len, sink.written)) > MAX_HELD


def test_a_string_that_never_closes_is_read_once_however_much_is_escaped_in_it():
    told = read(b'{"model":"m","prompt":"' + b'\\"' * 200_000)
    assert isinstance(told, ApiError)
    assert told.code == "invalid_json"
    assert isinstance(read(b'{"model":"m","x":' + b"[" * 20 + b'"' + b'\\"' * 200_000), ApiError)
