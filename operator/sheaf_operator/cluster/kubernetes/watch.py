"""kopf watches the declared objects, the pods and the nodes, and says what it sees; it writes nothing.

Only event handlers are used: no handler state is kept in annotations, there are no finalizers, and kopf's own peering,
event posting and scanning for new kinds are off. kopf tells of no object that vanished while a watch was interrupted;
the lists of `sweep` find those, and are asked for whenever a watch may have missed something.
"""

import asyncio
import signal
from collections.abc import Callable, Iterator
from typing import Any

import kopf
import structlog

from sheaf_operator.cluster.kubernetes.access import Configuration, connection_info
from sheaf_operator.cluster.kubernetes.client import CONNECT_TIMEOUT, PAGE
from sheaf_operator.cluster.kubernetes.resources import WATCHED, Raw, Resource
from sheaf_operator.cluster.kubernetes.storage import NoDiff, NoProgress

ENDING = 2.0
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


async def watch(configuration: Configuration, namespace: str, sink: Sink, on_signal: Callable[[], None]) -> None:
    """Watch until cancelled, or until kopf gives up; then the error says why.

    kopf puts its own signal handlers in place as it starts; `on_signal` is put back in their place.
    """
    tasks = await kopf.spawn_tasks(
        registry=registry(configuration, sink), settings=settings(*WATCHED), standalone=True, namespaces=[namespace]
    )
    take_signals(on_signal)
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await _end(tasks)


async def _end(tasks: Any) -> None:
    for _ in range(2):
        for task in tasks:
            task.cancel()
        _, late = await asyncio.wait(tasks, timeout=ENDING)
        if not late:
            return
    _log.warning("kopf does not end", tasks=len(late))


def take_signals(on_signal: Callable[[], None]) -> None:
    """Let SIGINT and SIGTERM call this."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
