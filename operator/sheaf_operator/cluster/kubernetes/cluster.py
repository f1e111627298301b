"""The operator's protocol on Kubernetes: watch, lists and agents feed the view, actions become calls.

Nothing is planned before the view is complete: everything listed once, and every agent that has an address asked once.
Afterwards the view is listed again whenever a watch may have missed something: when kopf starts anew or lists again,
when the API server answers after it did not, and every `RELIST` seconds.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge
from sheaf_crds import Model
from sheaf_crds.agent_api import AgentState

from sheaf_operator.cluster.agent_calls import AgentCalls
from sheaf_operator.cluster.kubernetes.access import Configuration
from sheaf_operator.cluster.kubernetes.acts import Acts
from sheaf_operator.cluster.kubernetes.agents import AgentPool
from sheaf_operator.cluster.kubernetes.client import ApiServer
from sheaf_operator.cluster.kubernetes.resources import DECLARED, Raw, Resource
from sheaf_operator.cluster.kubernetes.sweep import missing, sweep
from sheaf_operator.cluster.kubernetes.view import View
from sheaf_operator.cluster.kubernetes.watch import watch
from sheaf_operator.cluster.patience import happens
from sheaf_operator.cluster.protocol import ClusterError
from sheaf_operator.planning import Action, Plan
from sheaf_operator.planning.compose import plan_key
from sheaf_operator.planning.index import FleetIndex, Key
from sheaf_operator.planning.manifest.refusal import disregard, refusal
from sheaf_operator.planning.manifest.settings import PodSettings
from sheaf_operator.planning.market.settings import MarketSettings
from sheaf_operator.planning.refs import Finding

RELIST = 600.0
RELIST_SOON = 1.0
FIRST_ANSWERS = 5.0
FIRST_ANSWER_OF_ONE = 0.02
LONGEST_FIRST_ANSWERS = 60.0
LOOK_FOR_KINDS = 5.0
DELAYS = (0.5, 1.0, 2.0, 5.0)

_log = structlog.get_logger("sheaf.operator.cluster")


@dataclass
class WatchMetrics:
    """What the watch counts."""

    registry: CollectorRegistry

    def __post_init__(self) -> None:
        self.events = Counter(
            "sheaf_operator_watch_events", "Events of the watches.", ["resource", "type"], registry=self.registry
        )
        self.restarts = Counter("sheaf_operator_watch_restarts", "Starts of the watches.", registry=self.registry)
        self.lists = Counter("sheaf_operator_lists", "Full lists.", ["result"], registry=self.registry)
        self.refused = Gauge("sheaf_operator_invalid_objects", "Objects that cannot be read.", registry=self.registry)
        self.complete = Gauge("sheaf_operator_view_complete", "1 once the view is complete.", registry=self.registry)


@dataclass
class KubernetesCluster:
    """One namespace. `clock`: Unix seconds; `may_write` is asked before each write."""

    configuration: Configuration
    api: ApiServer
    calls: AgentCalls
    settings: PodSettings
    clock: Callable[[], float]
    may_write: Callable[[], bool]
    instance: str
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    market: MarketSettings = field(default_factory=MarketSettings)

    def __post_init__(self) -> None:
        self._index = FleetIndex(self.settings.digest, self._obstacle, self.market)
        self._moved, self._relist = asyncio.Event(), asyncio.Event()
        self.complete = asyncio.Event()
        self._told_all = False
        self._list_trouble = ""
        self.metrics = WatchMetrics(self.registry)
        self.view = View(
            self._index, self.clock, self._moved.set, self._address_moved, spot_labels=self.settings.spot_labels
        )
        self.agents = AgentPool(self.calls, self._heard, self.registry)
        self._acts = Acts(self.api, self.calls, self.view, self.settings, self.clock, self.may_write, self.instance)

    @property
    def index(self) -> FleetIndex:
        """Everything observed."""
        return self._index

    async def run(self) -> None:
        """Observe until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(), name="watch")
            group.create_task(self._list(), name="lists")

    async def changed(self, timeout: float) -> frozenset[Key]:  # noqa: ASYNC109 - the protocol's own words
        """The keys that changed; all of them once the first view is complete, none before."""
        if not self._told_all:
            return await self._first(timeout)
        if not await happens(self._moved, timeout):
            return frozenset()
        self._moved.clear()
        return self.view.taken()

    def plan(self, key: Key, now: float) -> Plan:
        """The plan of the key; of a Model that cannot be read only that this is said."""
        refused = self.view.refusals.get(key, {})
        said = tuple(refusal.action(now) for refusal in refused.values() if not refusal.told)
        if (key.kind, key.name) in refused:
            return Plan(said)
        self.view.refresh_waiting(key)
        decided = plan_key(self._index, key, now)
        return Plan(said + decided.actions, decided.wake_at)

    async def act(self, action: Action) -> None:
        """Carry an action out."""
        await self._acts.act(action)

    def list_again(self) -> None:
        """A watch may have missed something."""
        self._relist.set()

    async def _first(self, timeout: float) -> frozenset[Key]:  # noqa: ASYNC109 - the wait is the call
        if not await happens(self.complete, timeout):
            return frozenset()
        self._told_all = True
        return self._index.keys() | self.view.taken()

    async def _watch(self) -> None:
        failures = 0
        while True:
            await self._wait_for_kinds()
            self.metrics.restarts.inc()
            self.list_again()
            began = self._now()
            try:
                await watch(self.configuration, self.api.namespace, self._seen)
            except Exception as error:  # noqa: BLE001 - whatever ends kopf, it is started again
                _log.warning("the watch ended; it starts again", error=f"{type(error).__name__}: {error}"[:500])
            failures = 0 if self._now() - began > RELIST else failures + 1
            await asyncio.sleep(DELAYS[min(failures, len(DELAYS)) - 1])

    async def _wait_for_kinds(self) -> None:
        said = ""
        while True:
            try:
                lacking = ", ".join(await missing(self.api, DECLARED.values()))
                problem = f"{lacking}: install the CRDs (chart value crds.install)" if lacking else ""
            except ClusterError as error:
                problem = str(error)
            if not problem:
                return
            if problem != said:
                _log.warning("waiting for the API server to serve Sheaf's kinds", missing=problem)
                said = problem
            await asyncio.sleep(LOOK_FOR_KINDS)

    async def _list(self) -> None:
        while True:
            with_luck = await self._sweep()
            if await happens(self._relist, RELIST if with_luck else RELIST_SOON):
                await asyncio.sleep(RELIST_SOON)
                self._relist.clear()

    async def _sweep(self) -> bool:
        try:
            await sweep(self.api, self.view)
        except ClusterError as error:
            self.metrics.lists.labels("failed").inc()
            if str(error) != self._list_trouble:
                self._list_trouble = str(error)
                _log.warning("not everything can be listed; it is tried again", error=str(error))
            return False
        self._list_trouble = ""
        self.metrics.lists.labels("done").inc()
        if not self.complete.is_set():
            await self.agents.all_asked(patience(len(self.view.pods)))
            _log.info("the view is complete", keys=len(self._index.keys()), pods=len(self.view.pods))
            self.metrics.complete.set(1)
            self.complete.set()
        return True

    def _seen(self, kind: str | None, resource: Resource, raw: Raw) -> None:
        self.metrics.events.labels(resource.plural, kind or "LISTED").inc()
        if kind == "DELETED":
            self.view.drop(resource, raw["metadata"]["name"], raw["metadata"].get("uid", ""))
        else:
            self.view.take(resource, raw)
        if kind is None and self.complete.is_set():
            self.list_again()
        self.metrics.refused.set(sum(map(len, self.view.refusals.values())))

    def _heard(self, uid: str, name: str, state: AgentState | None) -> None:
        self.view.heard(uid, name, state)

    def _address_moved(self, name: str, uid: str) -> None:
        self.agents.follow(uid, name, self.view.address(name, uid))

    def _obstacle(self, model: Model) -> Finding | None:
        refused = refusal(model.spec, self.settings)
        if refused:
            return Finding(refused.reason, refused.message)
        lost = disregard(model.spec, self.settings)
        return Finding(lost.reason, lost.message, blocks=False) if lost else None

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def patience(pods: int) -> float:
    """How long to wait for the first answers of so many agents, seconds.

    What is planned without them says of adapters that are resident that they are not, and takes it back later.
    """
    return min(LONGEST_FIRST_ANSWERS, FIRST_ANSWERS + FIRST_ANSWER_OF_ONE * pods)
