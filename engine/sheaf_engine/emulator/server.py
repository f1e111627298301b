"""One emulator process: sockets, the engine loop, signals."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog
import uvicorn

from sheaf_engine.emulator.app import App
from sheaf_engine.emulator.core import EngineCore
from sheaf_engine.emulator.errors import ApiError
from sheaf_engine.emulator.events import Publisher
from sheaf_engine.emulator.metrics import Metrics
from sheaf_engine.emulator.options import OptionError, Options
from sheaf_engine.emulator.service import Service
from sheaf_engine.emulator.tokenizer import load_tokenizer

_log = structlog.get_logger(__name__)
_BACKLOG = 2048


class _Uvicorn(uvicorn.Server):
    """Uvicorn without its signal handling, which would end the process by the signal instead of with status 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def build(options: Options) -> tuple[Service, Publisher | None]:
    """The service that `options` describe; needs a running event loop.

    Raises:
        OptionError: when an endpoint, a tokenizer or an adapter cannot be used.
    """
    try:
        tokenizer = load_tokenizer(options.tokenizer)
        publisher = Publisher(options.events) if options.events.publishes else None
    except ValueError as error:
        raise OptionError(str(error)) from error
    metrics = Metrics(options.served_names[0], options.profile, lora=options.lora)
    core = EngineCore(options.profile, options.speed, metrics, publisher)
    return Service(options, tokenizer, core), publisher


def listen(options: Options) -> socket.socket:
    """The listening socket.

    Raises:
        OptionError: when the address is in use or cannot be had.
    """
    try:
        return _listen_unix(options.uds) if options.uds else _listen_tcp(options.host, options.port)
    except OSError as error:
        place = options.uds or f"{options.host}:{options.port}"
        raise OptionError(f"cannot listen on {place}: {error.strerror or error}; choose another") from error


async def serve(options: Options, listener: socket.socket, stop: asyncio.Event) -> None:
    """Serve until `stop` is set.

    Raises:
        OptionError: when an adapter or an endpoint named on the command line cannot be used.
    """
    if await _stopped_within(options.startup_delay_s, stop):
        listener.close()
        return
    service, publisher = build(options)
    try:
        await _load_static_adapters(service)
        await _run(_Uvicorn(_config(App(service), options.grace_s)), listener, service, publisher, stop)
    finally:
        if publisher is not None:
            publisher.close()


async def _stopped_within(seconds: float, stop: asyncio.Event) -> bool:
    if not seconds:
        return False
    _log.info("emulator starts slowly", seconds=seconds)
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
    return stop.is_set()


async def serve_until_signal(options: Options, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        OptionError: as :func:`serve`.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await serve(options, listener, stop)


async def _run(
    server: _Uvicorn,
    listener: socket.socket,
    service: Service,
    publisher: Publisher | None,
    stop: asyncio.Event,
) -> None:
    background = [asyncio.create_task(service.core.run())]
    if publisher is not None:
        background.append(asyncio.create_task(publisher.serve_replay()))
    for task in background:
        task.add_done_callback(lambda done: _stop_on_failure(done, stop))
    background.append(asyncio.create_task(_exit_after(stop, server)))
    _log.info("emulator listens", address=_address(listener), profile=service.options.profile.name)
    try:
        await server.serve(sockets=[listener])
    finally:
        await _end(background)


async def _exit_after(stop: asyncio.Event, server: _Uvicorn) -> None:
    await stop.wait()
    server.should_exit = True


async def _end(background: list[asyncio.Task[None]]) -> None:
    for task in background:
        task.cancel()
    results = await asyncio.gather(*background, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


def _stop_on_failure(task: asyncio.Task[None], stop: asyncio.Event) -> None:
    if not task.cancelled() and task.exception() is not None:
        stop.set()


async def _load_static_adapters(service: Service) -> None:
    for name, path in service.options.lora_modules:
        try:
            await service.load(name, path, in_place=False)
        except ApiError as error:
            raise OptionError(f"--lora-modules {name}: {error}") from error


def _config(app: App, grace_s: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        loop="uvloop",
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        log_level="critical",
        backlog=_BACKLOG,
        timeout_graceful_shutdown=grace_s,
        timeout_keep_alive=75,
    )


def _listen_tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _listen_unix(path: str) -> socket.socket:
    with suppress(FileNotFoundError):
        if Path(path).is_socket():
            Path(path).unlink()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
    except OSError:
        listener.close()
        raise
    return listener


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return name if isinstance(name, str) else f"http://{name[0]}:{name[1]}"
