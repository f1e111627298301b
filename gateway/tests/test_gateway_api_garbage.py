"""A finished request is gone at once: its body does not wait for the cycle collector."""

import gc

import pytest
from gateway_fixtures import ask, chat, make_world  # noqa: F401
from sheaf_gateway.api.asking import Asked
from sheaf_gateway.api.call import Call
from sheaf_gateway.api.continuing import Continuing

CHAT = "/v1/chat/completions"


def held():
    return [found for found in gc.get_objects() if type(found) in {Call, Asked, Continuing}]


@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_of_a_finished_request_waits_for_the_collector(make_world, ask, stream):  # noqa: F811
    world = await make_world()
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            status, _, _ = await ask(world, "POST", CHAT, chat(stream=stream))
            assert status == 200
        assert held() == []
    finally:
        gc.enable()


async def test_a_refused_request_leaves_nothing_either(make_world, ask):  # noqa: F811
    world = await make_world(pods={})
    gc.collect()
    gc.disable()
    try:
        status, _, _ = await ask(world, "POST", CHAT, chat("nobody"))
        assert status == 404
        assert held() == []
    finally:
        gc.enable()
