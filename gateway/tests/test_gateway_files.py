"""A process that was started with room for few files takes all it may have, and clients never get all of that."""

import asyncio
import resource
import socket

import pytest
from gateway_fixtures import ask, chat, make_world  # noqa: F401
from sheaf_gateway import files
from sheaf_gateway.proxy import Timeouts, UpstreamError
from sheaf_gateway.proxy.errors import Saturated


@pytest.fixture
def little_room():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_limit_is_raised_to_what_the_system_allows(little_room):
    assert files.raise_limit() >= little_room
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == little_room


@pytest.mark.parametrize(("allowed", "wanted", "found"), [(1024, 16_384, 768), (20_000, 10_000, 10_000), (1, 5, 1)])
def test_a_quarter_of_the_files_is_not_for_clients(allowed, wanted, found):
    assert files.for_clients(allowed, wanted) == found


async def test_an_engine_is_not_to_blame_for_a_lack_of_files(start_engine, make_pool):
    async def never(reader, writer):
        await reader.read()

    endpoint = await start_engine(never)
    pool = make_pool(Timeouts(0.5, 0.5, 0.5))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [socket.socket()]
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[0].fileno() + 1, hard))
    try:
        with pytest.raises(UpstreamError) as failed:
            async with asyncio.timeout(1), pool.request(endpoint, "GET", "/"):
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        held[0].close()
    assert isinstance(failed.value, Saturated)
    await pool.close()


async def test_a_gateway_says_where_it_takes_fewer_connections_than_it_was_told(make_world, ask, logged):  # noqa: F811
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    world = await make_world(pods={"base": 1}, limits={"maxConnections": hard + 1})
    assert [line["wanted"] for line in logged if line["event"] == "fewer_connections"] == [hard + 1]
    assert (await ask(world, "POST", "/v1/chat/completions", chat()))[0] == 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
