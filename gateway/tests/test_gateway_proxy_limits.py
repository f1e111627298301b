"""What slow, silent, greedy or many clients can hold, and for how long. Every limit is made short here."""

import asyncio
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.proxy import ServerLimits

QUICK = ServerLimits(
    header_s=0.15,
    keep_alive_s=0.15,
    body_idle_s=0.15,
    body_grace_s=0.3,
    body_min_rate=1_000,
    body_total_s=0.6,
    write_stall_s=0.15,
    linger_s=0.1,
)
LOADED_S = 5.0
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HALF_BODY = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"


async def drip(client, piece: bytes, every_s: float) -> None:
    try:
        while True:
            await client.send(piece)
            await asyncio.sleep(every_s)
    except ConnectionError:
        pass


async def closed_after(client) -> tuple[bytes, float]:
    begin = time.monotonic()
    return await client.rest(), time.monotonic() - begin


async def test_a_client_that_says_nothing_is_closed_silently(start_server, connect, recorder):
    data, after = await closed_after(await connect(await start_server(recorder, QUICK)))
    assert data == b""
    assert 0.1 < after < LOADED_S


@pytest.mark.parametrize("part", [b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n"])
async def test_half_a_head_then_silence_gets_408(part, start_server, connect, recorder):
    client = await connect(await start_server(recorder, QUICK))
    await client.send(part)
    data, after = await closed_after(client)
    assert data.startswith(b"HTTP/1.1 408 ")
    assert after < LOADED_S


async def test_a_dripped_head_gets_408_however_steadily_it_drips(start_server, connect, recorder):
    client = await connect(await start_server(recorder, QUICK))
    await client.send(b"GET / HTTP/1.1\r\n")
    dripping = asyncio.ensure_future(drip(client, b"X: a\r\n", 0.02))
    data, after = await closed_after(client)
    dripping.cancel()
    assert data.startswith(b"HTTP/1.1 408 ")
    assert after < LOADED_S


async def test_a_promised_body_that_never_comes_gets_408(start_server, connect, recorder):
    server = await start_server(recorder, QUICK)
    client = await connect(server)
    await client.send(HALF_BODY + b"abc")
    data, after = await closed_after(client)
    assert data.startswith(b"HTTP/1.1 408 ")
    assert after < LOADED_S
    assert (server.held_body_bytes, recorder.seen) == (0, [])


@pytest.mark.parametrize("coding", [b"Content-Length: 100000", b"Transfer-Encoding: chunked"])
async def test_a_body_below_the_minimum_rate_gets_408(coding, start_server, connect, recorder):
    client = await connect(await start_server(recorder, QUICK))
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + coding + b"\r\n\r\n")
    dripping = asyncio.ensure_future(drip(client, b"1\r\na\r\n", 0.05))
    data, after = await closed_after(client)
    dripping.cancel()
    assert data.startswith(b"HTTP/1.1 408 ")
    assert 0.2 < after < LOADED_S


async def test_a_steady_body_within_the_total_is_accepted(start_server, connect, recorder):
    client = await connect(await start_server(recorder, QUICK))
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4000\r\n\r\n")
    for _ in range(8):
        await client.send(b"x" * 500)
        await asyncio.sleep(0.05)
    assert (await client.reply()).body == b"x" * 4000


async def test_an_idle_kept_connection_is_closed_silently(start_server, connect, recorder):
    client = await connect(await start_server(recorder, QUICK))
    await client.send(GET)
    await client.reply()
    assert await client.rest() == b""


async def test_a_client_that_does_not_read_its_response_is_closed(start_server, connect):
    ended = asyncio.Event()

    async def app(request, responder):
        responder.start(200, (), length=None)
        try:
            while True:
                responder.write(b"x" * 65_536)
                await responder.drain()
        finally:
            ended.set()

    server = await start_server(app, QUICK)
    client = await connect(server, limit=1_024)
    await client.send(GET)
    await asyncio.wait_for(ended.wait(), 1.5)
    await asyncio.sleep(0.05)
    assert server.connections == 0


async def test_a_client_that_does_not_read_a_finished_response_is_closed_too(start_server, connect):
    async def app(request, responder):
        responder.reply(200, (), b"x" * 20_000_000)

    server = await start_server(app, QUICK)
    client = await connect(server, limit=1_024)
    await client.send(GET)
    await asyncio.sleep(0.7)
    assert server.connections == 0


async def test_a_refused_client_that_goes_on_sending_is_cut_off(start_server, connect, recorder):
    limits = replace(QUICK, linger_s=60.0, max_discarded=200_000, max_body=10)
    server = await start_server(recorder, limits)
    client = await connect(server)
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n\r\n")
    assert (await client.reply()).status == 413
    await asyncio.wait_for(drip(client, b"x" * 50_000, 0), LOADED_S)
    assert recorder.seen == []


async def test_a_refused_client_that_neither_sends_nor_leaves_is_closed(start_server, connect, recorder):
    server = await start_server(recorder, QUICK)
    client = await connect(server)
    await client.send(b"BAD\r\n")
    assert (await client.reply()).status == 400
    await asyncio.sleep(0.3)
    assert server.connections == 0


async def test_one_connection_too_many_gets_503_and_the_others_go_on(start_server, connect, recorder):
    server = await start_server(recorder, ServerLimits(max_connections=2))
    first, second, third = [await connect(server) for _ in range(3)]
    assert (await third.reply()).status == 503
    assert await third.rest() == b""
    for client in (first, second):
        await client.send(GET)
        assert (await client.reply()).status == 200
    await first.close()
    await asyncio.sleep(0.02)
    fourth = await connect(server)
    await fourth.send(GET)
    assert (await fourth.reply()).status == 200


async def test_all_unfinished_bodies_together_are_bounded(start_server, connect, recorder):
    server = await start_server(recorder, ServerLimits(max_bodies=1_000, linger_s=0.1))
    first, second = await connect(server), await connect(server)
    await first.send(HALF_BODY + b"x" * 600)
    await asyncio.sleep(0.02)
    assert server.held_body_bytes == 600
    await second.send(HALF_BODY + b"x" * 600)
    reply = await second.reply()
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    await first.close()
    await asyncio.sleep(0.02)
    assert server.held_body_bytes == 0


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_body_counts_until_its_request_is_answered(start_server, connect, leaves):
    goes = asyncio.Event()

    async def slow(_request, responder):
        await goes.wait()
        responder.reply(200, [], b"done")

    server = await start_server(slow, ServerLimits(max_bodies=1_500, linger_s=0.1))
    first, second = await connect(server), await connect(server)
    await first.send(HALF_BODY.replace(b"100000", b"1000") + b"x" * 600)
    await asyncio.sleep(0.02)
    await first.send(b"x" * 400)
    await asyncio.sleep(0.02)
    assert server.held_body_bytes == 1_000
    await second.send(HALF_BODY + b"x" * 600)
    assert (await second.reply()).status == 503
    if leaves:
        await first.close()
    goes.set()
    if not leaves:
        assert (await first.reply()).status == 200
    await asyncio.sleep(0.02)
    assert server.held_body_bytes == 0


async def test_hundreds_of_slow_clients_are_closed_in_time_while_service_continues(start_server, connect, recorder):
    server = await start_server(recorder, replace(QUICK, header_s=0.4, keep_alive_s=60.0))
    good = await connect(server)
    await good.send(GET)
    await good.reply()
    slow = [await connect(server) for _ in range(300)]
    for client in slow:
        client.writer.write(b"GET / HTTP/1.1\r\nX: ")
    served = 0
    begin = time.monotonic()
    while server.connections > 1:
        await good.send(GET)
        assert (await good.reply()).status == 200
        served += 1
        assert time.monotonic() - begin < LOADED_S
    assert served > 10
    for client in slow:
        client.writer.transport.abort()


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1e6), st.floats(0, 1e3), st.floats(0, 1e3), st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_body_deadline_is_never_beyond_any_bound_and_grows_with_what_arrived(started, early, later, some, more):
    limits = ServerLimits()
    now = started + early
    deadline = limits.body_deadline(started, now, some)
    assert deadline <= now + limits.body_idle_s
    assert deadline <= started + limits.body_total_s
    assert deadline <= limits.body_deadline(started, now + later, some + more)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.001, 1_000), st.floats(0.001, 1_000))
def test_deadlines_are_looked_at_often_enough_and_not_too_often(header, linger):
    tick = ServerLimits(header_s=header, linger_s=linger).tick_s()
    assert 0.01 <= tick <= 1.0
    assert tick <= max(min(header, linger) / 10, 0.01)
