"""What was written before an abort arrives, and the client still sees that the response is broken."""

import asyncio

import pytest
from sheaf_gateway.proxy import ServerLimits

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\nHost: a\r\n\r\n"
LARGE = b"x" * 60_000 + b"last"


@pytest.mark.parametrize("said", [b"the last word", LARGE])
async def test_the_last_word_before_an_abort_arrives_without_an_end(start_server, connect, said):
    async def app(request, responder):
        responder.start(200, (), length=None)
        await asyncio.sleep(0.01)
        responder.write(said)
        responder.abort()

    client = await connect(await start_server(app))
    await client.send(GET)
    raw = await client.rest()
    assert raw.endswith(said + b"\r\n")
    assert b"\r\n0\r\n" not in raw


async def test_a_head_that_was_only_started_goes_out_before_an_abort(start_server, connect):
    def app(request, responder):
        responder.start(200, (), length=10)
        responder.write(b"half")
        responder.abort()

    client = await connect(await start_server(app))
    await client.send(GET)
    raw = await client.rest()
    assert raw.startswith(b"HTTP/1.1 200")
    assert raw.endswith(b"\r\n\r\nhalf")


async def test_a_body_that_ends_by_closing_ends_by_a_reset(start_server, connect):
    def app(request, responder):
        responder.start(200, (), length=None)
        responder.write(b"half")
        responder.abort()

    client = await connect(await start_server(app))
    await client.send(OLD)
    with pytest.raises(ConnectionResetError):
        await client.reader.read()


async def test_an_aborted_response_that_nobody_reads_is_given_up(start_server, connect):
    async def app(request, responder):
        responder.start(200, (), length=None)
        while responder.writable:
            responder.write(b"x" * 60_000)
            await asyncio.sleep(0)
        responder.abort()

    server = await start_server(app, ServerLimits(write_stall_s=0.2))
    client = await connect(server)
    client.writer.transport.pause_reading()
    await client.send(GET)
    async with asyncio.timeout(3):
        while not server.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        while server.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
