"""Trailers of an engine are dropped, and bounded like its head."""

import pytest
from gateway_proxy_engines import CHUNKED, Ear, answering, send
from sheaf_gateway.proxy import BadResponse, PoolLimits


async def test_a_trailer_never_becomes_a_header(start_engine, make_pool):
    endpoint = await start_engine(answering(CHUNKED + b"2\r\nok\r\n0\r\nSet-Cookie: a=b\r\n\r\n"))
    pool, heads = make_pool(), []

    class Whole(Ear):
        def on_whole(self, head, body):
            heads.append(head.headers)
            self.heard += [head.status, body]
            self.over.set()

    ear = Whole()
    send(pool, endpoint, ear)
    await ear.over.wait()
    assert ear.heard == [200, b"ok"]
    assert heads == [[(b"transfer-encoding", b"chunked")]]


@pytest.mark.parametrize("parts", [1, 4])
async def test_endless_trailers_are_broken_off(start_engine, make_pool, parts):
    more = [b"X-More: " + b"x" * 3_000 + b"\r\n"] * 8
    size = len(more) // parts
    pieces = [b"".join(more[start : start + size]) for start in range(0, len(more), size)]
    endpoint = await start_engine(answering([CHUNKED + b"2\r\nok\r\n0\r\n", *pieces]))
    pool, ear = make_pool(limits=PoolLimits(max_head=8_192, tick_s=0.01)), Ear()
    send(pool, endpoint, ear)
    await ear.over.wait()
    assert ear.heard[:2] == [200, b"ok"]
    assert isinstance(ear.heard[2], BadResponse)
