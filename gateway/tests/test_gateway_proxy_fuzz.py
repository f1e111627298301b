"""Random splits of valid streams change nothing; random bytes neither crash nor hang anything."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sheaf_gateway.proxy import ServerLimits, Timeouts, UpstreamError
from sheaf_gateway.proxy.body import ChunkedBody, LengthBody
from sheaf_gateway.proxy.errors import Refusal
from sheaf_gateway.proxy.framing import check_partial, parse_head

LIMITS = ServerLimits(max_request_line=256, max_head=1_024, max_headers=16, max_body=512, max_chunk_extension=16)
OVER_SOCKETS = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
PURE = settings(max_examples=40, deadline=None)

bodies = st.binary(max_size=80)
extensions = st.sampled_from([b"", b";a", b';a="b c"'])
sizes = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@st.composite
def chunked_bodies(draw):
    """A body and one of its chunked codings."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=20), max_size=5))
    lines = [b"%x%b\r\n%b\r\n" % (len(piece), draw(extensions), piece) for piece in pieces]
    return b"".join(pieces), b"".join(lines) + b"0" + draw(extensions) + b"\r\n\r\n"


@st.composite
def requests(draw):
    """A request as bytes, and how the application must see it."""
    target = "/" + draw(st.text("abc/?=%", max_size=12))
    padding = b"X-Pad: " + draw(st.text("ab c", max_size=20)).encode() + b"\r\n"
    head = b"POST " + target.encode() + b" HTTP/1.1\r\nHost: a\r\n" + padding
    if draw(st.booleans()):
        body, coded = draw(chunked_bodies())
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + coded, ("POST", target, body)
    body = draw(bodies)
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body), ("POST", target, body)


def cut(data: bytes, lengths: list[int]) -> list[bytes]:
    """Cut data into pieces of the given lengths, over and over."""
    pieces, position, turn = [], 0, 0
    while position < len(data):
        pieces.append(data[position : position + lengths[turn % len(lengths)]])
        position += lengths[turn % len(lengths)]
        turn += 1
    return pieces


def refusal_of(call, *arguments) -> int | None:
    """The status with which a call refuses, or None."""
    try:
        call(*arguments)
    except Refusal as refusal:
        return refusal.status
    return None


@OVER_SOCKETS
@given(st.lists(requests(), min_size=1, max_size=4), sizes)
async def test_the_same_requests_are_seen_however_the_bytes_are_split(start_server, connect, recorder, stream, lengths):
    recorder.requests.clear()
    server = await start_server(recorder, LIMITS)
    client = await connect(server)
    for piece in cut(b"".join(raw for raw, _ in stream), lengths):
        client.writer.write(piece)
        await asyncio.sleep(0)
    for _, (_, _, body) in stream:
        assert (await client.reply()).body == body
    assert recorder.seen == [expected for _, expected in stream]
    await client.close()
    await server.close(0.1)


noise = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from(
            [
                b"\r\n",
                b"\n",
                b"\r",
                b" ",
                b":",
                b"GET / HTTP/1.1\r\n",
                b"Host: a\r\n",
                b"\r\n\r\n",
                b"0\r\n\r\n",
                b"Content-Length: 3\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"3\r\nabc\r\n",
                b"PRI * HTTP/2.0\r\n",
                b"\0",
            ]
        ),
    ),
    max_size=12,
).map(b"".join)


@OVER_SOCKETS
@given(noise, sizes)
async def test_noise_is_answered_or_closed_and_the_next_client_is_served(
    start_server, connect, recorder, data, lengths
):
    server = await start_server(recorder, LIMITS)
    client = await connect(server)
    for piece in cut(data, lengths):
        client.writer.write(piece)
        await asyncio.sleep(0)
    client.writer.write_eof()
    assert b"500" not in (await asyncio.wait_for(client.rest(), 1.0))[:12]
    await client.close()
    other = await connect(server)
    await other.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await other.reply()).status == 200
    await other.close()
    await server.close(0.1)


@OVER_SOCKETS
@given(noise.map(lambda data: data.replace(b"GET / HTTP/1.1", b"HTTP/1.1 200 OK")), sizes)
async def test_a_noisy_engine_ends_an_exchange_and_nothing_else(start_engine, make_pool, data, lengths):
    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        for piece in cut(data, lengths):
            writer.write(piece)
            await asyncio.sleep(0)

    pool, endpoint = make_pool(Timeouts(0.5, 0.5, 0.5)), await start_engine(script)
    try:
        async with asyncio.timeout(1), pool.request(endpoint, "GET", "/") as response:
            await response.read()
            assert 200 <= response.status < 1000
    except UpstreamError:
        pass
    await pool.close()
    assert pool.open_connections(endpoint) == 0


@PURE
@given(chunked_bodies(), st.binary(max_size=10), sizes)
def test_chunks_are_read_alike_however_they_are_split(coded, rest, lengths):
    body, raw = coded
    reader = ChunkedBody(LIMITS)
    for piece in cut(raw, lengths)[:-1]:
        assert reader.feed(piece) is None
    assert reader.feed(cut(raw, lengths)[-1] + rest) == rest
    assert reader.take() == body
    assert reader.received == len(body)


@PURE
@given(st.binary(min_size=1, max_size=100), st.binary(max_size=10), sizes)
def test_a_counted_body_ends_at_its_length(body, rest, lengths):
    reader = LengthBody(len(body))
    for piece in cut(body, lengths)[:-1]:
        assert reader.feed(piece) is None
    assert reader.feed(cut(body, lengths)[-1] + rest) == rest
    assert reader.take() == body


@PURE
@given(noise)
def test_a_chunked_body_of_noise_is_refused_or_read_within_the_limit(data):
    reader = ChunkedBody(LIMITS)
    status = refusal_of(reader.feed, data)
    assert status in {None, 400, 413}
    assert reader.received <= LIMITS.max_body


@PURE
@given(noise)
def test_a_head_of_noise_is_refused_or_has_one_host_and_one_length(data):
    raw = data + b"\r\n\r\n"
    raw = raw[: raw.index(b"\r\n\r\n") + 4]
    status = refusal_of(parse_head, raw, LIMITS)
    assert status is None or 400 <= status <= 505
    names = [] if status else [name for name, _ in parse_head(raw, LIMITS).headers]
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    assert names.count(b"host") <= 1


@PURE
@given(requests(), st.data())
def test_no_part_of_a_valid_head_is_refused_early(request_and_seen, data):
    raw, _ = request_and_seen
    head = raw[: raw.index(b"\r\n\r\n") + 3]
    end = data.draw(st.integers(0, len(head)))
    check_partial(head[:end], data.draw(st.integers(0, max(end - 3, 0))), LIMITS)


@pytest.mark.parametrize("wrong", [b"X: a\n", b"X: a\rb", b"GET /\r\n"])
def test_what_no_byte_can_mend_is_refused_early(wrong):
    raw = wrong if wrong.startswith(b"GET") else b"GET / HTTP/1.1\r\n" + wrong
    with pytest.raises(Refusal):
        check_partial(raw, 0, LIMITS)
