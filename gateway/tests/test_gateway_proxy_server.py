"""What the server promises: requests served one by one, bodies awaited, sockets of every kind, an orderly close."""

import asyncio
import socket

import pytest
from gateway_proxy_requests import GET, post
from sheaf_gateway.proxy import ServerLimits, serve


async def test_a_connection_serves_one_request_after_another(start_server, connect, recorder):
    client = await connect(await start_server(recorder))
    for body in (b"one", b"", b"three"):
        await client.send(post(body))
        assert (await client.reply()).body == body
    assert [body for _, _, body in recorder.seen] == [b"one", b"", b"three"]


async def test_the_application_sees_lower_case_names_and_parts_of_the_target(start_server, connect, recorder):
    client = await connect(await start_server(recorder))
    await client.send(b"GET /v1/%41?b=c?d HTTP/1.1\r\nHOST: a\r\nX-A:  b \r\nx-a: c\r\n\r\n")
    await client.reply()
    request = recorder.requests[0]
    assert (request.path, request.query) == ("/v1/%41", "b=c?d")
    assert request.headers == ((b"host", b"a"), (b"x-a", b"b"), (b"x-a", b"c"))
    assert request.header(b"x-a") == b"b"
    assert request.header(b"none") is None
    assert request.client.startswith("127.0.0.1:")
    assert 0 <= asyncio.get_running_loop().time() - request.received_at < 1


async def test_an_application_without_a_task_answers_through_callbacks(start_server, connect):
    loop = asyncio.get_running_loop()

    def app(request, responder):
        responder.start(200, (), length=2)
        loop.call_later(0.01, responder.write, b"ok")
        loop.call_later(0.02, responder.end)

    client = await connect(await start_server(app))
    await client.send(GET + GET)
    assert (await client.reply()).body == b"ok"
    assert (await client.reply()).body == b"ok"


async def test_expect_100_continue_is_answered_before_the_body(start_server, connect, recorder):
    client = await connect(await start_server(recorder))
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\n")
    assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(b"abc")
    assert (await client.reply()).body == b"abc"


async def test_expect_100_continue_is_not_answered_when_the_body_is_there(start_server, connect, recorder):
    client = await connect(await start_server(recorder))
    await client.send(post(b"abc", b"Expect: 100-continue"))
    assert (await client.reply()).status == 200


async def test_a_body_too_large_is_refused_before_it_is_sent(start_server, connect, recorder):
    client = await connect(await start_server(recorder, ServerLimits(max_body=10, linger_s=0.1)))
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\n")
    reply = await client.reply()
    assert reply.status == 413
    assert b"body_too_large" in reply.body


async def test_closing_lets_a_request_end_and_refuses_new_ones(start_server, connect):
    async def app(request, responder):
        await asyncio.sleep(0.1)
        responder.reply(200, (), b"done")

    server = await start_server(app)
    busy, idle = await connect(server), await connect(server)
    await busy.send(GET)
    await asyncio.sleep(0.02)
    closing = asyncio.ensure_future(server.close(1.0))
    assert await idle.rest() == b""
    assert (await busy.reply()).body == b"done"
    assert await busy.rest() == b""
    await closing
    assert server.connections == 0
    with pytest.raises(ConnectionError):
        await connect(server)


async def test_a_request_on_its_way_while_the_server_closes_is_the_last_one(start_server, connect):
    async def app(request, responder):
        responder.reply(200, (), b"done")

    server = await start_server(app)
    kept, begun, fresh = await connect(server), await connect(server), await connect(server)
    for client in (kept, begun):
        await client.send(GET)
        assert (await client.reply()).body == b"done"
    await begun.send(GET[:10])
    await kept.send(GET)
    closing = asyncio.ensure_future(server.close(2.0))
    await asyncio.sleep(0.05)
    await begun.send(GET[10:])
    await fresh.send(GET)
    for client in (kept, begun, fresh):
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert await client.rest() == b""
    await closing


async def test_who_was_told_to_keep_the_connection_may_use_it_once_more(start_server, connect):
    ends = asyncio.Event()

    async def app(request, responder):
        responder.start(200, (), length=None)
        await ends.wait()
        responder.end()

    server = await start_server(app)
    client, silent = await connect(server), await connect(server)
    for one in (client, silent):
        await one.send(GET)
    await asyncio.sleep(0.02)
    server.closing = True
    ends.set()
    for one in (client, silent):
        assert "connection" not in (await one.reply()).headers
    await client.send(GET)
    assert (await client.reply()).headers["connection"] == "close"
    assert await client.rest() == b""
    await server.close(2.0)
    assert server.connections == 0


async def test_closing_breaks_off_what_outlives_the_deadline(start_server, connect):
    ends = []

    async def app(request, responder):
        try:
            await asyncio.sleep(10)
        finally:
            ends.append("cancelled")

    server = await start_server(app)
    client = await connect(server)
    await client.send(GET)
    await asyncio.sleep(0.02)
    await asyncio.wait_for(server.close(0.05), 0.5)
    assert await client.rest() == b""
    assert ends == ["cancelled"]


async def test_an_address_in_use_is_an_error(start_server, recorder):
    server = await start_server(recorder)
    with pytest.raises(OSError, match="in use"):
        await serve(recorder, host="127.0.0.1", port=server.port)


async def test_a_bound_socket_is_served(start_server, connect, recorder):
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = await serve(recorder, sock=bound)
        client = await connect(server)
        await client.send(post(b"hi"))
        assert (await client.reply()).body == b"hi"
        await server.close(0.1)


async def test_a_unix_socket_is_served(recorder, tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path)
        server = await serve(recorder, sock=bound)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        writer.close()
        await server.close(0.1)
    assert recorder.requests[0].client == "unix"
