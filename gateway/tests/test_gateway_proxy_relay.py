"""The whole way: a client, the server, the relay, the pool and an engine, each on a real socket."""

import asyncio
import gc
import socket

import pytest
from sheaf_gateway.proxy import Endpoint, PoolLimits, Relay, ServerLimits, Timeouts, request_head

GET = b"GET /v1 HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def start_gateway(start_server, make_pool):
    """A gateway with no decisions: every request goes to one engine."""

    async def start(endpoint: Endpoint, timeouts: Timeouts | None = None, limits: ServerLimits | None = None):
        pool = make_pool(timeouts)

        def app(request, responder):
            head = request_head(request.method, request.target, endpoint.authority, request.headers, len(request.body))
            relay = Relay(responder)
            bodiless = request.method == "HEAD"
            relay.attach(pool.exchange(endpoint, head, request.body, relay, bodiless=bodiless))

        server = await start_server(app, limits or ServerLimits(linger_s=0.1))
        return server, pool

    return start


def saying(*parts: bytes):
    async def script(reader, writer):
        while True:
            await reader.readuntil(b"\r\n\r\n")
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0.005)

    return script


async def test_a_response_with_a_length_passes_through(start_engine, start_gateway, connect):
    server, _ = await start_gateway(await start_engine(saying(OK)))
    client = await connect(server)
    for _ in range(3):
        await client.send(GET)
        reply = await client.reply()
        assert (reply.status, reply.body, reply.headers) == (200, b"ok", {"content-length": "2"})


async def test_a_stream_passes_through_in_order_and_piece_by_piece(start_engine, start_gateway, connect):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    events = [b"data: %d\n\n" % n for n in range(20)]
    chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
    server, _ = await start_gateway(await start_engine(saying(head, *chunks, b"0\r\n\r\n")))
    client = await connect(server)
    await client.send(GET)
    reply = await client.reply()
    assert reply.headers == {"content-type": "text/event-stream", "transfer-encoding": "chunked"}
    assert reply.body == b"".join(events)


async def test_what_either_side_said_of_its_connection_stays_there(start_engine, start_gateway, connect):
    seen = []

    async def script(reader, writer):
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nX: y\r\n\r\nend")

    server, _ = await start_gateway(await start_engine(script))
    client = await connect(server)
    await client.send(
        b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nUpgrade: h2c\r\nConnection: upgrade\r\nX-A: b\r\n\r\n"
    )
    reply = await client.reply()
    assert (reply.headers, reply.body) == ({"x": "y", "transfer-encoding": "chunked"}, b"end")
    assert b"\r\nx-a: b\r\n" in seen[0]
    assert not any(name in seen[0].lower() for name in (b"\r\nte:", b"upgrade", b"connection", b"\r\nhost: a\r\n"))


async def test_head_passes_through_without_a_body(start_engine, start_gateway, connect):
    server, _ = await start_gateway(await start_engine(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n")))
    client = await connect(server)
    for _ in range(2):
        await client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"content-length: 7\r\n" in await client.reader.readuntil(b"\r\n\r\n")


async def test_a_client_that_leaves_closes_the_engines_connection_at_once(start_engine, start_gateway, connect):
    arrived, closed = asyncio.Event(), asyncio.Event()

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await reader.read()
        closed.set()

    server, _ = await start_gateway(await start_engine(script))
    client = await connect(server)
    await client.send(GET)
    await arrived.wait()
    await client.close()
    await asyncio.wait_for(closed.wait(), 0.5)


async def test_a_client_that_does_not_read_holds_the_engine_back(start_engine, start_gateway, connect):
    sent = 0

    async def script(reader, writer):
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n")
        for _ in range(200):
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    server, _ = await start_gateway(await start_engine(script))
    client = await connect(server, limit=65_536)
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    await client.send(GET)
    await asyncio.sleep(0.3)
    assert sent < 15_000_000
    assert len((await client.reply()).body) == 20_000_000
    assert sent == 20_000_000


@pytest.mark.parametrize(
    ("parts", "status"),
    [([b"garbage\r\n\r\n"], 502), ([b"HTTP/1.1 200"], 504)],
)
async def test_an_engine_that_fails_before_its_head_becomes_a_clear_status(
    parts, status, start_engine, start_gateway, connect
):
    server, _ = await start_gateway(await start_engine(saying(*parts)), Timeouts(first_byte_s=0.2))
    client = await connect(server)
    for _ in range(2):
        await client.send(GET)
        reply = await client.reply()
        assert (reply.status, reply.headers["content-type"]) == (status, "application/json")


async def test_an_engine_that_is_not_there_becomes_502(start_gateway, connect):
    with socket.create_server(("127.0.0.1", 0)) as bound:
        endpoint = Endpoint("127.0.0.1", bound.getsockname()[1])
    server, _ = await start_gateway(endpoint)
    client = await connect(server)
    await client.send(GET)
    assert (await client.reply()).status == 502


@pytest.mark.parametrize("head", [b"Content-Length: 9", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_an_engine_that_dies_within_its_body_breaks_the_clients_response(
    head, version, start_engine, start_gateway, connect
):
    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n1\r\na\r\n")
        await asyncio.sleep(0.02)
        writer.transport.abort()

    server, _ = await start_gateway(await start_engine(script))
    client = await connect(server)
    await client.send(b"GET / HTTP/" + version + b"\r\nHost: a\r\n\r\n")
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.reply()


async def test_memory_is_flat_over_many_requests_and_nothing_waits_for_the_collector(
    start_engine, start_gateway, connect
):
    server, _ = await start_gateway(await start_engine(saying(OK)))
    client = await connect(server)

    async def rounds(count):
        for _ in range(count):
            await client.send(GET)
            await client.reply()

    await rounds(5)
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        await rounds(40)
        assert len(gc.get_objects()) - before < 40
    finally:
        gc.enable()


async def test_an_engine_with_no_connection_to_spare_becomes_503_with_retry_after(
    start_engine, start_server, connect, make_pool
):
    pool = make_pool(limits=PoolLimits(max_connections=0))
    endpoint = await start_engine(saying(OK))

    def app(request, responder):
        relay = Relay(responder)
        relay.attach(pool.exchange(endpoint, request_head("GET", "/", b"a", (), 0), b"", relay))

    client = await connect(await start_server(app))
    await client.send(GET)
    reply = await client.reply()
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")


async def test_a_relay_may_be_attached_to_a_second_exchange_and_the_client_still_cancels_it(
    start_engine, start_server, connect, make_pool
):
    closed = asyncio.Event()

    async def hanging(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await reader.read()
        closed.set()

    pool, bad, good = make_pool(), await start_engine(saying(b"garbage\r\n\r\n")), await start_engine(hanging)

    class Retrying(Relay):
        def on_error(self, error):
            assert error.retry_safe
            self.attach(pool.exchange(good, request_head("GET", "/", b"a", (), 0), b"", self))

    def app(request, responder):
        relay = Retrying(responder)
        relay.attach(pool.exchange(bad, request_head("GET", "/", b"a", (), 0), b"", relay))

    client = await connect(await start_server(app))
    await client.send(GET)
    await asyncio.sleep(0.1)
    await client.close()
    await asyncio.wait_for(closed.wait(), 0.5)


async def test_a_chunked_answer_in_one_read_is_passed_on_whole(start_engine, start_gateway, connect):
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    server, _ = await start_gateway(await start_engine(saying(raw)))
    client = await connect(server)
    await client.send(GET)
    reply = await client.reply()
    assert (reply.body, reply.headers) == (b"ok", {"content-length": "2"})
