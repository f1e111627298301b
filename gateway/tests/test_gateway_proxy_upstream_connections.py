"""Connections to engines: opened in time, kept within bounds, replaced when stale, retried only where it is safe."""

import asyncio
import socket

import pytest
from gateway_proxy_engines import CHUNKED, OK, QUICK, Ear, answering, fetch, read_request, send
from sheaf_gateway.proxy import (
    ConnectFailed,
    ConnectTimeout,
    Endpoint,
    FirstByteTimeout,
    IdleTimeout,
    PoolLimits,
    ResetBeforeHead,
    Saturated,
    Timeouts,
)


async def test_a_refused_connection_is_an_error_before_delivery(make_pool):
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    with pytest.raises(ConnectFailed) as caught:
        await fetch(make_pool(), Endpoint("127.0.0.1", port))
    assert (caught.value.retry_safe, caught.value.delivered) == (True, False)
    assert f"http://127.0.0.1:{port} cannot be reached" in str(caught.value)


@pytest.mark.parametrize("endpoint", [Endpoint(uds="/nonexistent/socket"), Endpoint("a..b", 80)])
async def test_an_address_that_cannot_be_is_an_error_before_delivery(endpoint, make_pool):
    with pytest.raises(ConnectFailed):
        await fetch(make_pool(), endpoint)


async def test_an_engine_that_does_not_accept_times_out(make_pool):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen(0)
        filling = [socket.socket() for _ in range(4)]
        for one in filling:
            one.setblocking(False)
            one.connect_ex(bound.getsockname())
        with pytest.raises(ConnectTimeout):
            await fetch(make_pool(Timeouts(connect_s=0.2)), Endpoint(*bound.getsockname()))
        for one in filling:
            one.close()


async def test_an_engine_that_does_not_begin_to_answer_times_out(start_engine, make_pool):
    pool, endpoint = make_pool(QUICK), await start_engine(answering([b"HTTP/1.1 "]))
    with pytest.raises(FirstByteTimeout) as caught:
        await fetch(pool, endpoint)
    assert caught.value.retry_safe
    await asyncio.sleep(0.02)
    assert pool.open_connections(endpoint) == 0


async def test_an_engine_may_take_as_long_for_its_first_byte_after_the_head_as_before_it(start_engine, make_pool):
    async def script(reader, writer):
        await read_request(reader)
        writer.write(CHUNKED)
        await asyncio.sleep(0.2)
        writer.write(b"2\r\nok\r\n0\r\n\r\n")
        await reader.read()

    pool = make_pool(Timeouts(first_byte_s=5.0, idle_s=0.05))
    assert await fetch(pool, await start_engine(script)) == (200, b"ok")


async def test_an_engine_that_says_nothing_after_its_head_times_out(start_engine, make_pool):
    endpoint = await start_engine(answering([CHUNKED]))
    with pytest.raises(FirstByteTimeout) as caught:
        await fetch(make_pool(Timeouts(first_byte_s=0.1, idle_s=5.0)), endpoint)
    assert not caught.value.retry_safe


async def test_an_engine_that_pauses_within_a_body_times_out(start_engine, make_pool):
    endpoint = await start_engine(answering([CHUNKED, b"2\r\nok\r\n"]))
    with pytest.raises(IdleTimeout) as caught:
        await fetch(make_pool(QUICK), endpoint)
    assert not caught.value.retry_safe


async def test_an_engine_that_dribbles_within_the_idle_bound_is_waited_for(start_engine, make_pool):
    parts = [CHUNKED, *([b"1\r\na\r\n"] * 100), b"0\r\n\r\n"]
    pool = make_pool(Timeouts(idle_s=0.8))
    assert await fetch(pool, await start_engine(answering(parts))) == (200, b"a" * 100)


async def test_a_kept_connection_closed_meanwhile_is_replaced_without_the_caller_noticing(start_engine, make_pool):
    served = []

    async def script(reader, writer):
        await read_request(reader)
        writer.write(OK)
        served.append(1)
        if len(served) == 1:
            await read_request(reader)
            writer.transport.abort()
        await reader.read()

    pool, endpoint = make_pool(), await start_engine(script)
    assert await fetch(pool, endpoint) == (200, b"ok")
    assert await fetch(pool, endpoint) == (200, b"ok")
    assert len(served) == 2


async def test_a_kept_connection_that_is_closed_later_may_have_begun_the_work(start_engine, make_pool):
    requests = []

    async def script(reader, writer):
        requests.append(await read_request(reader))
        writer.write(OK)
        requests.append(await read_request(reader))
        await asyncio.sleep(0.05)
        writer.transport.abort()

    pool, endpoint = make_pool(limits=PoolLimits(stale_s=0.02)), await start_engine(script)
    await fetch(pool, endpoint)
    with pytest.raises(ResetBeforeHead) as caught:
        await fetch(pool, endpoint)
    assert (caught.value.retry_safe, caught.value.delivered) == (True, True)
    assert len(requests) == 2


async def test_a_request_is_sent_again_once_and_never_on_a_new_connection(start_engine, make_pool):
    requests = []

    async def script(reader, writer):
        requests.append(await read_request(reader))
        if len(requests) == 1:
            writer.write(OK)
            requests.append(await read_request(reader))

    pool, endpoint = make_pool(), await start_engine(script)
    await fetch(pool, endpoint)
    with pytest.raises(ResetBeforeHead):
        await fetch(pool, endpoint)
    assert len(requests) == 3


async def test_a_kept_connection_that_began_to_answer_is_not_retried(start_engine, make_pool):
    pool, endpoint = make_pool(), await start_engine(answering(OK, b"HTTP/1.1 200", then_close=True))
    await fetch(pool, endpoint)
    with pytest.raises(ResetBeforeHead):
        await fetch(pool, endpoint)


async def test_an_idle_connection_is_closed_in_time(start_engine, make_pool):
    pool = make_pool(limits=PoolLimits(keep_idle_s=0.05, tick_s=0.01))
    endpoint = await start_engine(answering(OK, OK))
    await fetch(pool, endpoint)
    assert pool.open_connections(endpoint) == 1
    await asyncio.sleep(0.15)
    assert pool.open_connections(endpoint) == 0


async def test_idle_connections_are_bounded_and_can_be_discarded(start_engine, make_pool):
    pool = make_pool(limits=PoolLimits(max_idle=2))
    endpoint = await start_engine(answering(OK, OK))
    await asyncio.gather(*(fetch(pool, endpoint) for _ in range(5)))
    await asyncio.sleep(0.02)
    assert pool.open_connections(endpoint) == 2
    pool.discard_idle(endpoint)
    pool.discard_idle(Endpoint("other"))
    await asyncio.sleep(0.02)
    assert pool.open_connections(endpoint) == 0


async def test_connections_to_one_engine_are_bounded(start_engine, make_pool):
    pool = make_pool(limits=PoolLimits(max_connections=2))
    endpoint = await start_engine(answering([]))
    ears = [Ear() for _ in range(3)]
    exchanges = [send(pool, endpoint, ear) for ear in ears]
    assert ears[2].heard == []
    await ears[2].over.wait()
    assert isinstance(ears[2].heard[0], Saturated)
    for exchange in exchanges:
        exchange.cancel()
    await asyncio.sleep(0.05)
    assert pool.open_connections(endpoint) == 0


async def test_an_engine_on_a_unix_socket_is_reached(start_engine, make_pool, tmp_path):
    path = str(tmp_path / "s")
    await start_engine(answering(OK), uds=path)
    assert await fetch(make_pool(), Endpoint.parse(f"unix:{path}")) == (200, b"ok")


async def test_a_connection_closed_as_soon_as_it_was_open_is_an_error(make_pool, monkeypatch):
    class Hasty:
        usable = False
        lost = True

        def __init__(self, endpoint):
            self.endpoint = endpoint

    async def open_hasty(endpoint):
        return Hasty(endpoint)

    pool = make_pool()
    monkeypatch.setattr(pool, "_open", open_hasty)
    with pytest.raises(ResetBeforeHead) as caught:
        await fetch(pool, Endpoint("127.0.0.1", 1))
    assert (caught.value.retry_safe, caught.value.delivered) == (True, False)
    assert pool.open_connections(Endpoint("127.0.0.1", 1)) == 0


async def test_a_stale_idle_connection_is_passed_over(start_engine, make_pool):
    pool, endpoint = make_pool(), await start_engine(answering(OK, OK))
    await fetch(pool, endpoint)
    pool.discard_idle(endpoint)
    assert await fetch(pool, endpoint) == (200, b"ok")
