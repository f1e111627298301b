"""kopf watches the declared objects, the pods and the nodes, and says what it sees; it writes nothing.

Only event handlers are used: no handler state is kept in annotations, there are no finalizers, and kopf's own peering,
event posting and scanning for new kinds are off. kopf tells of no object that vanished while a watch was interrupted;
the lists of `sweep` find those, and are asked for whenever a watch may have missed something.

kopf runs in a thread with a loop of its own: there it takes no signals, keeps no write waiting while it takes in a
large list, and can be started again after a failure without leaving anything behind.
"""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import kopf
import structlog

from sheaf_operator.cluster.kubernetes.access import Configuration, connection_info
from sheaf_operator.cluster.kubernetes.client import CONNECT_TIMEOUT, PAGE
from sheaf_operator.cluster.kubernetes.resources import WATCHED, Raw, Resource
from sheaf_operator.cluster.kubernetes.storage import NoDiff, NoProgress

ENDING = 3.0
PATIENCE = (0.5, 1.0, 2.0, 4.0, 5.0)

_log = structlog.get_logger("sheaf.operator.watch")

Sink = Callable[[str | None, Resource, Raw], None]


class Patiently:
    """Pauses between attempts to reach an API server that is away: growing to five seconds, for ever."""

    def __iter__(self) -> Iterator[float]:
        yield from PATIENCE
        while True:
            yield PATIENCE[-1]


def settings(*resources: Resource) -> kopf.OperatorSettings:
    """kopf, as a watcher only."""
    made = kopf.OperatorSettings()
    made.posting.enabled = False
    made.scanning.disabled = True
    made.peering.standalone = True
    made.process.ultimate_exiting_timeout = None
    made.networking.connect_timeout = CONNECT_TIMEOUT
    made.networking.request_timeout = 60.0
    made.networking.error_backoffs = Patiently()
    made.watching.connect_timeout = CONNECT_TIMEOUT
    made.watching.chunk_size = PAGE
    made.watching.reconnect_backoff = 0.5
    made.queueing.idle_timeout = 1.0
    made.queueing.exit_timeout = 0.5
    made.persistence.diffbase_storage = NoDiff()
    made.persistence.progress_storage = NoProgress()
    for resource in resources:
        if resource.selector:
            made.watching.label_selectors[resource.group, resource.version, resource.plural] = resource.selector
    return made


def registry(configuration: Configuration, sink: Sink) -> kopf.OperatorRegistry:
    """Handlers that hand every event on to the sink: its type (None: listed), its resource and the object."""
    made = kopf.OperatorRegistry()

    @kopf.on.login(registry=made)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await connection_info(configuration)

    for resource in WATCHED:
        _listen(made, resource, sink)
    return made


def _listen(made: kopf.OperatorRegistry, resource: Resource, sink: Sink) -> None:
    @kopf.on.event(resource.group, resource.version, resource.plural, registry=made)
    async def seen(event: Any, **_: Any) -> None:
        sink(event["type"], resource, event["object"])


async def watch(configuration: Configuration, namespace: str, sink: Sink) -> None:
    """Watch until cancelled, or until kopf gives up; then the error says why. The sink is called in this loop."""
    loop = asyncio.get_running_loop()

    def hand_over(*event: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may end before the thread
            loop.call_soon_threadsafe(sink, *event)

    thread = _Thread(configuration, namespace, hand_over)
    ended = asyncio.ensure_future(asyncio.wrap_future(thread.ended))
    thread.start()
    try:
        await asyncio.shield(ended)
    finally:
        thread.stop()
        _, late = await asyncio.wait({ended}, timeout=ENDING)
        if late:
            _log.warning("kopf does not end in time")


class _Thread(threading.Thread):
    """kopf in a loop of its own: it cancels every task of its loop as it ends, and leaves some behind as it fails."""

    def __init__(self, configuration: Configuration, namespace: str, sink: Sink) -> None:
        super().__init__(name="kopf", daemon=True)
        self._registry, self._namespace = registry(configuration, sink), namespace
        self.ended: Future[None] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._operate())
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is awaited
            self._end(error)
        else:
            self._end(None)

    def stop(self) -> None:
        """Begin to end; may be called from another thread."""
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)

    async def _operate(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await kopf.operator(
            registry=self._registry,
            settings=settings(*WATCHED),
            standalone=True,
            namespaces=[self._namespace],
            stop_flag=self._stop,
        )

    def _end(self, error: BaseException | None) -> None:
        if self.ended.cancelled():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)


def take_signals(on_signal: Callable[[], None]) -> None:
    """Let SIGINT and SIGTERM call this."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
