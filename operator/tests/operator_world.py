"""Objects, pods, and a small world in virtual time that carries plans out: pods start, agents load what they should."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from sheaf_crds import SLO, Adapter, AutoscalingPolicy, Model
from sheaf_crds.agent_api import AdapterState, AgentState, Catalog, EngineLoad
from sheaf_operator.planning import (
    Action,
    ClusterSnapshot,
    CreatePod,
    DeletePod,
    DrainPod,
    EmitEvent,
    PodFacts,
    SetCatalog,
    UpdateStatus,
    plan,
)
from sheaf_operator.planning.template import template_hash

NOW = 1_000_000.0


def _metadata(name: str, **fields: Any) -> dict[str, Any]:
    created = datetime.fromtimestamp(fields.pop("created", NOW), UTC)
    return {"name": name, "uid": f"uid-{name}", "generation": 1, "creationTimestamp": created, **fields}


def make_model(name: str = "m", *, metadata: dict[str, Any] | None = None, **spec: Any) -> Model:
    spec = {"source": "hf://org/name", "engine": {"name": "emulator"}, **spec}
    return Model.model_validate({"metadata": _metadata(name, **(metadata or {})), "spec": spec})


def make_adapter(name: str, model: str = "m", *, metadata: dict[str, Any] | None = None, **spec: Any) -> Adapter:
    spec = {"modelRef": {"name": model}, "source": f"s3://bucket/{name}", **spec}
    return Adapter.model_validate({"metadata": _metadata(name, **(metadata or {})), "spec": spec})


def make_slo(name: str = "chat") -> SLO:
    return SLO.model_validate({"metadata": _metadata(name), "spec": {}})


def make_policy(name: str = "steady", **spec: Any) -> AutoscalingPolicy:
    return AutoscalingPolicy.model_validate({"metadata": _metadata(name), "spec": spec})


def make_pod(model: Model, name: str, **fields: Any) -> PodFacts:
    """A pod of the current template that serves and has an agent with no adapters, unless told otherwise."""
    values: dict[str, Any] = {
        "uid": f"uid-{name}",
        "model": model.name,
        "owner_uid": model.metadata.uid,
        "template_hash": template_hash(model),
        "phase": "Ready",
        "ready": True,
        "created_at": NOW - 100,
        "agent": AgentState(engine="Ready"),
        **fields,
    }
    return PodFacts(name=name, **values)


def resident(*names: str, **fields: Any) -> AgentState:
    states = tuple(AdapterState(name=name, state="Resident") for name in names)
    return AgentState(engine="Ready", adapters=states, **fields)


@dataclass
class World:
    """Carries plans out faithfully; `lag` ticks pass until a pod serves, `broken` templates never do."""

    snapshot: ClusterSnapshot
    now: float = NOW
    lag: int = 1
    broken: frozenset[str] = frozenset()
    busy: bool = False
    catalogs: dict[str, Catalog] = field(default_factory=dict)
    uids: int = 0
    history: list[Action] = field(default_factory=list)
    ages: dict[str, int] = field(default_factory=dict)

    @property
    def pods(self) -> dict[str, PodFacts]:
        return {pod.name: pod for pod in self.snapshot.pods}

    def decide(self) -> tuple[Action, ...]:
        return plan(self.snapshot, self.now).actions

    def step(self) -> tuple[Action, ...]:
        """Decide, act, and let some time pass."""
        actions = self.decide()
        for action in actions:
            self.act(action)
        self.tick()
        return actions

    def settle(self, passes: int = 200) -> int:
        """Step until nothing is left to do; returns the number of steps it took."""
        for count in range(passes):
            before = self.snapshot
            if not self.step() and self.snapshot == before and not self._starting():
                return count
        raise AssertionError(f"no fixpoint after {passes} passes: {self.decide()}")

    def _starting(self) -> bool:
        return any(
            pod.phase in ("Pending", "Starting") and pod.template_hash not in self.broken for pod in self.pods.values()
        )

    def act(self, action: Action) -> None:
        self.history.append(action)
        match action:
            case CreatePod():
                assert action.name not in self.pods, "a pod of that name is there"
                self.uids += 1
                self.ages[action.name] = 0
                template = action.template
                pod = PodFacts(
                    action.name, f"u{self.uids}", template.model, template.owner_uid, template.hash, created_at=self.now
                )
                self._pods([*self.snapshot.pods, pod])
            case DeletePod():
                self._pods([pod for pod in self.snapshot.pods if pod.uid != action.uid])
            case DrainPod():
                self._change(action.uid, lambda pod: replace(pod, agent=self._drained(pod, action)))
            case SetCatalog():
                self._change(action.uid, lambda pod: replace(pod, agent=self._loaded(pod, action.catalog)))
            case UpdateStatus():
                self._status(action)
            case EmitEvent():
                pass

    def tick(self) -> None:
        self.now += 1.0
        self._pods([self._aged(pod) for pod in self.snapshot.pods])

    def _aged(self, pod: PodFacts) -> PodFacts:
        self.ages[pod.name] = self.ages.get(pod.name, 0) + 1
        if pod.phase in ("Ready", "Failed", "Terminating") or pod.template_hash in self.broken:
            return pod
        agent = pod.agent or AgentState(engine="Starting")
        if self.ages[pod.name] < self.lag:
            return replace(pod, phase="Starting", agent=agent)
        return replace(pod, phase="Ready", ready=True, agent=agent.model_copy(update={"engine": "Ready"}))

    def _drained(self, pod: PodFacts, action: DrainPod) -> AgentState:
        assert pod.agent is not None
        load = EngineLoad(running=1 if self.busy else 0)
        return pod.agent.model_copy(
            update={"draining": True, "drain_deadline": self.now + action.seconds, "load": load}
        )

    def _loaded(self, pod: PodFacts, catalog: Catalog) -> AgentState:
        assert pod.agent is not None
        assert catalog.generation > pod.agent.catalog_generation, "an agent refuses older catalogs"
        pinned = tuple(
            AdapterState(name=entry.name, state="Resident", digest=entry.digest or "sha256:found")
            for entry in catalog.adapters
            if entry.pinned
        )
        return pod.agent.model_copy(update={"catalog_generation": catalog.generation, "adapters": pinned})

    def _change(self, uid: str, change: Any) -> None:
        self._pods([change(pod) if pod.uid == uid else pod for pod in self.snapshot.pods])

    def _pods(self, pods: list[PodFacts]) -> None:
        self.snapshot = replace(self.snapshot, pods=tuple(pods))

    def _status(self, action: UpdateStatus) -> None:
        field_name = {"Model": "models", "Adapter": "adapters", "SLO": "slos", "AutoscalingPolicy": "policies"}
        name = field_name[action.kind]
        items = [
            item.model_copy(update={"status": action.status}) if item.metadata.uid == action.uid else item
            for item in getattr(self.snapshot, name)
        ]
        self.snapshot = replace(self.snapshot, **{name: tuple(items)})

    def replace_model(self, model: Model) -> None:
        """The user's edit: a new spec, the same object."""
        models = tuple(
            model.model_copy(update={"status": old.status}) if old.name == model.name else old
            for old in self.snapshot.models
        )
        self.snapshot = replace(self.snapshot, models=models)


def of_kind(actions: Any, kind: type) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]
