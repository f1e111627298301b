"""The loop: observe, plan, act; on every change, when time alone changes the plan, and every few seconds.

A failing action backs off by its object and stops no other. Actions of one sort run together, sorts run in the plan's
order.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sheaf_operator.cluster.protocol import Cluster, ClusterError
from sheaf_operator.handlers.backoff import Backoff
from sheaf_operator.planning import Action, Plan, plan

PERIOD = 10.0
SHORTEST_PASS = 0.02
CONCURRENCY = 16

_log = structlog.get_logger("sheaf.operator")


class Metrics:
    """What the loop counts."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self.registry = registry
        self.passes = Counter("sheaf_operator_passes", "Passes of the loop.", ["result"], registry=registry)
        self.actions = Counter("sheaf_operator_actions", "Actions.", ["action", "result"], registry=registry)
        self.duration = Histogram("sheaf_operator_pass_seconds", "Duration of a pass.", registry=registry)
        self.settled = Gauge("sheaf_operator_last_success_timestamp", "End of the last good pass.", registry=registry)
        self.waiting = Gauge("sheaf_operator_backing_off", "Actions held back after failures.", registry=registry)


@dataclass
class Reconciler:
    """One operator over one cluster. `clock` gives Unix seconds."""

    cluster: Cluster
    clock: Callable[[], float]
    period: float = PERIOD
    metrics: Metrics = field(default_factory=Metrics)
    backoff: Backoff = field(default_factory=Backoff)

    async def run(self) -> None:
        """Reconcile until cancelled."""
        while True:
            pause = await self.one_pass()
            await asyncio.sleep(SHORTEST_PASS)
            await self.cluster.changed(pause)

    async def one_pass(self) -> float:
        """Observe, plan and act once; returns the seconds after which the next pass is due without any change."""
        started = self.clock()
        try:
            snapshot = await self.cluster.observe()
        except ClusterError as error:
            _log.warning("observing failed", error=str(error))
            self.metrics.passes.labels("failed").inc()
            return min(self.period, self.backoff.failed("observe", started))
        self.backoff.succeeded("observe")
        decided = plan(snapshot, started)
        await self._carry_out(decided.actions)
        return self._finish(decided, started)

    async def _carry_out(self, actions: Sequence[Action]) -> None:
        self.backoff.keep_only(action.key for action in actions)
        gate = asyncio.Semaphore(CONCURRENCY)
        for _, group in groupby(actions, key=type):
            allowed = [action for action in group if self.backoff.allows(action.key, self.clock())]
            results = await asyncio.gather(*(self._act(action, gate) for action in allowed), return_exceptions=True)
            for action, result in zip(allowed, results, strict=True):
                self._note(action, result)

    async def _act(self, action: Action, gate: asyncio.Semaphore) -> None:
        async with gate:
            await self.cluster.act(action)

    def _note(self, action: Action, result: BaseException | None) -> None:
        name, reason = type(action).__name__, action.reason
        if result is None:
            self.backoff.succeeded(action.key)
            self.metrics.actions.labels(name, "done").inc()
            _log.info("action", action=name, object=action.key, reason=reason)
            return
        delay = self.backoff.failed(action.key, self.clock())
        self.metrics.actions.labels(name, "failed").inc()
        error = str(result) if isinstance(result, ClusterError) else f"{type(result).__name__}: {result}"
        _log.warning("action failed", action=name, object=action.key, reason=reason, error=error, retry_in=delay)

    def _finish(self, decided: Plan, started: float) -> float:
        now = self.clock()
        self.metrics.passes.labels("done").inc()
        self.metrics.duration.observe(max(0.0, now - started))
        self.metrics.settled.set(now)
        retry = self.backoff.next_retry()
        self.metrics.waiting.set(self.backoff.size)
        wakes = [time - now for time in (retry, decided.wake_at) if time is not None]
        return min(self.period, *(max(0.0, wake) for wake in wakes)) if wakes else self.period


async def run(cluster: Cluster, clock: Callable[[], float], *, period: float = PERIOD) -> None:
    """Reconcile until cancelled.

    Args:
        cluster: where to observe and act.
        clock: Unix seconds.
        period: longest time between two passes, seconds.
    """
    await Reconciler(cluster, clock, period).run()
