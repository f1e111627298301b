"""Server-sent events are cut where the standard says, whatever the chunk boundaries, and nothing is lost."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.proxy import EventTooLarge, SseSplitter, event_data

line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
lines = st.text("abc: ", min_size=1, max_size=8).map(str.encode)


@st.composite
def streams(draw):
    """Some events, each with the line ends it happens to use."""
    events = []
    for _ in range(draw(st.integers(0, 5))):
        end = draw(line_ends)
        events.append(b"".join(draw(lines) + end for _ in range(draw(st.integers(1, 3)))) + end)
    return events


def feed_split(splitter: SseSplitter, stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]
    return [event for piece in pieces for event in splitter.feed(piece)]


@settings(max_examples=60, deadline=None)
@given(streams(), st.lists(st.integers(0, 500), max_size=8))
def test_events_are_the_same_however_the_stream_is_cut(events, cuts):
    splitter = SseSplitter()
    stream = b"".join(events) + b"data: tail"
    assert feed_split(splitter, stream, cuts) == events
    assert splitter.pending == b"data: tail"


@settings(max_examples=60, deadline=None)
@given(st.text("a\r\n:", max_size=60).map(str.encode), st.lists(st.integers(0, 60), max_size=8))
def test_no_byte_is_lost_or_changed(stream, cuts):
    whole, cut = SseSplitter(), SseSplitter()
    assert b"".join([*whole.feed(stream), whole.pending]) == stream
    assert b"".join([*feed_split(cut, stream, cuts), cut.pending]) == stream


def test_a_read_that_is_one_event_is_not_copied():
    event = b"data: x\n\n"
    assert SseSplitter().feed(event)[0] is event


def test_an_event_that_might_go_on_with_lf_waits_for_the_next_byte():
    splitter = SseSplitter()
    assert splitter.feed(b"data: x\r\n\r") == []
    assert splitter.feed(b"\n") == [b"data: x\r\n\r\n"]


@pytest.mark.parametrize("data", [b"x" * 21, b"x" * 19 + b"\n\n"])
def test_an_event_beyond_the_bound_is_an_error(data):
    with pytest.raises(EventTooLarge, match="larger than 20 bytes"):
        SseSplitter(max_event=20).feed(data)


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data:{}\n\n", b"{}"),
        (b"data:  x\r\n\r\n", b" x"),
        (b"event: a\ndata: 1\ndata: 2\n\n", b"1\n2"),
        (b"data\n\n", b""),
        (b": comment\n\n", None),
        (b"dataset: 1\n\n", None),
        (b"data: a\rdata: b\r\r", b"a\nb"),
    ],
)
def test_the_data_of_an_event_is_joined_as_the_standard_says(event, data):
    assert event_data(event) == data
