"""Heads of one connection read like heads that nobody has seen before."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sheaf_gateway.proxy.errors import Refusal
from sheaf_gateway.proxy.framing import parse_head
from sheaf_gateway.proxy.heads import HeadReader
from sheaf_gateway.proxy.limits import ServerLimits

LIMITS = replace(ServerLimits(), max_head=200, max_body=5_000)
PIECES = [
    b"Content-Length: 12\r\n",
    b"content-length:7\r\n",
    b"CONTENT-LENGTH:  0100 \r\n",
    b"Content-Length: 4999\r\n",
    b"Content-Length: 5001\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Content-Length: 1a\r\n",
    b"Content-Length: \r\n",
    b"Content-Length: 1\r\nX: 2\r\n",
    b"X-Content-Length: 1\r\n",
    b"X: \tcontent-length: 3\r\n",
    b"Expect: 100-continue\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Host: other\r\n",
    b"A: " + b"b" * 150 + b"\r\n",
]
lines = st.sampled_from(PIECES)
heads = st.lists(lines, max_size=3).map(
    lambda found: b"POST /v1/x?y HTTP/1.1\r\nHost: a\r\n" + b"".join(found) + b"\r\n"
)


def read(reader, raw):
    try:
        return reader(raw)
    except Refusal as refusal:
        return refusal.status, refusal.code, refusal.message


@given(st.lists(heads, min_size=1, max_size=6))
def test_a_head_has_the_same_reading_whatever_came_before(found):
    reader = HeadReader(LIMITS)
    for raw in found:
        assert read(reader.read, raw) == read(lambda raw: parse_head(raw, LIMITS), raw)


@given(st.lists(st.binary(max_size=18) | st.integers(0, 10**16).map(lambda n: b"%d" % n), min_size=2, max_size=5))
def test_whatever_stands_for_the_length_is_read_as_strictly_as_the_first_time(lengths):
    reader = HeadReader(LIMITS)
    for length in [b"17", *lengths, b"17"]:
        raw = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %b\r\nX: y\r\n\r\n" % length
        if raw.find(b"\r\n\r\n") == len(raw) - 4:
            assert read(reader.read, raw) == read(lambda raw: parse_head(raw, LIMITS), raw)


KNOWN = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nX-One: b\r\nContent-Length: 17\r\nX-Two: c\r\n\r\n"


@given(st.integers(0, len(KNOWN)), st.integers(0, 3), st.binary(max_size=3))
def test_a_head_that_differs_anywhere_is_read_for_itself(place, gone, come):
    reader = HeadReader(LIMITS)
    known = reader.read(KNOWN)
    raw = KNOWN[:place] + come + KNOWN[place + gone :]
    if not raw.endswith(b"\r\n\r\n") or raw.find(b"\r\n\r\n") != len(raw) - 4:
        return
    found = read(reader.read, raw)
    assert found == read(lambda raw: parse_head(raw, LIMITS), raw)
    assert (found is known) == (raw == KNOWN)


VECTORS = [
    b"Content-Length: 17\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 17",
    b"Content-Length: 17\r\nContent-Length: 17",
    b"Content-Length: 17\r\nContent-Length: 4",
    b"Content-Length: 17, 17",
    b"Content-Length: 17\r\n 4",
    b"Content-Length:\r\n 17",
    b"Content-Length : 17",
    b"Content-Length: +17",
    b"Content-Length: -17",
    b"Content-Length: 1 7",
    b"Content-Length: 1_7",
    b"Content-Length: 0x17",
    b"Content-Length: 17\x00",
    b"Content-Length: 17\x0b",
    b"Content-Length: 1\xb2",
    b"Content-Length: \xd9\xa1\xd9\xa7",
    b"Content-Length: 17\n",
    b"Content-Length: 17;",
    b"Content-Length: ",
]


@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("before", [b"Content-Length: 17", b"Content-Length: 4", b"Transfer-Encoding: chunked"])
def test_what_smuggles_is_refused_on_a_second_request_as_on_the_first(before, vector):
    whole = b"POST / HTTP/1.1\r\nHost: a\r\n%b\r\nX: y\r\n\r\n"
    reader = HeadReader(LIMITS)
    reader.read(whole % before)
    first = read(lambda raw: parse_head(raw, LIMITS), whole % vector)
    assert first[0] == 400
    assert read(reader.read, whole % vector) == first
    assert reader.read(whole % before).content_length in (17, 4, 0)
    assert read(reader.read, whole % vector) == first


def test_the_same_bytes_are_taken_apart_once():
    reader = HeadReader(LIMITS)
    raw = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
    assert reader.read(raw) is reader.read(bytes(bytearray(raw)))
    longer = reader.read(raw.replace(b"5", b"4321"))
    assert (longer.content_length, longer.headers[1]) == (4321, (b"content-length", b"4321"))


def test_long_heads_are_not_kept():
    reader = HeadReader(ServerLimits())
    raw = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX: %b\r\n\r\n" % (b"y" * 5_000)
    assert reader.read(raw) == reader.read(raw)
    assert reader.read(raw) is not reader.read(raw)


@pytest.mark.parametrize("size", [200, 201])
def test_a_longer_number_counts_towards_the_bound_of_a_head(size):
    reader = HeadReader(LIMITS)
    start = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: "
    fill = b"\r\nX: " + b"y" * (size - len(start) - 13) + b"\r\n\r\n"
    reader.read(start + b"1" + fill)
    raw = start + b"0001" + fill
    assert len(raw) == size
    assert read(reader.read, raw) == read(lambda raw: parse_head(raw, LIMITS), raw)
