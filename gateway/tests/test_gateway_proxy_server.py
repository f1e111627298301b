"""What the server promises a client and an application: order, pressure, pipelining, endings."""

import asyncio
import socket

import pytest
from sheaf_gateway.proxy import ClientGone, ServerLimits, serve

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"


def post(body: bytes, *headers: bytes) -> bytes:
    lines = b"".join(line + b"\r\n" for line in headers)
    return b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%b\r\n%b" % (len(body), lines, body)


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


async def test_an_exception_becomes_500_json_without_a_traceback(start_server, connect, logged):
    async def app(request, responder):
        raise KeyError("secret")

    client = await connect(await start_server(app))
    for _ in range(2):
        await client.send(GET)
        reply = await client.reply()
        assert reply.status == 500
        assert b'"code":"internal_error"' in reply.body
        assert b"secret" not in reply.body
    assert [(event["event"], event["path"]) for event in logged] == [("app_failed", "/a")] * 2


async def test_an_exception_of_a_callback_application_becomes_500_too(start_server, connect):
    def app(request, responder):
        raise KeyError("secret")

    client = await connect(await start_server(app))
    await client.send(GET)
    assert (await client.reply()).status == 500


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_an_exception_after_the_start_breaks_the_response_visibly(version, start_server, connect):
    async def app(request, responder):
        responder.start(200, (), length=None)
        responder.write(b"half")
        await asyncio.sleep(0.01)
        raise KeyError("secret")

    client = await connect(await start_server(app))
    await client.send(b"GET / HTTP/" + version + b"\r\nHost: a\r\n\r\n")
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.reply()


async def test_a_body_shorter_than_declared_breaks_the_response_visibly(start_server, connect):
    async def app(request, responder):
        responder.start(200, (), length=10)
        responder.write(b"short")
        responder.end()

    client = await connect(await start_server(app))
    await client.send(GET)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.reply()


async def test_a_body_longer_than_declared_is_an_error_of_the_application(start_server, connect):
    errors = []

    async def app(request, responder):
        responder.start(200, (), length=2)
        try:
            responder.write(b"long")
        except RuntimeError as error:
            errors.append(str(error))

    client = await connect(await start_server(app))
    await client.send(GET)
    await client.rest()
    assert errors == ["the body is longer than the declared length"]


async def test_an_application_that_does_not_answer_gets_500(start_server, connect):
    async def app(request, responder):
        pass

    client = await connect(await start_server(app))
    await client.send(GET)
    assert (await client.reply()).status == 500


async def test_misuse_of_a_responder_is_an_error(start_server, connect):
    errors = []

    def attempt(action, *args, **kwargs):
        try:
            action(*args, **kwargs)
        except (RuntimeError, ValueError) as error:
            errors.append(str(error))

    async def app(request, responder):
        attempt(responder.write, b"too early")
        attempt(responder.end)
        attempt(responder.start, 99, (), length=0)
        responder.reply(200, (), b"ok")
        attempt(responder.reply, 200, (), b"twice")
        attempt(responder.start, 200, (), length=0)
        attempt(responder.write, b"too late")
        responder.abort()

    client = await connect(await start_server(app))
    await client.send(GET)
    assert (await client.reply()).body == b"ok"
    assert len(errors) == 6


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


async def test_an_abort_stops_whatever_works_for_the_response(start_server, connect):
    told = []

    async def app(request, responder):
        responder.disconnected.on_disconnect(lambda: told.append(responder.disconnected.is_set()))
        responder.abort()

    client = await connect(await start_server(app))
    await client.send(GET)
    assert await client.rest() == b""
    assert told == [False]
