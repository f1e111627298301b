"""Whole answers of one engine connection are read as llhttp reads them, whatever came before."""

import asyncio

import httptools
import pytest
from gateway_proxy_engines import Ear, read_request, send
from hypothesis import given
from hypothesis import strategies as st
from sheaf_gateway.proxy.again import AnswerReader

PIECES = [
    b"Content-Length: 2\r\n",
    b"content-length:11\r\n",
    b"CONTENT-LENGTH: \t02\r\n",
    b"Content-Length: 2 \r\n",
    b"Content-Length: +2\r\n",
    b"Content-Length: 1_1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"X: content-length: 2\r\n",
    b"X: a\r\n content-length: 2\r\n",
    b"X-Content-Length: 2\r\n",
    b"Connection: close\r\n",
    b"Server: x\r\n",
]
STARTS = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 \r\n",
    b"HTTP/1.0 200 OK\r\n",
    b"HTTP/1.1 204 X\r\n",
    b"HTTP/1.1 404 X\r\n",
]
BODIES = [b"", b"ok", b"0123456789\n", b"2\r\nok\r\n0\r\n\r\n", b"okHTTP/1.1 200 OK\r\n"]
heads = st.tuples(st.sampled_from(STARTS), st.lists(st.sampled_from(PIECES), max_size=3)).map(
    lambda found: found[0] + b"".join(found[1]) + b"\r\n"
)
INTERIM = st.sampled_from(
    [b"", b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 X\r\nContent-Length: 2\r\n\r\n"]
)
answers = st.tuples(INTERIM, heads, st.sampled_from(BODIES)).map(b"".join)


class Walk:
    """One answer as llhttp reads it, from a connection that is kept after it."""

    def __init__(self):
        self.headers, self.body, self.begun, self.ended, self.kept, self.status = [], b"", 0, 0, False, 0

    def on_message_begin(self):
        self.begun += 1

    def on_header(self, name, value):
        self.headers.append((name.lower(), value.strip()))

    def on_headers_complete(self):
        self.status = self.parser.get_status_code()
        if self.status < 200:
            self.headers.clear()

    def on_body(self, data):
        self.body += data

    def on_message_complete(self):
        if self.status >= 200:
            self.ended += 1
            self.kept = self.parser.should_keep_alive()


def by_llhttp(data):
    """(status, headers, body) of exactly one whole answer, else None."""
    walk = Walk()
    walk.parser = httptools.HttpResponseParser(walk)
    try:
        walk.parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    interim = walk.begun - walk.ended
    whole = walk.ended == 1 and walk.kept and data.count(b"HTTP/1.") == interim + 1
    return (walk.status, walk.headers, walk.body) if whole else None


def told(found):
    head, body = found
    return head.status, head.headers, body


def without_length(read):
    return read[0], [header for header in read[1] if header[0] != b"content-length"], read[2]


@given(st.lists(answers, min_size=2, max_size=6))
def test_what_is_read_without_llhttp_is_what_llhttp_reads(found):
    reader = AnswerReader()
    for data in found:
        quick, slow = reader.read(data), by_llhttp(data)
        if quick is not None:
            assert slow is not None
            assert told(quick) == without_length(slow)
        elif slow is not None:
            head = reader.remember(data, slow[0], slow[1])
            assert (head.status, head.headers) == without_length(slow)[:2]


KNOWN = b"HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 2\r\nServer: x\r\n\r\nok"


@pytest.fixture
def reader():
    reader = AnswerReader()
    reader.remember(KNOWN, 200, [(b"date", b"now"), (b"content-length", b"2"), (b"server", b"x")])
    return reader


@given(st.integers(0, len(KNOWN) - 1), st.integers(0, 255))
def test_a_head_that_differs_in_any_other_byte_is_not_the_same(place, byte):
    reader = AnswerReader()
    head = reader.remember(KNOWN, 200, [(b"date", b"now"), (b"content-length", b"2"), (b"server", b"x")])
    data = KNOWN[:place] + bytes([byte]) + KNOWN[place + 1 :]
    found = reader.read(data)
    assert (found is not None) == (data == KNOWN or place >= len(KNOWN) - 2)
    assert found is None or found == (head, data[-2:])


@pytest.mark.parametrize("digits", [b"2 ", b" 2", b"+2", b"-2", b"0_2", b"0x2", b"", b"2,2", b"\xb2", b"0" * 16 + b"2"])
def test_only_plain_digits_stand_for_a_length(reader, digits):
    assert reader.read(KNOWN.replace(b": 2", b": " + digits)) is None


@pytest.mark.parametrize("body", [b"", b"o", b"ok!", b"okHTTP/1.1 200 OK\r\n\r\n"])
def test_a_body_of_another_size_is_left_to_the_parser(reader, body):
    assert reader.read(KNOWN[:-2] + body) is None


def test_another_length_is_the_same_head(reader):
    head, body = reader.read(KNOWN.replace(b": 2", b": 0004") + b"ok")
    assert (head.status, head.headers, body) == (200, [(b"date", b"now"), (b"server", b"x")], b"okok")
    assert reader.read(KNOWN)[0] is head


async def test_a_connection_reads_the_same_answer_again_and_then_another(start_engine, make_pool):
    said = [KNOWN, KNOWN, KNOWN.replace(b": 2", b": 3") + b"!", b"HTTP/1.1 404 No\r\nContent-Length: 1\r\n\r\nx", KNOWN]

    async def script(reader, writer):
        for answer in said:
            await read_request(reader)
            writer.write(answer)

    endpoint, pool, heard = await start_engine(script), make_pool(), []

    class Whole(Ear):
        def on_whole(self, head, body):
            heard.append((head.status, len(head.headers), body))
            self.over.set()

    for _ in said:
        ear = Whole()
        send(pool, endpoint, ear)
        await ear.over.wait()
    assert heard == [(200, 2, b"ok"), (200, 2, b"ok"), (200, 2, b"ok!"), (404, 0, b"x"), (200, 2, b"ok")]


async def test_what_follows_a_known_answer_ends_its_connection(start_engine, make_pool):
    async def script(reader, writer):
        for answer in (KNOWN, KNOWN + KNOWN):
            await read_request(reader)
            writer.write(answer)
        await reader.read()
        closed.set()

    closed = asyncio.Event()
    endpoint, pool = await start_engine(script), make_pool()

    class Whole(Ear):
        def on_whole(self, head, body):
            self.heard.append(body)
            self.over.set()

    for _ in range(2):
        ear = Whole()
        send(pool, endpoint, ear)
        await ear.over.wait()
        assert ear.heard == [b"ok"]
    await asyncio.wait_for(closed.wait(), 1.0)
