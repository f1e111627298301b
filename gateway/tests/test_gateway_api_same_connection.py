"""What is kept of a head for the next request of its connection never outlives the keys and the fleet it is of."""

import asyncio
import hashlib
import json

import pytest
from gateway_fixtures import adapter, chat, make_world  # noqa: F401
from sheaf_gateway.api.keys import read_keys


def keys(*entries: tuple[str, dict]) -> bytes:
    found = [
        {"name": name, "tenant": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), **more}
        for name, more in entries
    ]
    return json.dumps({"keys": found}).encode()


@pytest.fixture
async def world(make_world):  # noqa: F811
    return await make_world(pods={"base": 1}, adapters=[adapter("pirate", "base")], keys=keys(("ci", {})).decode())


@pytest.fixture
async def client(world):
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)

    async def ask(key: str = "ci", body: dict | None = None) -> tuple[int, dict[str, str], dict]:
        data = json.dumps(body or chat()).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b" % (key.encode(), len(data), data)
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), headers, json.loads(await reader.readexactly(int(headers["content-length"])))

    yield ask
    writer.close()
    await writer.wait_closed()


async def test_a_key_that_is_taken_back_is_refused_on_the_connection_that_used_it(world, client):
    assert [(await client())[0] for _ in range(2)] == [200, 200]
    world.gateway.inference.keys = read_keys(keys(("other", {})))
    status, _, body = await client()
    assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    assert (await client("other"))[0] == 200
    assert (await client("ci"))[0] == 401


async def test_a_key_that_may_less_now_may_less_on_its_connection(world, client):
    assert (await client())[0] == 200
    world.gateway.inference.keys = read_keys(keys(("ci", {"models": ["pirate"]})))
    assert [(await client())[0] for _ in range(2)] == [404, 404]
    world.gateway.inference.keys = read_keys(keys(("ci", {"scopes": ["admin"]})))
    assert [(await client())[0] for _ in range(2)] == [403, 403]
    world.gateway.inference.keys = read_keys(keys(("ci", {})))
    assert (await client())[0] == 200


async def test_each_request_of_a_connection_goes_by_its_own_name(world, client):
    served = []
    for name in ("base", "pirate", "base", "nobody", "pirate"):
        status, headers, _ = await client(body=chat(name))
        served.append((status, headers.get("x-sheaf-pod")))
    assert served == [(200, "base-0"), (200, "base-0"), (200, "base-0"), (404, None), (200, "base-0")]
    assert [seen.json["model"] for seen in world.engines[0].seen if seen.path.endswith("completions")] == [
        "base",
        "pirate",
        "base",
        "pirate",
    ]


async def test_a_name_that_is_gone_is_unknown_on_the_connection_that_used_it(world, client):
    assert [(await client(body=chat("pirate")))[0] for _ in range(2)] == [200, 200]
    world.snapshot["adapters"] = []
    world.write()
    await world.settled()
    assert (await client(body=chat("pirate")))[0] == 404


async def test_a_limit_that_is_declared_now_holds_on_a_connection_of_before(world, client):
    assert (await client())[0] == 200
    world.gateway.inference.keys = read_keys(keys(("ci", {"limits": {"requestsPerMinute": 1}})))
    assert [(await client())[0] for _ in range(2)] == [200, 429]
