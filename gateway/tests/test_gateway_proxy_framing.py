"""How a response is framed, whatever the version, the method and the headers of the application."""

import asyncio

import pytest
from gateway_proxy_requests import GET


async def test_a_stream_is_chunked_and_its_pieces_arrive_as_they_are_written(start_server, connect):
    go_on = asyncio.Event()

    async def app(request, responder):
        responder.start(200, [(b"content-type", b"text/event-stream")], length=None)
        responder.write(b"first")
        await go_on.wait()
        responder.write(b"")
        responder.write(b"x" * 100_000)
        await responder.drain()
        responder.end()

    client = await connect(await start_server(app))
    await client.send(GET)
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert await client.reader.readexactly(10) == b"5\r\nfirst\r\n"
    go_on.set()
    assert await client._chunks() == b"x" * 100_000


async def test_a_large_whole_reply_arrives_whole(start_server, connect):
    async def app(request, responder):
        responder.reply(200, (), b"x" * 1_000_000)

    client = await connect(await start_server(app))
    await client.send(GET)
    assert (await client.reply()).body == b"x" * 1_000_000


async def test_http_1_0_gets_no_chunks_and_is_closed(start_server, connect):
    async def app(request, responder):
        responder.start(200, (), length=None)
        responder.write(b"a")
        responder.write(b"b")
        responder.end()

    client = await connect(await start_server(app))
    await client.send(b"GET / HTTP/1.0\r\n\r\n")
    reply = await client.reply()
    assert (reply.body, reply.headers) == (b"ab", {"connection": "close"})


async def test_http_1_0_may_ask_to_keep_the_connection(start_server, connect, recorder):
    client = await connect(await start_server(recorder))
    for _ in range(2):
        await client.send(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
        assert (await client.reply()).headers["connection"] == "keep-alive"


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_connection_close_is_honoured(version, start_server, connect, recorder):
    client = await connect(await start_server(recorder))
    await client.send(b"GET / HTTP/" + version + b"\r\nHost: a\r\nConnection: x, Close\r\n\r\n")
    assert (await client.reply()).headers["connection"] == "close"
    assert await client.rest() == b""


async def test_head_gets_the_length_and_no_body(start_server, connect):
    async def app(request, responder):
        responder.reply(200, (), b"12345")

    client = await connect(await start_server(app))
    await client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert b"content-length: 5\r\n" in head
    await client.send(GET)
    assert (await client.reply()).body == b"12345"


@pytest.mark.parametrize("length", [None, 7])
async def test_a_streamed_answer_to_head_has_no_body_either(length, start_server, connect):
    async def app(request, responder):
        responder.start(200, (), length=length)
        responder.write(b"ignored")
        responder.end()

    client = await connect(await start_server(app))
    for _ in range(2):
        await client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_204_has_no_length_and_keeps_the_connection(start_server, connect):
    async def app(request, responder):
        responder.reply(204, (), b"")

    client = await connect(await start_server(app))
    for _ in range(2):
        await client.send(GET)
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 204 No Content\r\n\r\n"


async def test_204_to_http_1_0_closes(start_server, connect):
    async def app(request, responder):
        responder.reply(204, (), b"")

    client = await connect(await start_server(app))
    await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert b"connection: close" in await client.rest()


async def test_the_framing_headers_of_an_application_are_replaced(start_server, connect):
    async def app(request, responder):
        headers = [
            (b"Content-Length", b"99"),
            (b"transfer-encoding", b"chunked"),
            (b"connection", b"close"),
            (b"x", b"y"),
        ]
        responder.reply(200, headers, b"ok")

    client = await connect(await start_server(app))
    await client.send(GET)
    assert (await client.reply()).headers == {"x": "y", "content-length": "2"}


@pytest.mark.parametrize("value", [b"a\r\nx: y", b"a\nx: y", b"a\rb", b"a\0b"])
async def test_a_header_with_a_line_break_never_leaves(value, start_server, connect):
    async def app(request, responder):
        responder.reply(200, [(b"x-user", value)], b"")

    client = await connect(await start_server(app))
    await client.send(GET)
    reply = await client.reply()
    assert (reply.status, "x-user" in reply.headers, "x" in reply.headers) == (500, False, False)
