"""Following every pod's agent: one long poll for each, with back-off, bounded in number.

The pollers follow the store: a pod that appears gets one, one that goes or comes back as another loses its own.
"""

import asyncio
import random

import structlog

from sheaf_gateway.fleet import metrics
from sheaf_gateway.fleet.agents import AgentClient, AgentError
from sheaf_gateway.fleet.store import FleetStore, poll_key
from sheaf_gateway.fleet.view import Fleet

log = structlog.get_logger(__name__)

PollKey = tuple[str, str, str]

MAX_POLLERS = 4_096
_FIRST_BACKOFF_S = 0.2
_MAX_BACKOFF_S = 5.0
_MIN_INTERVAL_S = 0.02


class Residency:
    """Keeps the store's reports up to date until stopped."""

    def __init__(self, store: FleetStore, agents: AgentClient, *, seed: int = 0) -> None:
        self._store = store
        self._agents = agents
        self._random = random.Random(seed)  # noqa: S311
        self._pollers: dict[PollKey, asyncio.Task[None]] = {}
        store.listen(self._follow)

    async def stop(self) -> None:
        """End every poll."""
        tasks = tuple(self._pollers.values())
        self._pollers.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _follow(self, _fleet: Fleet) -> None:
        snapshot = self._store.snapshot
        if snapshot is None:
            return
        wanted = [poll_key(pod) for pod in snapshot.pods if pod.agent_url][:MAX_POLLERS]
        for key in self._pollers.keys() - set(wanted):
            self._pollers.pop(key).cancel()
        for key in wanted:
            if key not in self._pollers:
                self._pollers[key] = asyncio.create_task(self._poll(key))

    async def _poll(self, key: PollKey) -> None:
        name, _uid, url = key
        after: int | None = None
        failures = 0
        while True:
            try:
                state = await self._agents.state(url, after)
            except AgentError as error:
                self._note(name, error, failures)
                after, failures = None, failures + 1
                await asyncio.sleep(self._backoff(failures))
                continue
            if key in self._pollers:
                self._store.apply_state(name, state)
            after, failures = state.version, 0
            await asyncio.sleep(_MIN_INTERVAL_S)

    def _note(self, pod: str, error: AgentError, failures: int) -> None:
        metrics.AGENT_ERRORS.labels("state").inc()
        if failures == 0:
            log.warning("agent_unreachable", pod=pod, reason=str(error), code=error.code, status=error.status)

    def _backoff(self, failures: int) -> float:
        longest = min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 16))
        return longest * (0.5 + 0.5 * self._random.random())
