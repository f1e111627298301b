"""The cluster of local processes: the operator's protocol over pods on this machine."""

import asyncio
from collections.abc import Collection

from sheaf_crds import SLO, Adapter, AutoscalingPolicy, Model
from sheaf_operator.cluster.patience import happens
from sheaf_operator.cluster.protocol import ClusterError
from sheaf_operator.planning import (
    Action,
    ClusterSnapshot,
    CreatePod,
    DeletePod,
    DrainPod,
    EmitEvent,
    Plan,
    SetCatalog,
    UpdateStatus,
)
from sheaf_operator.planning.compose import plan_key
from sheaf_operator.planning.index import FleetIndex, Key

from sheaf.local.fleet import FleetFile
from sheaf.local.pod import LocalPod, Site
from sheaf.local.store import Store


class LocalCluster:
    """Implements `sheaf_operator.cluster.protocol.Cluster`. `site.changed` must be this cluster's `poke`."""

    def __init__(self, store: Store, fleet: FleetFile) -> None:
        self.store, self._fleet = store, fleet
        self.index = FleetIndex()
        self._noticed: frozenset[Key] = frozenset()
        self.pods: dict[str, LocalPod] = {}
        self.site: Site
        self._leaving: set[asyncio.Task[None]] = set()
        self._poked = asyncio.Event()

    def poke(self) -> None:
        """Something that `snapshot` shows has changed."""
        self._poked.set()

    def snapshot(self) -> ClusterSnapshot:
        """Objects as the files declare them, pods as they are."""
        return ClusterSnapshot(
            models=self.store.of(Model),
            adapters=self.store.of(Adapter),
            slos=self.store.of(SLO),
            policies=self.store.of(AutoscalingPolicy),
            pods=tuple(pod.facts() for pod in self.pods.values()),
        )

    async def act(self, action: Action) -> None:
        """Carry an action out."""
        match action:
            case CreatePod():
                self._create(action)
            case DeletePod():
                self._delete(action)
            case DrainPod():
                await self._drain(action)
            case SetCatalog():
                await self._set_catalog(action)
            case UpdateStatus():
                self.store.update_status(action)
            case EmitEvent():
                self._tell(action)
        self._look()

    async def changed(self, timeout: float) -> frozenset[Key]:  # noqa: ASYNC109 - the protocol's own words
        """The keys that a change touches, or none after so many seconds."""
        self.publish()
        if not await happens(self._poked, timeout):
            return frozenset()
        self._poked.clear()
        self._look()
        noticed, self._noticed = self._noticed, frozenset()
        return noticed

    def plan(self, key: Key, now: float) -> Plan:
        """What to do for one key at `now` (Unix seconds)."""
        return plan_key(self.index, key, now)

    def publish(self) -> None:
        """Write the fleet file where it differs; a full disk is said once and tried again."""
        try:
            self._fleet.write(self.store, list(self.pods.values()))
            self.site.journal.recovered("fleet file")
        except OSError as error:
            remedy = "the gateway goes on with the last one; free some space" if error.errno else ""
            self.site.journal.say("fleet file", f"cannot be written: {error.strerror}; {remedy}", warning=True)

    async def stop(self) -> None:
        """End every pod; done when no process is left."""
        for pod in [pod for pod in self.pods.values() if not pod.terminating]:
            self._remove(pod)
        if self._leaving:
            await asyncio.wait(self._leaving)

    def mark(self, keys: Collection[Key]) -> None:
        """These keys may have another plan now."""
        if keys:
            self._noticed |= set(keys)
            self.poke()

    def _look(self) -> None:
        """Bring the index up to what is so now; `changed` tells what that touches."""
        found = self.index.replace(self.snapshot())
        self._noticed |= found
        if found:
            self.poke()

    def _tell(self, event: EmitEvent) -> None:
        """Say what happened; what a pod has said itself is not said again in full."""
        by_pod = any(pod.facts().reason == event.reason for pod in self.pods.values())
        message = event.message.partition(";")[0] if by_pod else event.message
        text = f"{event.reason}: {message}" if message else event.reason
        self.site.journal.say(f"{event.kind.lower()} {event.name}", text, warning=event.type == "Warning")

    def _create(self, action: CreatePod) -> None:
        if action.name in self.pods:
            return
        try:
            pod = LocalPod(action.name, action.template, self.site)
        except OSError as error:
            raise ClusterError(f"pod {action.name} cannot be made: {error.strerror}") from error
        self.pods[action.name] = pod
        pod.start()
        self.site.journal.say(f"pod {action.name}", f"starting: {action.reason}")

    def _delete(self, action: DeletePod) -> None:
        pod = self._find(action.name, action.uid)
        if pod is not None and not pod.terminating:
            self.site.journal.say(f"pod {action.name}", f"ending: {action.reason}")
            self._remove(pod, forget=True)

    def _remove(self, pod: LocalPod, *, forget: bool = False) -> None:
        pod.terminating = True
        task = asyncio.create_task(self._end(pod, forget=forget))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _end(self, pod: LocalPod, *, forget: bool) -> None:
        await pod.stop()
        if forget:
            pod.forget()
        self.pods.pop(pod.name, None)
        self.poke()

    async def _drain(self, action: DrainPod) -> None:
        pod = self._find(action.name, action.uid)
        if pod is not None:
            self.site.journal.say(f"pod {action.name}", f"draining: {action.reason}")
            pod.noted(await pod.client.drain(action.seconds, action.reason))

    async def _set_catalog(self, action: SetCatalog) -> None:
        pod = self._find(action.pod, action.uid)
        if pod is not None:
            await pod.client.put_catalog(action.catalog)
            pod.noted(await pod.client.state(after=0, wait=0.0))

    def _find(self, name: str, uid: str) -> LocalPod | None:
        pod = self.pods.get(name)
        return pod if pod is not None and pod.uid == uid else None
