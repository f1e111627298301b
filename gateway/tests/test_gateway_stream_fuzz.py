"""What engines stream and answer may be anything: nothing of it that is no event reaches a client, and nothing raises."""

import contextlib
import itertools
import json

import orjson
import pytest
from gateway_token_engine import TokenEngine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sheaf_gateway.api.answers import is_object, may_begin, sound
from sheaf_gateway.api.stream import EventRelay
from sheaf_gateway.api.usage import find_usage, reported
from sheaf_gateway.continuation.chunks import asking_for_ids, masked
from sheaf_gateway.continuation.joiner import Joiner, SeamError
from sheaf_gateway.continuation.journal import Journal, Purse
from sheaf_gateway.continuation.plan import Facts, Rest, decide
from sheaf_gateway.continuation.wish import CHAT, read_wish
from sheaf_gateway.proxy.sse import SseSplitter, event_data

FUZZ = settings(max_examples=60, deadline=None)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([2**32, -1, 2**64, 10**400]) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
ids = st.none() | st.lists(st.integers(0, 9), max_size=3) | st.lists(st.sampled_from([-1, 2**32, 2**64, 5]), max_size=3)
choices = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(-1, 2) | values,
        "delta": st.dictionaries(st.sampled_from(["role", "content", "tool_calls"]), values, max_size=2) | values,
        "text": st.text(max_size=3) | values,
        "token_ids": ids | values,
        "prompt_token_ids": ids | values,
        "logprobs": st.fixed_dictionaries({}, optional={"tokens": values, "text_offset": values}) | values,
        "finish_reason": st.sampled_from([None, "stop", "length"]) | values,
        "stop_reason": values,
    },
)
chunks = st.fixed_dictionaries(
    {},
    optional={
        "id": st.just("c") | values,
        "created": values,
        "model": values,
        "choices": st.lists(choices, max_size=2) | values,
        "usage": st.fixed_dictionaries({}, optional={"prompt_tokens_details": values, "completion_tokens": values})
        | values,
        "prompt_token_ids": ids | values,
        "error": values,
    },
)
written = chunks.map(lambda found: b"data: " + json.dumps(found).encode() + b"\n\n")
pieces = st.sampled_from(
    [b"data: ", b"data:", b"data", b"event: x", b": ping", b"id", b"{}", b'{"a":1}', b"[DONE]", b"\n", b"\n\n", b"\r\n", b"\r\n\r\n",
     b"\r\r", b"\xff", b"\xc3", b'{"a":', b"<html>", b"\x00", b"data: {}\n\n", b'data: {"n": "\xc3\xa9"}\n\n'])  # fmt: skip
noise = st.lists(st.binary(max_size=8) | pieces, max_size=12).map(b"".join)
cuts = st.lists(st.integers(0, 200), max_size=8)

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 8, "seed": 3}
RAW = json.dumps(BODY).encode()


class Sink:
    def __init__(self) -> None:
        self.got = b""

    def write(self, data: bytes) -> None:
        self.got += data


def split(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(min(place, len(data)) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def parsed(raw: bytes):
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None


@FUZZ
@given(st.binary(max_size=40) | values.map(lambda found: json.dumps(found).encode()) | noise)
@example(b'{"a":' * 40_000)
@example(b'{"a":"\xff"}')
@example(b'{"a":1}x')
def test_what_counts_as_an_answer_is_an_object_to_another_parser_too(raw):
    if is_object(raw):
        json.loads(raw)
    found = parsed(raw)
    assert not isinstance(found, dict) or is_object(raw)
    assert not is_object(raw) or found is None or isinstance(found, dict)
    assert (reported(raw) is None) == (not is_object(raw))


counts = st.integers(0, 10**12 - 1)


@FUZZ
@given(values, counts, counts | st.none(), counts | st.none())
def test_an_answer_read_whole_reports_what_its_end_tells(value, prompt, output, cached):
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": {"cached_tokens": cached}}
    raw = json.dumps({"choices": value, "usage": usage}).encode()
    assert reported(raw) == find_usage(raw)


@FUZZ
@given(noise)
def test_only_events_with_objects_or_the_end_are_sound(data):
    end = sound(data)
    good = data[:end]
    events = SseSplitter().feed(good + b"\n")
    for event in events:
        told = event_data(event)
        assert told in {None, b"", b"[DONE]"} or is_object(told)
    assert sound(good) == len(good)
    assert not good or may_begin(good)


@FUZZ
@given(noise, cuts)
def test_what_a_client_gets_is_a_beginning_in_whole_sound_events(data, places):
    sink = Sink()
    relay = EventRelay(sink)
    passing = True
    for piece in split(data, places):
        passing = passing and relay.feed(piece)
    assert data.startswith(sink.got)
    assert sound(sink.got) == len(sink.got)


@FUZZ
@given(st.lists(written | noise, max_size=6), cuts)
@example([b"data: " + b"x" * 2**21 + b"\n\n"], [])
@example([b'data: {"id":"c","choices":[{"token_ids":[4294967296],"delta":{"content":"a"}}]}\n\n'] * 200, [])
def test_no_stream_breaks_the_journal_or_the_decision_what_becomes_of_it(events, places):
    data = b"".join(events)
    purse = Purse(2**22)
    journal = Journal(purse, 2**20)
    relay = EventRelay(Sink(), journal, masks=True)
    for piece in split(data, places):
        if not relay.feed(piece):
            break
    masked(data)
    find_usage(data)
    wish = read_wish(RAW, CHAT)
    decide(journal.sent(), wish, Facts(max_model_len=1000), RAW, CHAT)
    journal.close()
    assert purse.used == 0


@FUZZ
@given(st.lists(written | noise, max_size=6), cuts, st.integers(0, 4000))
def test_no_second_stream_breaks_the_seam(events, places, cut):
    journal = Journal(Purse(2**22), 2**20)
    first = b"".join(TokenEngine().events(CHAT, json.loads(asking_for_ids(RAW))))
    part = first[: cut % len(first)]
    journal.add(part[: part.rfind(b"\n\n") + 2] if b"\n\n" in part else b"")
    wish = read_wish(RAW, CHAT)
    rest = decide(journal.sent(), wish, Facts(max_model_len=1000), RAW, CHAT)
    if not isinstance(rest, Rest):
        return
    joiner = Joiner(journal.sent(), wish, rest)
    relay = EventRelay(Sink())
    with contextlib.suppress(SeamError):
        for piece in split(b"".join(events), places):
            relay.feed(joiner.feed(piece))


def test_an_event_that_does_not_end_is_waited_for_only_so_long():
    relay = EventRelay(Sink(), patience_s=1.0)
    assert relay.feed(b"data: {}\n\ndata: ", 10.0)
    assert all(relay.feed(b"x", 10.0 + place / 10) for place in range(10))
    assert not relay.feed(b"x", 11.5)


@pytest.mark.parametrize("data", [b"<html>", b"{", b"\x00", b"HTTP/1.1 200", b"dat: "])
def test_what_cannot_begin_a_stream_is_known_by_its_first_bytes(data):
    assert not may_begin(data)
    assert all(may_begin(found[:size]) for found in (b"data: x", b": x", b"event: x") for size in range(len(found)))


def plain(token: int) -> bytes:
    choice = {"index": 0, "delta": {"content": "a"}, "token_ids": [token]}
    return b"data: " + json.dumps({"id": "c", "created": 1, "model": "m", "choices": [choice]}).encode() + b"\n\n"


@pytest.mark.parametrize("odd", [plain(2**32), plain(-1), b"data: " + b"x" * 2**21 + b"\n\n"])
def test_a_stream_of_impossible_tokens_cannot_be_continued_and_goes_on(odd):
    journal = Journal(Purse(2**30), 2**30)
    for place in range(400):
        journal.add(odd if place == 200 else plain(1))
    assert journal.sent().unreadable == "unreadable"
