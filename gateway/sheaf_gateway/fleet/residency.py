"""Following every pod's agent: one long poll for each, with back-off, bounded in number and rate.

The pollers follow the store: a pod that appears gets one, one that goes or comes back as another loses its own. The
more pods there are, and the dearer a report is to read, the longer a poller rests between two of them, so that agents
cost a bounded share of the processor. Waits are drawn at random, so that several gateways do not ask in step. An agent
that does not answer makes its pod suspect. So does a node that has become silent, until the pod's agent has answered
anew: nodes fall silent together when the API server comes back, and their pods serve on.

Several workers of one machine may share the work (`Sharing`): each asks every agent once, then only those that are its
own, and hears of the others. Whoever hears nothing of an agent for `OTHERS_SILENT_S` asks it again by itself.
"""

import asyncio
import random
from typing import Protocol

import structlog
from sheaf_crds.agent_api import AgentState

from sheaf_gateway.fleet import metrics
from sheaf_gateway.fleet.agents import POLL_WAIT_S, AgentClient, AgentError
from sheaf_gateway.fleet.store import Change, FleetStore, poll_key

log = structlog.get_logger(__name__)

PollKey = tuple[str, str, str]

MAX_POLLERS = 16_384
MAX_FIRST_POLLS = 256
MAX_POLLS_PER_S = 1_000.0
_FIRST_BACKOFF_S = 0.2
_MAX_BACKOFF_S = 5.0
_MIN_INTERVAL_S = 0.02
_UNHEARD_WAIT_S = 3.0
_NOT_CONNECTED = frozenset({"connect_failed", "connect_timeout"})
_SUSPECT_AFTER = 2
_READING_SHARE = 0.05


OTHERS_SILENT_S = 45.0
_OTHERS_LOOK_S = 2.0


class Sharing(Protocol):
    """How workers divide the agents."""

    def mine(self, pod: str) -> bool:
        """Whether this worker asks the pod's agent for all."""

    def learnt(self, key: PollKey, state: AgentState | None) -> None:
        """Tell the others what an agent said, or (None) that it does not answer."""


class Residency:
    """Keeps the store's reports up to date until stopped."""

    def __init__(
        self, store: FleetStore, agents: AgentClient, *, seed: int = 0, max_pollers: int = MAX_POLLERS
    ) -> None:
        self._store = store
        self._agents = agents
        self._random = random.Random(seed)  # noqa: S311
        self._max_pollers = max_pollers
        self._pollers: dict[PollKey, asyncio.Task[None]] = {}
        self._keys: dict[str, PollKey] = {}
        self._left_out: dict[str, None] = {}
        self._resting: set[PollKey] = set()
        self._first_polls = asyncio.Semaphore(MAX_FIRST_POLLS)
        self._unheard: set[PollKey] = set()
        self._all_heard = asyncio.Event()
        self._all_heard.set()
        self.sharing: Sharing | None = None
        self._heard_at: dict[PollKey, float] = {}
        store.watch(self._follow)

    async def first_round(self, timeout_s: float) -> None:
        """Wait until every agent has answered or failed to once, at most `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_heard.wait()
        except TimeoutError:
            log.info("agents_silent", pods=len(self._unheard), waited_s=timeout_s)

    def hear(self, key: PollKey, state: AgentState | None) -> None:
        """Another worker asked for us: what the agent said, or (None) that it does not answer."""
        if key not in self._pollers:
            return
        self._heard_at[key] = asyncio.get_running_loop().time()
        if state is None:
            self._store.suspect((key[0],))
        else:
            self._store.apply_state(key[0], state)

    async def stop(self) -> None:
        """End every poll."""
        tasks = tuple(self._pollers.values())
        self._pollers.clear()
        self._keys.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _follow(self, change: Change) -> None:
        for kind, name in change.keys:
            if kind == "pods":
                self._adjust(name)
        while self._left_out and len(self._pollers) < self._max_pollers:
            self._adjust(self._left_out.popitem()[0])
        metrics.AGENTS_LEFT_OUT.set(len(self._left_out))

    def _adjust(self, name: str) -> None:
        pod = self._store.declared.pods.get(name)
        wanted = poll_key(pod) if pod is not None and pod.agent_url else None
        if wanted is not None and self._keys.get(name) == wanted and not self._hurry(wanted):
            return
        self._left_out.pop(name, None)
        self._end(name)
        if wanted is None:
            return
        if len(self._pollers) >= self._max_pollers:
            self._left_out[name] = None
            return
        self._unheard.add(wanted)
        self._all_heard.clear()
        self._keys[name] = wanted
        self._pollers[wanted] = asyncio.create_task(self._poll(wanted))

    def _end(self, name: str) -> None:
        key = self._keys.pop(name, None)
        if key is not None:
            self._heard(key)
            self._resting.discard(key)
            self._heard_at.pop(key, None)
            self._pollers.pop(key).cancel()

    def _hurry(self, key: PollKey) -> bool:
        """Whether to ask anew: the pod is said to be ready and its poller rests, or its node has become silent."""
        pod = self._store.declared.pods.get(key[0])
        if pod is None or not pod.ready:
            return False
        suspect = pod.name in self._store.suspects
        return suspect if pod.unheard else key in self._resting and not suspect

    async def _poll(self, key: PollKey) -> None:
        after: int | None = None
        failures = 0
        while True:
            if after is not None and self._others_ask(key):
                await asyncio.sleep(_OTHERS_LOOK_S * self._random.uniform(0.8, 1.2))
                continue
            try:
                after = await self._report(key, after)
                failures, dear_s = 0, self._agents.reading_s / _READING_SHARE
            except AgentError as error:
                self._failed(key, error, failures)
                after, failures, dear_s = None, failures + 1, 0.0
            self._heard(key)
            await self._rest(key, failures, dear_s)

    def _others_ask(self, key: PollKey) -> bool:
        if self.sharing is None or self.sharing.mine(key[0]):
            return False
        return asyncio.get_running_loop().time() < self._heard_at.get(key, 0.0) + OTHERS_SILENT_S

    def _learnt(self, key: PollKey, state: AgentState | None) -> None:
        if self.sharing is not None:
            self._heard_at[key] = asyncio.get_running_loop().time()
            if self.sharing.mine(key[0]):
                self.sharing.learnt(key, state)

    async def _rest(self, key: PollKey, failures: int, dear_s: float) -> None:
        if not failures:
            await asyncio.sleep(max(self._interval(), dear_s))
            return
        self._resting.add(key)
        await asyncio.sleep(self._backoff(failures))
        self._resting.discard(key)

    async def _report(self, key: PollKey, after: int | None) -> int:
        name, _uid, url = key
        if after is None:
            async with self._first_polls:
                state = await self._agents.state(url, None)
        else:
            state = await self._agents.state(url, after, self._wait(name) * self._random.uniform(0.8, 1.2))
        if key in self._pollers:
            self._store.apply_state(name, state)
            self._learnt(key, state)
        return state.version

    def _wait(self, pod: str) -> float:
        declared = self._store.declared.pods.get(pod)
        return _UNHEARD_WAIT_S if declared is not None and declared.unheard else POLL_WAIT_S

    def _heard(self, key: PollKey) -> None:
        if key in self._unheard:
            self._unheard.discard(key)
            if not self._unheard:
                self._all_heard.set()

    def _failed(self, key: PollKey, error: AgentError, failures: int) -> None:
        pod = key[0]
        metrics.AGENT_ERRORS.labels("state").inc()
        declared = self._store.declared.pods.get(pod)
        if failures == 0 and declared is not None and declared.ready:
            log.warning("agent_unreachable", pod=pod, reason=str(error), code=error.code, status=error.status)
        if error.status or error.code == "bad_answer":
            self._store.trust(pod)
        elif error.code in _NOT_CONNECTED or failures + 1 >= _SUSPECT_AFTER:
            self._store.suspect((pod,))
            self._learnt(key, None)

    def _interval(self) -> float:
        return max(_MIN_INTERVAL_S, len(self._pollers) / MAX_POLLS_PER_S) * self._random.uniform(0.8, 1.2)

    def _backoff(self, failures: int) -> float:
        longest = max(_MAX_BACKOFF_S, 2.0 * len(self._pollers) / MAX_POLLS_PER_S)
        return min(longest, _FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 16)) * self._random.uniform(0.5, 1.0)
