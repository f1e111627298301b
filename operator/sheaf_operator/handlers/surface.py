"""What the process shows over HTTP: /metrics, /healthz (the loop lives), /readyz (a whole view; may lead)."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

LARGEST_REQUEST = 1024


class ListenError(Exception):
    """The address cannot be listened on."""


def application(registry: CollectorRegistry, unready: Callable[[], str]) -> web.Application:
    """The three pages; asked within the loop that does the work, so an answer shows that it lives.

    Args:
        registry: what /metrics shows.
        unready: why it is of no use yet, empty where it is.
    """

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        why = unready()
        return web.Response(text=f"{why}\n", status=503) if why else web.Response(text="ok\n")

    app = web.Application(client_max_size=LARGEST_REQUEST)
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    return app


@asynccontextmanager
async def serving(app: web.Application, host: str | None, port: int) -> AsyncIterator[int]:
    """Serve while inside; yields the port."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ListenError(
                f"cannot listen on {host or ''}:{port}: {error.strerror}; choose another `listen`"
            ) from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
