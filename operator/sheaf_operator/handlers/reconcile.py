"""The loop: what changed is planned, what is planned is done; key by key, many at once, none twice at once.

A key is planned again when something of it changes, when time alone changes its plan, when an action of it failed
(after a back-off by action) and every `resync` seconds in any case, spread out. A turn carries out a bounded number of
actions, a few at a time, so that a Model with a thousand adapters does not keep the others waiting.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from zlib import crc32

import structlog

from sheaf_operator.cluster.patience import happens
from sheaf_operator.cluster.protocol import Cluster, ClusterError
from sheaf_operator.handlers.backoff import Backoff
from sheaf_operator.handlers.metrics import Metrics
from sheaf_operator.handlers.workqueue import WorkQueue
from sheaf_operator.planning import Action, CreatePod, EmitEvent, Plan, UpdateStatus
from sheaf_operator.planning.index import FleetIndex, Key

RESYNC = 600.0
COALESCE = 0.02
KEYS_AT_ONCE = 64
WRITES_AT_ONCE = 32
WRITES_PER_KEY = 4
ACTIONS_PER_TURN = 64
LONGEST_WAIT = 1.0
LAST_WORDS = 2.0

_log = structlog.get_logger("sheaf.operator")


def always() -> bool:
    """A process that needs no Lease may always act."""
    return True


@dataclass
class Reconciler:
    """One operator over one cluster.

    Attributes:
        cluster: where to observe and act.
        clock: Unix seconds, what plans are made with.
        ticks: seconds that only grow, what waits are measured with.
        may_act: whether this process is the one that writes now; what changes meanwhile is planned when it is.
        resync: longest time between two plans of one key, seconds.
    """

    cluster: Cluster
    clock: Callable[[], float]
    ticks: Callable[[], float]
    may_act: Callable[[], bool] = always
    resync: float = RESYNC
    metrics: Metrics = field(default_factory=Metrics)
    queue: WorkQueue[Key] = field(default_factory=WorkQueue)
    backoffs: dict[Key, Backoff] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stirred = asyncio.Event()
        self._gate = asyncio.Semaphore(WRITES_AT_ONCE)
        self._turns: set[asyncio.Task[None]] = set()
        self._acting = False

    def stir(self) -> None:
        """Look again at once whether there is something to do, and whether it may be done."""
        self._stirred.set()

    async def run(self) -> None:
        """Reconcile until cancelled; what is being written then is let finish for a moment."""
        listening = asyncio.create_task(self._listen(), name="changes")
        dispatching = asyncio.create_task(self._dispatch(), name="dispatch")
        both = {listening, dispatching}
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in both:
                task.cancel()
            await asyncio.wait(both)
            await self._finish_turns()

    async def _listen(self) -> None:
        while True:
            keys = await self.cluster.changed(LONGEST_WAIT)
            if keys:
                self.queue.changed(keys, self.ticks())
                self.stir()
                await asyncio.sleep(COALESCE)

    async def _dispatch(self) -> None:
        while True:
            self._stirred.clear()
            self._start_turns()
            wait = LONGEST_WAIT
            if self._acting and (timer := self.queue.next_timer()) is not None:
                wait = min(wait, max(0.0, timer - self.ticks()))
            await happens(self._stirred, wait)

    def _start_turns(self) -> None:
        may_act = self.may_act()
        if may_act and not self._acting:
            self.queue.changed(self.cluster.index.keys(), self.ticks())
        self._acting = may_act
        while may_act and len(self._turns) < KEYS_AT_ONCE and (taken := self.queue.take(self.ticks())):
            task = asyncio.create_task(self._turn(*taken))
            self._turns.add(task)
            task.add_done_callback(self._ended)
        self.metrics.depth.set(len(self.queue))
        self.metrics.running.set(self.queue.running)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._turns.discard(task)
        self.stir()

    async def _turn(self, key: Key, since: float) -> None:
        try:
            await self.one_turn(key, since)
        finally:
            self.queue.done(key)

    async def one_turn(self, key: Key, since: float) -> None:
        """Plan one key, carry out what is allowed now, and see to it that the rest has its turn later."""
        started, now = self.ticks(), self.clock()
        try:
            decided = self.cluster.plan(key, now)
        except Exception as error:  # noqa: BLE001 - a surprise about one key must not stop the others
            self._surprised(key, error)
            return
        self.metrics.planning.observe(self.ticks() - started)
        if key.kind == "Model" and not any(isinstance(action, CreatePod) for action in decided.actions):
            self.cluster.index.note_refusal(key.name, "")
        backoff = self.backoffs.setdefault(key, Backoff())
        backoff.keep_only(action.key for action in decided.actions)
        allowed = [action for action in decided.actions if backoff.allows(action.key, started)]
        done = await self._carry_out(allowed[:ACTIONS_PER_TURN], backoff)
        if len(allowed) > ACTIONS_PER_TURN:
            self.queue.changed((key,), since)
        elif done and len(allowed) == len(decided.actions):
            self.metrics.latency.observe(self.ticks() - since)
            self.metrics.settled.set(self.clock())
        self._come_back(key, decided, backoff, now)

    async def _carry_out(self, actions: Sequence[Action], backoff: Backoff) -> bool:
        """Deeds in the plan's order, then statuses, then events, a few of one sort at a time; whether all went well."""
        gate = asyncio.Semaphore(WRITES_PER_KEY)
        failed: set[str] = set()
        for group in sorts(actions):
            same = [action for action in group if not (isinstance(action, EmitEvent) and _status_key(action) in failed)]
            results = await asyncio.gather(*(self._act(action, gate) for action in same), return_exceptions=True)
            for action, result in zip(same, results, strict=True):
                if not self._note(action, result, backoff):
                    failed.add(action.key)
        return not failed

    async def _act(self, action: Action, gate: asyncio.Semaphore) -> None:
        async with gate, self._gate:
            await self.cluster.act(action)

    def _note(self, action: Action, result: BaseException | None, backoff: Backoff) -> bool:
        self._note_refusal(action, result)
        name = type(action).__name__
        log = _log.bind(action=name, object=action.key, reason=action.reason)
        if result is None:
            backoff.succeeded(action.key)
            self.metrics.actions.labels(name, "done").inc()
            log.info("action", **({"message": action.message} if isinstance(action, EmitEvent) else {}))
            return True
        error = str(result) if isinstance(result, ClusterError) else f"{type(result).__name__}: {result}"
        least = result.retry_after if isinstance(result, ClusterError) else 0.0
        delay = backoff.failed(action.key, self.ticks(), least)
        self.metrics.actions.labels(name, "failed").inc()
        log.warning("action failed", error=error, retry_in=round(delay, 1))
        return False

    def _note_refusal(self, action: Action, result: BaseException | None) -> None:
        """Whether a pod could be made is part of what is said of its Model."""
        refused = isinstance(result, ClusterError) and not result.passing
        if isinstance(action, CreatePod) and (result is None or refused):
            told = "" if result is None else str(result)
            self.queue.changed(self.cluster.index.note_refusal(action.template.model, told), self.ticks())

    def _come_back(self, key: Key, decided: Plan, backoff: Backoff, now: float) -> None:
        """Set the key's next turn; one of which nothing is left is forgotten."""
        ticks = self.ticks()
        if not decided.actions and not known(self.cluster.index, key):
            self.backoffs.pop(key, None)
        else:
            spread = 0.5 + 0.5 * (crc32(repr(key).encode()) % 1000) / 1000
            self.queue.wake(key, ticks + self.resync * spread)
        if (retry := backoff.next_retry()) is not None:
            self.queue.wake(key, retry)
        if decided.wake_at is not None:
            self.queue.wake(key, ticks + max(0.0, decided.wake_at - now))
        self.metrics.turns.labels("done").inc()
        self.metrics.waiting.set(sum(backoff.size for backoff in self.backoffs.values()))

    def _surprised(self, key: Key, error: Exception) -> None:
        delay = self.backoffs.setdefault(key, Backoff()).failed("plan", self.ticks())
        self.queue.wake(key, self.ticks() + delay)
        self.metrics.turns.labels("failed").inc()
        _log.error("planning failed", kind=key.kind, name=key.name, error=f"{type(error).__name__}: {error}")

    async def _finish_turns(self) -> None:
        if self._turns:
            _, late = await asyncio.wait(self._turns, timeout=LAST_WORDS)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)


def sorts(actions: Sequence[Action]) -> list[list[Action]]:
    """The actions in groups that may run together: deeds in the given order, all statuses, all events."""
    deeds: list[Action] = [action for action in actions if not isinstance(action, UpdateStatus | EmitEvent)]
    told: list[list[Action]] = [[one for one in actions if isinstance(one, kind)] for kind in (UpdateStatus, EmitEvent)]
    return [list(group) for _, group in groupby(deeds, key=type)] + [group for group in told if group]


def _status_key(event: EmitEvent) -> str:
    return f"status/{event.kind}/{event.name}"


def known(index: FleetIndex, key: Key) -> bool:
    """Whether there is something under the key."""
    if key.kind == "Model":
        there = index.model(key.name), index.adapters_of(key.name), index.pods_of(key.name)
        return any(there)
    return (index.slo(key.name) if key.kind == "SLO" else index.policy(key.name)) is not None


async def run(
    cluster: Cluster, clock: Callable[[], float], *, resync: float = RESYNC, metrics: Metrics | None = None
) -> None:
    """Reconcile until cancelled, without a Lease.

    Args:
        cluster: where to observe and act.
        clock: Unix seconds.
        resync: longest time between two plans of one key, seconds.
        metrics: where to count.
    """
    ticks = asyncio.get_running_loop().time
    await Reconciler(cluster, clock, ticks, resync=resync, metrics=metrics or Metrics()).run()
