"""The operator process: everything put together, started and ended in order."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from sheaf_operator.cluster.agent_calls import AgentCalls
from sheaf_operator.cluster.gateways import Gateways
from sheaf_operator.cluster.kubernetes.access import Configuration, load_access, own_namespace
from sheaf_operator.cluster.kubernetes.client import ApiServer
from sheaf_operator.cluster.kubernetes.cluster import KubernetesCluster
from sheaf_operator.cluster.kubernetes.gateway_calls import GatewayCalls
from sheaf_operator.cluster.kubernetes.lease_keeper import LeaseKeeper
from sheaf_operator.cluster.kubernetes.watch import take_signals
from sheaf_operator.config import ConfigError, OperatorConfig, own_identity
from sheaf_operator.handlers.autoscaling import Autoscaling, ScalingCollector
from sheaf_operator.handlers.metrics import Metrics
from sheaf_operator.handlers.reconcile import Reconciler
from sheaf_operator.handlers.surface import application, serving
from sheaf_operator.planning.autoscaling.speeds import speed_of

_log = structlog.get_logger("sheaf.operator")


@dataclass
class Operator:
    """One process. `stop` may be called from a signal handler; `run` returns when all is let go."""

    config: OperatorConfig
    kubeconfig: str | None = None
    registry: CollectorRegistry = field(default_factory=lambda: CollectorRegistry(auto_describe=True))

    def __post_init__(self) -> None:
        self._stop = asyncio.Event()
        self.identity = self.config.identity or own_identity()

    def stop(self) -> None:
        """Begin to end."""
        self._stop.set()

    async def run(self) -> None:
        """Operate until stopped.

        Raises:
            AccessError: The API server's address or credentials cannot be read.
            ConfigError: The namespace is not known.
            ListenError: The address cannot be listened on.
        """
        take_signals(self.stop)
        access = await load_access(self.kubeconfig)
        namespace = self._namespace()
        async with AsyncExitStack() as stack:
            api = ApiServer(access, namespace, self.registry)
            stack.push_async_callback(api.close)
            calls = await stack.enter_async_context(AgentCalls(self.config.agent_token_file))
            asking = await stack.enter_async_context(GatewayCalls(api, self.config.agent_token_file))
            cluster, keeper, reconciler = self._parts(access, api, calls)
            autoscaling = self._autoscaling(cluster, reconciler, asking)
            ScalingCollector(autoscaling.standings, autoscaling.silent, self.registry)
            stack.push_async_callback(cluster.agents.close)
            host, port = self.config.address
            bound = await stack.enter_async_context(
                serving(application(self.registry, lambda: _unready(cluster, keeper)), host, port)
            )
            _log.info("starts", namespace=namespace, identity=self.identity, server=access.host, port=bound)
            await self._operate(cluster, keeper, reconciler, autoscaling)
        _log.info("ended")

    def _namespace(self) -> str:
        namespace = self.config.namespace or own_namespace()
        if namespace is None:
            raise ConfigError("the namespace is not known outside of a pod; name one with --namespace")
        return namespace

    def _parts(
        self, access: Configuration, api: ApiServer, calls: AgentCalls
    ) -> tuple[KubernetesCluster, LeaseKeeper, Reconciler]:
        ticks = asyncio.get_running_loop().time
        keeper = LeaseKeeper(
            api, self.config.lease_name, self.identity, ticks, time.time, lambda: None, registry=self.registry
        )
        cluster = KubernetesCluster(
            access,
            api,
            calls,
            self.config.pods,
            time.time,
            keeper.holds,
            self.identity,
            self.registry,
            self.config.market,
        )

        def may_act() -> bool:
            """Nothing is planned on half a view."""
            return cluster.complete.is_set() and keeper.holds()

        reconciler = Reconciler(cluster, time.time, ticks, may_act, metrics=Metrics(self.registry))
        keeper.moved = reconciler.stir
        return cluster, keeper, reconciler

    def _autoscaling(self, cluster: KubernetesCluster, reconciler: Reconciler, asking: GatewayCalls) -> Autoscaling:
        speeds = {kind: settings.speed for kind, settings in self.config.speeds.items()}
        return Autoscaling(
            cluster.index,
            Gateways(asking.find, asking.fetch, time.time),
            lambda model: speed_of(model, speeds),
            time.time,
            asyncio.get_running_loop().time,
            reconciler.may_act,
            cluster.view.mark,
        )

    async def _operate(
        self, cluster: KubernetesCluster, keeper: LeaseKeeper, reconciler: Reconciler, autoscaling: Autoscaling
    ) -> None:
        """Observe, compete and reconcile; at the end what is being done is finished before the Lease goes."""
        async with _running(cluster.run(), "observe") as observing, _running(keeper.run(), "lease") as competing:
            async with (
                _running(reconciler.run(), "reconcile") as working,
                _running(autoscaling.run(), "autoscaling") as scaling,
            ):
                stopping = asyncio.create_task(self._stop.wait())
                parts = {stopping, observing, competing, working, scaling}
                await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                _log.info("ends")
            competing.cancel()
            await asyncio.wait({competing})
            await keeper.release()


@asynccontextmanager
async def _running(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator["asyncio.Task[None]"]:
    """A task while inside; it is cancelled and awaited at the end, and an error of its own is raised."""
    task: asyncio.Task[None] = asyncio.create_task(work, name=name)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()


def _unready(cluster: KubernetesCluster, keeper: LeaseKeeper) -> str:
    """Why this process is of no use; a candidate that may never lead must not take the place of one that may."""
    if not cluster.complete.is_set():
        return "the first view of the cluster is not complete yet"
    return keeper.forbidden
