"""Loading an adapter because a request came for it: one call for each pod and adapter at a time, bounded in
number and time."""

import asyncio

import structlog

from sheaf_gateway.fleet import metrics
from sheaf_gateway.fleet.agents import AgentClient, AgentError
from sheaf_gateway.fleet.store import FleetStore
from sheaf_gateway.fleet.view import Pod

log = structlog.get_logger(__name__)


class AdapterLoader:
    """Has adapters loaded; requests for the same one on the same pod wait for the same load."""

    def __init__(
        self, store: FleetStore, agents: AgentClient, *, timeout_s: float = 120.0, max_loads: int = 64
    ) -> None:
        self._store = store
        self._agents = agents
        self._timeout_s = timeout_s
        self._max_loads = max_loads
        self._loads: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def load(self, pod: Pod, adapter: str) -> None:
        """Return when the adapter is resident on the pod. Giving up the wait does not stop the load.

        Raises:
            AgentError: It could not be loaded, or too many loads are under way.
        """
        key = (pod.name, adapter)
        task = self._loads.get(key)
        if task is None:
            if len(self._loads) >= self._max_loads:
                raise AgentError(0, "too_many_loads", f"{self._max_loads} adapters are being loaded; try again shortly")
            task = self._loads[key] = asyncio.create_task(self._run(pod, adapter))
            task.add_done_callback(lambda done: self._done(key, done))
        await asyncio.shield(task)

    async def stop(self) -> None:
        """Give up every load under way."""
        tasks = tuple(self._loads.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, pod: Pod, adapter: str) -> None:
        try:
            state = await self._agents.load(pod.agent_url, adapter, self._timeout_s)
        except AgentError as error:
            metrics.ADAPTER_LOADS.labels("failed").inc()
            log.warning("adapter_load_failed", pod=pod.name, adapter=adapter, code=error.code, reason=str(error))
            raise
        metrics.ADAPTER_LOADS.labels("loaded").inc()
        self._store.note_resident(pod.name, adapter, state.digest)

    def _done(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        self._loads.pop(key, None)
        if not task.cancelled():
            task.exception()
