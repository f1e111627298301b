"""Clients that leave are noticed at once; clients that do not read hold the application back."""

import asyncio
import socket

import pytest
from gateway_proxy_requests import GET
from sheaf_gateway.proxy import ClientGone


async def test_a_client_that_leaves_cancels_the_application_at_once(start_server, connect):
    events = []
    started = asyncio.Event()
    gone = asyncio.Event()

    async def app(request, responder):
        responder.disconnected.on_disconnect(lambda: events.append("told"))
        started.set()
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            events.append("cancelled")
            events.append(responder.disconnected.is_set())
            gone.set()
            raise

    client = await connect(await start_server(app))
    await client.send(GET)
    await started.wait()
    await client.close()
    await asyncio.wait_for(gone.wait(), 0.5)
    assert events == ["told", "cancelled", True]


async def test_a_client_that_leaves_before_the_application_ran_is_noticed(start_server, connect, recorder):
    server = await start_server(recorder)
    client = await connect(server)
    client.writer.write(GET)
    client.writer.transport.abort()
    await asyncio.sleep(0.05)
    assert server.connections == 0


async def test_callbacks_of_a_client_that_left_fire_once_and_writes_are_ignored(start_server, connect):
    told = []
    responders = []

    def app(request, responder):
        responders.append(responder)
        responder.disconnected.on_disconnect(lambda: told.append(1))

    client = await connect(await start_server(app))
    await client.send(GET)
    await asyncio.sleep(0.02)
    client.writer.transport.abort()
    await asyncio.wait_for(responders[0].disconnected.wait(), 0.5)
    responders[0].disconnected.on_disconnect(lambda: told.append(2))
    responders[0].start(200, (), length=None)
    responders[0].write(b"x")
    responders[0].end()
    responders[0].reply(200, (), b"") if not responders[0].started else None
    assert told == [1, 2]
    assert responders[0].ended
    with pytest.raises(ClientGone):
        await responders[0].drain()


async def test_a_client_that_left_after_its_response_tells_nobody(start_server, connect):
    told = []

    def app(request, responder):
        responder.disconnected.on_disconnect(lambda: told.append(1))
        responder.reply(200, (), b"")
        responder.disconnected.on_disconnect(lambda: told.append(2))

    client = await connect(await start_server(app))
    await client.send(GET)
    await client.reply()
    await client.close()
    await asyncio.sleep(0.02)
    assert told == []


async def test_a_client_that_does_not_read_holds_back_the_application(start_server, connect):
    written = 0
    pressure = []

    async def app(request, responder):
        nonlocal written
        responder.on_pressure(pressure.append)
        responder.start(200, (), length=None)
        while written < 64 * 1024 * 1024:
            responder.write(b"x" * 65_536)
            written += 65_536
            await responder.drain()
        responder.end()

    server = await start_server(app)
    client = await connect(server, limit=1024)
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    await client.send(GET)
    await asyncio.sleep(0.3)
    held = written
    await asyncio.sleep(0.1)
    assert written == held < 16 * 1024 * 1024
    assert pressure == [True]
    await client.reader.readexactly(held)
    assert written > held
    assert False in pressure


async def test_an_application_waiting_for_a_slow_client_learns_that_it_left(start_server, connect):
    ends = []

    async def app(request, responder):
        responder.start(200, (), length=None)
        waiting = asyncio.ensure_future(flood(responder))
        try:
            await asyncio.sleep(10)
        finally:
            await asyncio.gather(waiting, return_exceptions=True)
            ends.append(type(waiting.exception()))

    async def flood(responder):
        while True:
            responder.write(b"x" * 65_536)
            await responder.drain()

    client = await connect(await start_server(app), limit=1024)
    await client.send(GET)
    await asyncio.sleep(0.1)
    client.writer.transport.abort()
    await asyncio.sleep(0.1)
    assert ends == [ClientGone]


async def test_a_client_that_leaves_a_finished_response_unread_is_forgotten(start_server, connect):
    async def app(request, responder):
        responder.reply(200, (), b"x" * 8_000_000)

    server = await start_server(app)
    client = await connect(server, limit=1_024)
    await client.send(GET * 2)
    await asyncio.sleep(0.1)
    closing = asyncio.ensure_future(server.close(0.05))
    await asyncio.wait_for(closing, 1)
    assert server.connections == 0


async def test_who_asks_for_pressure_late_is_told_at_once(start_server, connect):
    told = []

    async def app(request, responder):
        responder.start(200, (), length=None)
        responder.write(b"x" * 8_000_000)
        assert not responder.writable
        responder.on_pressure(told.append)
        responder.abort()

    client = await connect(await start_server(app), limit=1_024)
    await client.send(GET)
    await client.rest()
    assert told == [True]
