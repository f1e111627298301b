"""Keeps up with the agents of all pods: one long-poll each, paced so that thousands of busy pods cost little.

An agent that cannot be reached for `UNREACHABLE_AFTER` seconds counts as unknown until it answers again. A changed load
alone is not waited for: between two answers of one pod lies a pause that grows with the number of pods.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge
from sheaf_crds.agent_api import AgentState

from sheaf_operator.cluster.agent_calls import AgentCalls, AgentError

WAIT = 25.0
UNREACHABLE_AFTER = 15.0
FIRST_DELAY = 0.25
LONGEST_DELAY = 10.0
PAUSE = 0.2
PAUSE_PER_POD = 0.001
FIRST_CALLS_AT_ONCE = 64

_log = structlog.get_logger("sheaf.operator.agents")

Heard = Callable[[str, str, AgentState | None], None]


@dataclass(eq=False)
class Followed:
    """One pod whose agent is asked."""

    uid: str
    name: str
    address: str
    task: "asyncio.Task[None] | None" = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    failing_since: float | None = None


class AgentPool:
    """The agents of the pods that have an address. `heard` is told every answer (pod UID, name, state or None)."""

    def __init__(self, calls: AgentCalls, heard: Heard, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self._calls, self._heard = calls, heard
        self._pods: dict[str, Followed] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._failing: set[str] = set()
        self._gate = asyncio.Semaphore(FIRST_CALLS_AT_ONCE)
        self._polls = Counter("sheaf_operator_agent_polls", "Questions to agents.", ["result"], registry=registry)
        self._followed = Gauge("sheaf_operator_agents", "Agents that are asked.", registry=registry)
        self._silent = Gauge("sheaf_operator_agents_unreachable", "Agents that do not answer.", registry=registry)

    def follow(self, uid: str, name: str, address: str) -> None:
        """Ask the agent of that pod from now on, at that address; an empty one ends it."""
        known = self._pods.get(uid)
        if known is not None and known.address == address:
            return
        if known is not None:
            self._leave(known)
        if address:
            pod = self._pods[uid] = Followed(uid, name, address)
            pod.task = asyncio.create_task(self._follow(pod), name=f"agent of {name}")
        self._followed.set(len(self._pods))

    async def all_asked(self, timeout: float) -> None:  # noqa: ASYNC109 - a bound, not a cancellation
        """Return when every agent followed now has answered or failed once, or after so many seconds."""
        waits = [asyncio.create_task(pod.asked.wait()) for pod in self._pods.values()]
        if waits:
            _, late = await asyncio.wait(waits, timeout=timeout)
            for task in late:
                task.cancel()

    async def close(self) -> None:
        """Ask nobody any more."""
        for pod in list(self._pods.values()):
            self._leave(pod)
        if self._ending:
            await asyncio.wait(self._ending)

    def _leave(self, pod: Followed) -> None:
        del self._pods[pod.uid]
        self._failing.discard(pod.uid)
        self._was_asked(pod)
        if pod.task is not None:
            self._ending.add(pod.task)
            pod.task.add_done_callback(self._ending.discard)
            pod.task.cancel()

    async def _follow(self, pod: Followed) -> None:
        delay, state = FIRST_DELAY, None
        while True:
            try:
                state = await self._ask(pod, state)
            except AgentError as error:
                self._failed(pod, error)
                state = None
                await asyncio.sleep(delay * _spread(0.5))
                delay = min(LONGEST_DELAY, 2 * delay)
            else:
                delay = FIRST_DELAY
                await asyncio.sleep(PAUSE + PAUSE_PER_POD * len(self._pods))

    async def _ask(self, pod: Followed, before: AgentState | None) -> AgentState:
        if before is None:
            async with self._gate:
                state = await self._calls.state(pod.address, 0, 0.0)
        else:
            state = await self._calls.state(pod.address, before.version, WAIT * _spread(0.8))
        self._polls.labels("answered").inc()
        pod.failing_since = None
        self._failing.discard(pod.uid)
        if state != before:
            self._heard(pod.uid, pod.name, state)
        self._was_asked(pod)
        return state

    def _failed(self, pod: Followed, error: AgentError) -> None:
        self._polls.labels("failed").inc()
        now = asyncio.get_running_loop().time()
        if pod.failing_since is None:
            pod.failing_since = now
            self._failing.add(pod.uid)
            _log.debug("agent does not answer", pod=pod.name, error=str(error))
        elif now - pod.failing_since >= UNREACHABLE_AFTER:
            self._heard(pod.uid, pod.name, None)
        self._was_asked(pod)

    def _was_asked(self, pod: Followed) -> None:
        pod.asked.set()
        self._silent.set(len(self._failing))


def _spread(least: float) -> float:
    """A factor up to 1, so that not all ask at once."""
    return random.uniform(least, 1.0)  # noqa: S311 - nothing secret hangs on it
