"""A FastAPI application behind the proxy's server behaves as behind any other."""

import asyncio

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from sheaf_gateway.proxy import AsgiBridge

GET = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def app():
    app = FastAPI()

    @app.get("/items/{name}")
    async def item(name: str, request: Request, q: str = ""):
        return {"name": name, "q": q, "host": request.headers["host"], "client": request.client.host}

    @app.post("/echo")
    async def echo(request: Request):
        return {"size": len(await request.body())}

    @app.get("/stream")
    async def stream():
        async def pieces():
            for n in range(3):
                yield f"data: {n}\n\n"

        return StreamingResponse(pieces(), media_type="text/event-stream")

    @app.get("/boom")
    async def boom():
        raise KeyError("secret")

    return app


async def test_a_route_is_answered(app, start_server, connect):
    client = await connect(await start_server(AsgiBridge(app)))
    await client.send(GET % b"items/a%20b?q=1")
    reply = await client.reply()
    assert reply.body == b'{"name":"a b","q":"1","host":"a","client":"127.0.0.1"}'
    assert reply.headers["content-type"] == "application/json"


async def test_a_body_arrives(app, start_server, connect):
    client = await connect(await start_server(AsgiBridge(app)))
    await client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
    assert (await client.reply()).body == b'{"size":5}'


async def test_a_stream_is_chunked(app, start_server, connect):
    client = await connect(await start_server(AsgiBridge(app)))
    await client.send(GET % b"stream")
    reply = await client.reply()
    assert reply.headers["transfer-encoding"] == "chunked"
    assert reply.body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


async def test_an_unknown_route_and_an_exception_have_their_status(app, start_server, connect):
    client = await connect(await start_server(AsgiBridge(app)))
    await client.send(GET % b"none")
    assert (await client.reply()).status == 404
    await client.send(GET % b"boom")
    reply = await client.reply()
    assert (reply.status, b"secret" in reply.body) == (500, False)


async def test_an_application_hears_of_a_client_that_leaves(start_server, connect):
    heard = asyncio.Event()

    async def app(scope, receive, send):
        assert (await receive())["type"] == "http.request"
        listening = asyncio.ensure_future(receive())
        try:
            await asyncio.sleep(10)
        finally:
            assert (await listening)["type"] == "http.disconnect"
            with pytest.raises(ConnectionError):
                await send({"type": "http.response.start", "status": 200, "headers": []})
            heard.set()

    client = await connect(await start_server(AsgiBridge(app)))
    await client.send(GET % b"")
    await asyncio.sleep(0.02)
    await client.close()
    await asyncio.wait_for(heard.wait(), 0.5)


async def test_receive_returns_after_a_complete_response(start_server, connect):
    done = asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Length", b"2")]})
        await send({"type": "http.response.trailers"})
        await send({"type": "http.response.body", "body": b"o", "more_body": True})
        await send({"type": "http.response.body", "body": b"k"})
        assert (await receive())["type"] == "http.disconnect"
        done.set()

    client = await connect(await start_server(AsgiBridge(app)))
    await client.send(GET % b"")
    reply = await client.reply()
    assert (reply.body, reply.headers) == (b"ok", {"content-length": "2"})
    await asyncio.wait_for(done.wait(), 0.5)


async def test_the_lifespan_runs_around_the_block_and_its_state_reaches_requests(start_server, connect):
    events = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            scope["state"]["answer"] = b"42"
            await send({"type": "lifespan.startup.complete"})
            events.append("up")
            assert (await receive())["type"] == "lifespan.shutdown"
            events.append("down")
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["state"]["answer"]})

    bridge = AsgiBridge(app)
    async with bridge.lifespan():
        client = await connect(await start_server(bridge))
        await client.send(GET % b"")
        assert (await client.reply()).body == b"42"
    assert events == ["up", "down"]


async def test_an_application_without_lifespan_is_left_alone():
    async def app(scope, receive, send):
        raise ValueError("http only")

    async with AsgiBridge(app).lifespan():
        pass


async def test_a_start_up_that_fails_is_an_error():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no disk"})

    with pytest.raises(RuntimeError, match="startup failed: no disk"):
        async with AsgiBridge(app).lifespan():
            pass
