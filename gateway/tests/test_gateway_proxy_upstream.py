"""What the pool promises of engines that behave and of engines that do not."""

import asyncio
import socket

import pytest
from sheaf_gateway.proxy import (
    BadResponse,
    ConnectFailed,
    ConnectTimeout,
    Endpoint,
    FirstByteTimeout,
    IdleTimeout,
    PoolLimits,
    ResetBeforeHead,
    ResetMidBody,
    Saturated,
    Timeouts,
    UpstreamError,
    request_head,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
QUICK = Timeouts(connect_s=0.2, first_byte_s=0.2, idle_s=0.2)


def answering(*answers, then_close=False):
    """A script that gives one answer per request of a connection, in as many writes as it has parts."""

    async def script(reader, writer):
        for answer in answers:
            await read_request(reader)
            for part in answer if isinstance(answer, list) else [answer]:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.01)
        if not then_close:
            await reader.read()

    return script


async def read_request(reader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


async def fetch(pool, endpoint, method="POST", **options) -> tuple[int, bytes]:
    async with pool.request(endpoint, method, "/v1", (), b"{}", **options) as response:
        return response.status, await response.read()


class Ear:
    """A sink that keeps what it hears."""

    def __init__(self):
        self.heard = []
        self.over = asyncio.Event()

    def on_head(self, status, headers):
        self.heard.append(status)

    def on_body(self, data):
        self.heard.append(data)

    def on_end(self):
        self.heard.append("end")
        self.over.set()

    def on_error(self, error):
        self.heard.append(error)
        self.over.set()


def send(pool, endpoint, ear, **options):
    return pool.exchange(endpoint, request_head("POST", "/", b"e", (), 2), b"{}", ear, **options)


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
    await asyncio.sleep(0.05)
    assert pool.open_connections(endpoint) == 0


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
            await fetch(make_pool(QUICK), Endpoint(*bound.getsockname()))
        for one in filling:
            one.close()


async def test_an_engine_that_does_not_begin_to_answer_times_out(start_engine, make_pool):
    pool, endpoint = make_pool(QUICK), await start_engine(answering([b"HTTP/1.1 "]))
    with pytest.raises(FirstByteTimeout) as caught:
        await fetch(pool, endpoint)
    assert caught.value.retry_safe
    await asyncio.sleep(0.02)
    assert pool.open_connections(endpoint) == 0


async def test_an_engine_that_pauses_within_a_body_times_out(start_engine, make_pool):
    endpoint = await start_engine(answering([CHUNKED, b"2\r\nok\r\n"]))
    with pytest.raises(IdleTimeout) as caught:
        await fetch(make_pool(QUICK), endpoint)
    assert not caught.value.retry_safe


async def test_an_engine_that_dribbles_within_the_idle_bound_is_waited_for(start_engine, make_pool):
    parts = [CHUNKED, *([b"1\r\na\r\n"] * 30), b"0\r\n\r\n"]
    assert await fetch(make_pool(QUICK), await start_engine(answering(parts))) == (200, b"a" * 30)


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
    await asyncio.sleep(0.1)
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
    await asyncio.sleep(0.1)
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

    pool, endpoint, ear = make_pool(QUICK), await start_engine(script), Ear()
    exchange = send(pool, endpoint, ear)
    exchange.pause()
    await asyncio.sleep(0.4)
    assert sent < 15_000_000
    assert not ear.over.is_set()
    exchange.resume()
    await asyncio.wait_for(ear.over.wait(), 1)
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


async def test_the_request_that_an_engine_sees_is_freshly_framed(start_engine, make_pool):
    seen = []

    async def script(reader, writer):
        seen.append(await read_request(reader))
        writer.write(OK)

    headers = [
        (b"host", b"evil"),
        (b"content-length", b"99"),
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"keep-alive"),
        (b"expect", b"100-continue"),
        (b"x-a", b"b"),
    ]
    endpoint = await start_engine(script)
    async with make_pool().request(endpoint, "POST", "/v1?x", headers, b"{}") as response:
        await response.read()
    authority = f"127.0.0.1:{endpoint.port}".encode()
    assert seen == [b"POST /v1?x HTTP/1.1\r\nhost: " + authority + b"\r\nx-a: b\r\ncontent-length: 2\r\n\r\n{}"]


async def test_a_large_body_goes_out_whole(start_engine, make_pool):
    sizes = []

    async def script(reader, writer):
        sizes.append(len(await read_request(reader)))
        writer.write(OK)

    async with make_pool().request(await start_engine(script), "POST", "/", (), b"x" * 1_000_000) as response:
        assert response.status == 200
    assert sizes[0] > 1_000_000


async def test_an_engine_on_a_unix_socket_is_reached(start_engine, make_pool, tmp_path):
    path = str(tmp_path / "s")
    await start_engine(answering(OK), uds=path)
    assert await fetch(make_pool(), Endpoint.parse(f"unix:{path}")) == (200, b"ok")


@pytest.mark.parametrize(
    ("url", "endpoint", "authority"),
    [
        ("http://a:81", Endpoint("a", 81), b"a:81"),
        ("http://a/", Endpoint("a", 80), b"a:80"),
        ("https://a", Endpoint("a", 443, tls=True), b"a:443"),
        ("http://[::1]:9", Endpoint("::1", 9), b"[::1]:9"),
        ("http://bücher:9", Endpoint("bücher", 9), b"xn--bcher-kva:9"),
        ("unix:/run/x", Endpoint(uds="/run/x"), b"localhost"),
    ],
)
def test_an_endpoint_is_read_from_its_url(url, endpoint, authority):
    assert Endpoint.parse(url) == endpoint
    assert endpoint.authority == authority
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "url", ["", "a:80", "ftp://a", "http://", "http://u@a", "http://a/b", "http://a?b", "http://a:x", "unix:x"]
)
def test_a_url_that_is_no_endpoint_is_refused(url):
    with pytest.raises(ValueError, match=r".+"):
        Endpoint.parse(url)


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


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET", "/a b", []),
        ("GET", "/a\r\nX: y", []),
        ("GET ", "/", []),
        ("GET", "/\x7f", []),
        ("GET", "/é", []),
        ("GET", "/", [(b"x", b"a\r\ny: z")]),
        ("GET", "/", [(b"x\n", b"a")]),
        ("GET", "/", [(b"x", b"a\0")]),
    ],
)
def test_a_request_head_that_would_come_apart_is_never_built(method, target, headers):
    with pytest.raises(ValueError, match="holds"):
        request_head(method, target, b"a", headers, 0)
