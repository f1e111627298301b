"""Pipelined requests are answered in order, one at a time, and held in bounded memory."""

import asyncio
import socket

import pytest
from gateway_proxy_requests import GET, post
from sheaf_gateway.proxy import ServerLimits


async def test_pipelined_requests_are_answered_in_order_and_one_at_a_time(start_server, connect):
    running = most = 0

    async def app(request, responder):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02 if request.body == b"0" else 0)
        running -= 1
        responder.reply(200, (), request.body)

    client = await connect(await start_server(app))
    await client.send(b"".join(post(b"%d" % n) for n in range(20)))
    assert [(await client.reply()).body for _ in range(20)] == [b"%d" % n for n in range(20)]
    assert most == 1


async def test_more_pipelined_bytes_than_are_held_still_arrive(start_server, connect, recorder):
    limits = ServerLimits(max_pipelined=100)
    client = await connect(await start_server(recorder, limits))
    sending = asyncio.ensure_future(client.send(b"".join(post(b"x" * n) for n in range(300))))
    for n in range(300):
        assert len((await client.reply()).body) == n
    await sending


async def test_pipelined_bytes_beyond_the_bound_wait_in_the_kernel_while_the_application_works(start_server, connect):
    go_on = asyncio.Event()

    async def app(request, responder):
        await go_on.wait()
        responder.reply(200, (), b"ok")

    client = await connect(await start_server(app, ServerLimits(max_pipelined=1_000, write_high=1_000)))
    client.writer.transport.set_write_buffer_limits(high=0)
    sent = 0

    async def flood():
        nonlocal sent
        while True:
            await client.send(GET * 1_000)
            sent += 1_000

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(flood(), 0.3)
    assert sent < 1_000_000
    go_on.set()
    for _ in range(300):
        assert (await client.reply()).status == 200


async def test_reading_goes_on_once_what_was_pipelined_is_served(start_server, connect):
    go_on = asyncio.Event()

    async def app(request, responder):
        await go_on.wait()
        responder.reply(200, (), b"ok")

    client = await connect(await start_server(app, ServerLimits(max_pipelined=1_000)))
    await client.send(GET)
    await asyncio.sleep(0.02)
    await client.send(GET * 200)
    await asyncio.sleep(0.02)
    go_on.set()
    for _ in range(201):
        assert (await client.reply()).status == 200
    await client.send(GET)
    assert (await client.reply()).status == 200


async def test_the_next_request_is_begun_only_when_the_response_before_it_was_read(start_server, connect):
    begun = 0

    async def app(request, responder):
        nonlocal begun
        begun += 1
        responder.reply(200, (), b"x" * 8_000_000)

    client = await connect(await start_server(app), limit=1_024)
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    await client.send(GET * 20)
    await asyncio.sleep(0.2)
    assert begun == 1
    for _ in range(5):
        await client.reply()
    assert begun < 8
