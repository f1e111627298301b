"""Carries actions out: API calls and calls to agents. What was done is in the view before the act returns."""

from collections.abc import Callable
from dataclasses import dataclass, field

from sheaf_operator.cluster.agent_calls import AgentCalls
from sheaf_operator.cluster.kubernetes.client import ApiServer
from sheaf_operator.cluster.kubernetes.errors import ApiError
from sheaf_operator.cluster.kubernetes.notes import Quota, again, event_body, event_name
from sheaf_operator.cluster.kubernetes.resources import DECLARED, EVENTS, PODS, Raw
from sheaf_operator.cluster.kubernetes.view import View
from sheaf_operator.cluster.protocol import ClusterError
from sheaf_operator.planning import (
    Action,
    CreatePod,
    DeletePod,
    DrainPod,
    EmitEvent,
    SetCatalog,
    UpdateStatus,
)
from sheaf_operator.planning.manifest.pod import pod_manifest
from sheaf_operator.planning.manifest.refusal import ManifestError
from sheaf_operator.planning.manifest.settings import PodSettings

TEMPLATE_LABEL = "sheaf.dev/template"


@dataclass
class Acts:
    """What may be done to a cluster, and by whom. `may_write` is asked before each write; `clock`: Unix seconds."""

    api: ApiServer
    calls: AgentCalls
    view: View
    settings: PodSettings
    clock: Callable[[], float]
    may_write: Callable[[], bool]
    instance: str
    quota: Quota = field(default_factory=Quota)

    async def act(self, action: Action) -> None:
        """Carry one action out; raises ClusterError where it failed."""
        self._check()
        match action:
            case CreatePod():
                await self._create(action)
            case DeletePod():
                await self._delete(action)
            case DrainPod():
                await self._drain(action)
            case SetCatalog():
                await self._set_catalog(action)
            case UpdateStatus():
                await self._update_status(action)
            case EmitEvent():
                await self._emit(action)

    def _check(self) -> None:
        if not self.may_write():
            raise ClusterError("this operator does not hold the Lease any more; the one that does goes on")

    async def _create(self, action: CreatePod) -> None:
        try:
            body = pod_manifest(action.name, action.template, self.settings, action.zone)
        except ManifestError as error:
            raise ClusterError(str(error)) from error
        try:
            self.view.take(PODS, await self.api.create(PODS, body))
        except ApiError as error:
            if error.status != 409:
                raise
            await self._meet(action)

    async def _meet(self, action: CreatePod) -> None:
        """A pod of that name is there: done if it is the wanted one."""
        found = await self._get(action.name)
        if found is None:
            raise ClusterError(f"pod {action.name} was there a moment ago and is not now; it is tried again")
        if not _ours(found, action):
            raise ClusterError(
                f"a pod named {action.name} is there and not of this Model and template; delete it or rename the Model"
            )
        self.view.take(PODS, found)
        if found["metadata"].get("deletionTimestamp"):
            raise ClusterError(f"the pod named {action.name} from before is still ending; it is tried again")

    async def _get(self, name: str) -> Raw | None:
        try:
            return await self.api.get(PODS, name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _delete(self, action: DeletePod) -> None:
        await self._check_orphan(action.name, action.uid)
        self._check()
        try:
            answer = await self.api.delete(PODS, action.name, action.uid)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            self.view.drop(PODS, action.name, action.uid)
            return
        if answer.get("kind") == PODS.kind:
            self.view.take(PODS, answer)

    async def _check_orphan(self, name: str, uid: str) -> None:
        """A pod goes as an orphan only when the API server itself says that its Model is gone."""
        pod = self.view.index.pod(name)
        model = self.view.index.model(pod.model) if pod else None
        if pod is None or pod.uid != uid or (model and model.metadata.uid == pod.owner_uid):
            return
        resource = DECLARED["Model"]
        try:
            found = await self.api.get(resource, pod.model)
        except ApiError as error:
            if error.status == 404:
                return
            raise
        if found["metadata"].get("uid") == pod.owner_uid and not found["metadata"].get("deletionTimestamp"):
            self.view.take(resource, found)
            raise ClusterError(f"Model {pod.model} is there, the view of it was old; pod {name} stays")

    async def _drain(self, action: DrainPod) -> None:
        await self._check_orphan(action.name, action.uid)
        if address := self.view.address(action.name, action.uid):
            self._check()
            state = await self.calls.drain(address, action.seconds, action.reason)
            self.view.heard(action.uid, action.name, state)

    async def _set_catalog(self, action: SetCatalog) -> None:
        if address := self.view.address(action.pod, action.uid):
            await self.calls.put_catalog(address, action.catalog)
            self.view.heard(action.uid, action.pod, await self.calls.state(address, 0, 0.0))

    async def _update_status(self, action: UpdateStatus) -> None:
        resource = DECLARED[action.kind]
        body = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": action.name, "namespace": self.api.namespace, "uid": action.uid},
            "status": action.status.to_wire(),
        }
        try:
            self.view.take(resource, await self.api.apply_status(resource, action.name, body))
        except ApiError as error:
            if error.status == 404:
                self.view.drop(resource, action.name, action.uid)
            elif error.status == 409:
                said = f"{action.kind} {action.name} is another object by now; it is looked at again"
                raise ClusterError(said) from error
            else:
                raise

    async def _emit(self, action: EmitEvent) -> None:
        now = self.clock()
        if not self.quota.allows(action.uid, now):
            return
        try:
            await self.api.create(EVENTS, event_body(action, self.api.namespace, self.instance, now))
        except ApiError as error:
            if error.status != 409:
                raise
            name = event_name(action)
            await self.api.merge(EVENTS, name, again(await self.api.merge(EVENTS, name, {}), now))


def _ours(raw: Raw, action: CreatePod) -> bool:
    meta = raw["metadata"]
    owners = {owner.get("uid") for owner in meta.get("ownerReferences") or []}
    template = (meta.get("labels") or {}).get(TEMPLATE_LABEL)
    return action.template.owner_uid in owners and template == action.template.hash
