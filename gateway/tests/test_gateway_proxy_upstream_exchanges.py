"""An exchange can be cancelled, paused, awaited and closed at any point, and nothing more is heard of it."""

import asyncio

import pytest
from gateway_proxy_engines import CHUNKED, OK, Ear, answering, fetch, read_request, send
from sheaf_gateway.proxy import BadResponse, Timeouts, UpstreamError


@pytest.mark.parametrize("wait_s", [0, 0.05])
async def test_cancelling_closes_the_connection_at_once_and_nothing_more_is_heard(wait_s, start_engine, make_pool):
    closed = asyncio.Event()

    async def script(reader, writer):
        await read_request(reader)
        writer.write(CHUNKED)
        await reader.read()
        closed.set()

    pool, endpoint, ear = make_pool(), await start_engine(script), Ear()
    exchange = send(pool, endpoint, ear)
    await asyncio.sleep(wait_s)
    exchange.cancel()
    exchange.cancel()
    exchange.pause()
    exchange.resume()
    if wait_s:
        await asyncio.wait_for(closed.wait(), 0.5)
    await asyncio.sleep(0.02)
    assert ear.heard == ([200] if wait_s else [])
    assert pool.open_connections(endpoint) == 0


@pytest.mark.parametrize("when", ["on_head", "on_body"])
async def test_a_sink_may_cancel_from_within(when, start_engine, make_pool):
    class Fickle(Ear):
        pass

    def fickle(self, *arguments):
        self.heard.append(when)
        self.exchange.cancel()

    setattr(Fickle, when, fickle)
    ear = Fickle()
    pool, endpoint = make_pool(), await start_engine(answering(OK))
    ear.exchange = send(pool, endpoint, ear)
    async with asyncio.timeout(10):
        while not ear.heard or pool.open_connections(endpoint):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert ear.heard[-1] == when
    assert pool.open_connections(endpoint) == 0


async def test_a_sink_may_send_the_next_request_on_the_same_connection_from_its_end(start_engine, make_pool):
    class Eager(Ear):
        def on_end(self):
            if self.heard.count("end") == 0:
                send(pool, endpoint, self)
            super().on_end()

    pool, endpoint, ear = make_pool(), await start_engine(answering(OK, OK)), Eager()
    send(pool, endpoint, ear)
    async with asyncio.timeout(10):
        while ear.heard.count("end") < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert ear.heard == [200, b"ok", "end", 200, b"ok", "end"]
    assert pool.open_connections(endpoint) == 1


async def test_a_paused_exchange_holds_the_engine_back_and_has_no_idle_time(start_engine, make_pool):
    sent = 0

    async def script(reader, writer):
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n")
        for _ in range(200):
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    pool, endpoint, ear = make_pool(Timeouts(idle_s=0.5)), await start_engine(script), Ear()
    exchange = send(pool, endpoint, ear)
    exchange.pause()
    await asyncio.sleep(0.8)
    assert sent < 15_000_000
    assert not ear.over.is_set()
    exchange.resume()
    await asyncio.wait_for(ear.over.wait(), 10)
    assert sum(len(data) for data in ear.heard if isinstance(data, bytes)) == 20_000_000
    assert ear.heard[-1] == "end"


async def test_an_awaited_response_holds_the_engine_back_while_nobody_reads(start_engine, make_pool):
    sent = 0

    async def script(reader, writer):
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n")
        for _ in range(200):
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    pool, endpoint = make_pool(), await start_engine(script)
    async with pool.request(endpoint, "POST", "/", (), b"{}") as response:
        await asyncio.sleep(0.2)
        assert sent < 15_000_000
        assert response.header(b"content-length") == b"20000000"
        assert response.header(b"none") is None
        assert sum([len(data) async for data in response.chunks()]) == 20_000_000
        assert [data async for data in response.chunks()] == []


async def test_leaving_an_awaited_response_early_closes_its_connection(start_engine, make_pool):
    pool, endpoint = make_pool(), await start_engine(answering([CHUNKED, b"2\r\nok\r\n"]))
    async with pool.request(endpoint, "POST", "/") as response:
        async for data in response.chunks():
            assert data == b"ok"
            break
    await asyncio.sleep(0.02)
    assert pool.open_connections(endpoint) == 0


async def test_cancelling_who_awaits_a_head_closes_the_connection(start_engine, make_pool):
    pool, endpoint = make_pool(), await start_engine(answering([]))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(fetch(pool, endpoint), 0.05)
    await asyncio.sleep(0.02)
    assert pool.open_connections(endpoint) == 0


async def test_reading_more_than_allowed_is_an_error(start_engine, make_pool):
    pool, endpoint = make_pool(), await start_engine(answering(OK))
    async with pool.request(endpoint, "POST", "/") as response:
        with pytest.raises(BadResponse, match="larger than 1 bytes"):
            await response.read(1)


async def test_closing_the_pool_ends_what_is_in_progress(start_engine, make_pool):
    pool, endpoint = make_pool(), await start_engine(answering(OK, []))
    ears = [Ear() for _ in range(4)]
    await fetch(pool, endpoint)
    send(pool, endpoint, ears[0])
    send(pool, endpoint, ears[1])
    await asyncio.sleep(0.05)
    send(pool, endpoint, ears[2])
    await pool.close()
    send(pool, endpoint, ears[3])
    await asyncio.sleep(0.02)
    assert [len(ear.heard) for ear in ears] == [1, 1 + 2, 1, 1]
    assert all(isinstance(ears[n].heard[0], UpstreamError) for n in (0, 2, 3))
    assert pool.open_connections(endpoint) == 0
