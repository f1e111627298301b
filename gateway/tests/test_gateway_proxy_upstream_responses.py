"""Well framed responses arrive; broken ones are errors that say whether to retry; no byte reaches the next request."""

import asyncio
import socket

import pytest
from gateway_proxy_engines import CHUNKED, OK, Ear, answering, fetch, read_request, send
from sheaf_gateway.proxy import BadResponse, ResetBeforeHead, ResetMidBody, UpstreamError

WELL_FRAMED = {
    "length": (OK, b"ok"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b""),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "chunked": (CHUNKED + b"2\r\nok\r\n1;x\r\n!\r\n0\r\n\r\n", b"ok!"),
    "chunked with trailer": (CHUNKED + b"2\r\nok\r\n0\r\nX: y\r\n\r\n", b"ok"),
    "after 100 Continue": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok"),
    "after 103 Early Hints": (b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + OK, b"ok"),
}


@pytest.mark.parametrize("name", WELL_FRAMED)
async def test_a_well_framed_response_arrives_and_the_connection_is_kept(name, start_engine, make_pool):
    raw, body = WELL_FRAMED[name]
    pool, endpoint = make_pool(), await start_engine(answering(raw, raw))
    assert (await fetch(pool, endpoint))[1] == body
    assert (await fetch(pool, endpoint))[1] == body
    assert pool.open_connections(endpoint) == 1


@pytest.mark.parametrize("name", WELL_FRAMED)
async def test_a_response_may_arrive_byte_by_byte(name, start_engine, make_pool):
    raw, body = WELL_FRAMED[name]

    async def script(reader, writer):
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await read_request(reader)
        for byte in raw:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        await reader.read()

    assert (await fetch(make_pool(), await start_engine(script)))[1] == body


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n"])
async def test_a_body_may_be_ended_by_closing(head, start_engine, make_pool):
    pool, endpoint = make_pool(), await start_engine(answering([head, b"a", b"b"], then_close=True))
    assert await fetch(pool, endpoint) == (200, b"ab")


async def test_a_connection_that_is_to_be_closed_is_not_kept(start_engine, make_pool):
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    pool, endpoint = make_pool(), await start_engine(answering(closing))
    assert await fetch(pool, endpoint) == (200, b"ok")
    assert await fetch(pool, endpoint) == (200, b"ok")


async def test_head_has_no_body_whatever_its_length_says(start_engine, make_pool):
    pool, endpoint = make_pool(), await start_engine(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"))
    for _ in range(2):
        assert await fetch(pool, endpoint, "HEAD") == (200, b"")


BROKEN = {
    "garbage": ([b"\0\1\2garbage\r\n\r\n"], BadResponse, True),
    "another protocol": ([b"SSH-2.0-OpenSSH_9.6\r\n"], BadResponse, True),
    "length and chunked": (
        [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"],
        BadResponse,
        True,
    ),
    "two lengths": ([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"], BadResponse, True),
    "protocol switch": (
        [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"],
        BadResponse,
        True,
    ),
    "status 600": ([b"HTTP/1.1 600 Odd\r\nContent-Length: 0\r\n\r\n"], BadResponse, True),
    "head too large": ([b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n"], BadResponse, True),
    "head that never ends": ([b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000], BadResponse, True),
    "too many headers": ([b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 300 + b"\r\n"], BadResponse, True),
    "nothing, then closed": ([], ResetBeforeHead, True),
    "half a head, then closed": ([b"HTTP/1.1 200 OK\r\nX"], ResetBeforeHead, True),
    "half a body, then closed": ([OK[:-1]], ResetMidBody, False),
    "half a chunk, then closed": ([CHUNKED + b"5\r\nab"], ResetMidBody, False),
    "no last chunk, then closed": ([CHUNKED + b"2\r\nok\r\n"], ResetMidBody, False),
    "garbage instead of a chunk": ([CHUNKED, b"2\r\nok\r\n", b"zz\r\n"], BadResponse, False),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_response_is_an_error_that_says_whether_to_retry(name, start_engine, make_pool):
    parts, kind, retry_safe = BROKEN[name]
    pool, endpoint = make_pool(), await start_engine(answering(parts, then_close=True))
    with pytest.raises(UpstreamError) as caught:
        await fetch(pool, endpoint)
    assert (type(caught.value), caught.value.retry_safe, caught.value.delivered) == (kind, retry_safe, True)
    await asyncio.sleep(0.02)
    assert pool.open_connections(endpoint) == 0


async def test_a_reset_within_a_body_is_an_error_even_where_closing_would_end_it(start_engine, make_pool):
    async def script(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await asyncio.sleep(0.02)
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    with pytest.raises(ResetMidBody):
        await fetch(make_pool(), await start_engine(script))


async def test_what_arrived_before_the_break_is_delivered(start_engine, make_pool):
    ear = Ear()
    endpoint = await start_engine(answering([CHUNKED, b"2\r\nok\r\nzz\r\n"], then_close=True))
    send(make_pool(), endpoint, ear)
    await ear.over.wait()
    assert ear.heard[:2] == [200, b"ok"]
    assert isinstance(ear.heard[2], BadResponse)
    assert len(ear.heard) == 3


@pytest.mark.parametrize("more", [b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled", b"garbage", b"\r\n\r\nx"])
async def test_bytes_behind_a_response_never_reach_the_next_request(more, start_engine, make_pool):
    pool, endpoint = make_pool(), await start_engine(answering(OK + more))
    for _ in range(3):
        assert await fetch(pool, endpoint) == (200, b"ok")


async def test_bytes_on_an_idle_connection_discard_it(start_engine, make_pool):
    pool, endpoint = make_pool(), await start_engine(answering([OK, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]))
    assert await fetch(pool, endpoint) == (200, b"ok")
    async with asyncio.timeout(10):
        while pool.open_connections(endpoint):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
