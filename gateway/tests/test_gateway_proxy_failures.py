"""An application that fails, lies about its length or misuses its responder never misleads a client."""

import asyncio

import pytest
from gateway_proxy_requests import GET


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


async def test_an_abort_stops_whatever_works_for_the_response(start_server, connect):
    told = []

    async def app(request, responder):
        responder.disconnected.on_disconnect(lambda: told.append(responder.disconnected.is_set()))
        responder.abort()

    client = await connect(await start_server(app))
    await client.send(GET)
    assert await client.rest() == b""
    assert told == [False]
