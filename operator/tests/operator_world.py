"""Objects, pods, a small cluster in virtual time that carries plans out, and operators that live and die over it."""

from collections.abc import Callable, Iterable
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
    FleetIndex,
    Key,
    Notice,
    PodFacts,
    SetCatalog,
    UpdateStatus,
    plan_key,
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
    return AutoscalingPolicy.model_validate({"metadata": _metadata(name), "spec": {"maxReplicas": 1, **spec}})


def make_pod(model: Model, name: str, **fields: Any) -> PodFacts:
    """A pod of the current on-demand template that serves and has an agent with no adapters, unless told otherwise."""
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


def make_notice(seconds: float | None = 30.0, source: str = "node node-b") -> Notice:
    deadline = None if seconds is None else NOW + seconds
    return Notice(source, "SpotInterruption", "the node is taken back", deadline)


def resident(*names: str, **fields: Any) -> AgentState:
    states = tuple(AdapterState(name=name, state="Resident") for name in names)
    return AgentState(engine="Ready", adapters=states, **fields)


class Operator:
    """One life of an operator: it knows what it was shown, and plans the keys that changed or are due."""

    def __init__(self) -> None:
        self.index = FleetIndex()
        self.due: dict[Key, float] = {}

    def decide(self, view: ClusterSnapshot, now: float) -> list[Action]:
        """The actions of every key that changed since the last view, or whose time has come."""
        dirty = self.index.replace(view) | {key for key, time in self.due.items() if time <= now}
        return [action for key in sorted(dirty) for action in self._plan(key, now)]

    def _plan(self, key: Key, now: float) -> tuple[Action, ...]:
        plan = plan_key(self.index, key, now)
        self.due.pop(key, None)
        if plan.wake_at is not None:
            self.due[key] = plan.wake_at
        return plan.actions


@dataclass
class World:
    """Carries actions out as a cluster does.

    Agents that fell silent come back. `lag` ticks pass until a pod serves, `broken` templates never do, `no_spot`: spot pods find no node. In a `strict`
    world the operator sees everything at once, and an action that meets another state than it was decided on is an
    error; otherwise it has no effect, as on a real cluster.
    """

    snapshot: ClusterSnapshot
    now: float = NOW
    lag: int = 1
    broken: frozenset[str] = frozenset()
    busy: bool = False
    no_spot: bool = False
    strict: bool = True
    operator: Operator = field(default_factory=Operator)
    spot: set[str] = field(default_factory=set)
    uids: int = 0
    history: list[Action] = field(default_factory=list)
    ages: dict[str, int] = field(default_factory=dict)

    @property
    def pods(self) -> dict[str, PodFacts]:
        return {pod.name: pod for pod in self.snapshot.pods}

    @property
    def serving(self) -> int:
        return sum(pod.serving for pod in self.snapshot.pods)

    def decide(self) -> list[Action]:
        return self.operator.decide(self.snapshot, self.now)

    def step(self) -> list[Action]:
        """Decide, act, and let some time pass."""
        actions = self.decide()
        for action in actions:
            self.act(action)
        self.tick()
        return actions

    def settle(self, passes: int = 400) -> int:
        """Step until nothing is left to do, now or later; returns the number of steps it took."""
        for count in range(passes):
            before = self.snapshot
            if not self.step() and self.snapshot == before and not self._starting() and not self.skip():
                return count
        raise AssertionError(f"no fixpoint after {passes} passes: {self.decide()}")

    def skip(self) -> bool:
        """Go to the next moment at which time alone changes the plan; False where there is none."""
        if not self.operator.due:
            return False
        self.tick(max(0.0, min(self.operator.due.values()) - self.now))
        return True

    def _starting(self) -> bool:
        return any(
            pod.phase in ("Pending", "Starting") and pod.template_hash not in self.broken and not self._waits(pod)
            for pod in self.pods.values()
        )

    def _waits(self, pod: PodFacts) -> bool:
        return self.no_spot and pod.name in self.spot

    def act(self, action: Action) -> None:
        self.history.append(action)
        match action:
            case CreatePod():
                self._create(action)
            case DeletePod():
                self._pods([pod for pod in self.snapshot.pods if pod.uid != action.uid])
            case DrainPod():
                self.change(action.name, lambda pod: self._drained(pod, action), action.uid)
            case SetCatalog():
                self.change(action.pod, lambda pod: self._loaded(pod, action.catalog), action.uid)
            case UpdateStatus():
                self._status(action)
            case EmitEvent():
                pass

    def _create(self, action: CreatePod) -> None:
        if action.name in self.pods:
            assert not self.strict, "a pod of that name is there"
            return
        self.uids += 1
        self.ages[action.name] = 0
        (self.spot.add if action.template.spot else self.spot.discard)(action.name)
        template = action.template
        facts = template.model, template.owner_uid, template.hash
        pod = PodFacts(action.name, f"u{self.uids}", *facts, created_at=self.now, spot=template.spot)
        self._pods([*self.snapshot.pods, pod])

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self._pods([self._aged(pod) for pod in self.snapshot.pods])

    def _aged(self, pod: PodFacts) -> PodFacts:
        self.ages[pod.name] = self.ages.get(pod.name, 0) + 1
        if pod.phase == "Ready" and pod.agent is None:
            return replace(pod, agent=AgentState(engine="Ready"))
        if pod.phase in ("Ready", "Failed", "Terminating") or pod.template_hash in self.broken:
            return pod
        if self._waits(pod):
            return replace(pod, reason="Unschedulable", message="0/3 nodes are available")
        agent = pod.agent or AgentState(engine="Starting")
        if self.ages[pod.name] < self.lag:
            return replace(pod, phase="Starting", agent=agent, reason="", message="")
        ready = agent.model_copy(update={"engine": "Ready"})
        return replace(pod, phase="Ready", ready=True, agent=ready, reason="", message="")

    def _drained(self, pod: PodFacts, action: DrainPod) -> PodFacts:
        assert pod.agent is not None or not self.strict
        load = EngineLoad(running=1 if self.busy else 0)
        update = {"draining": True, "drain_deadline": self.now + action.seconds, "load": load}
        return replace(pod, agent=pod.agent.model_copy(update=update) if pod.agent else None)

    def _loaded(self, pod: PodFacts, catalog: Catalog) -> PodFacts:
        if pod.agent is None or catalog.generation <= pod.agent.catalog_generation:
            assert not self.strict, "an agent refuses older catalogs"
            return pod
        pinned = tuple(
            AdapterState(name=entry.name, state="Resident", digest=entry.digest or "sha256:found")
            for entry in catalog.adapters
            if entry.pinned
        )
        update = {"catalog_generation": catalog.generation, "adapters": pinned}
        return replace(pod, agent=pod.agent.model_copy(update=update))

    def change(self, name: str, change: Callable[[PodFacts], PodFacts], uid: str = "") -> None:
        """Change one pod, that with the UID only where one is given."""
        meant = {pod.uid for pod in self.snapshot.pods if pod.name == name and uid in ("", pod.uid)}
        self._pods([change(pod) if pod.uid in meant else pod for pod in self.snapshot.pods])

    def become(self, name: str, **fields: Any) -> None:
        """Something happens to a pod."""
        self.change(name, lambda pod: replace(pod, **fields))

    def _pods(self, pods: list[PodFacts]) -> None:
        self.snapshot = replace(self.snapshot, pods=tuple(pods))

    def _status(self, action: UpdateStatus) -> None:
        field_name = {"Model": "models", "Adapter": "adapters", "SLO": "slos", "AutoscalingPolicy": "policies"}
        name = field_name[action.kind]
        items = [
            item.model_copy(update={"status": action.status}) if _is(item, action) else item
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

    def declare(self, *adapters: Adapter) -> None:
        """The user's Adapters; those that are there already keep their status."""
        there = {adapter.name: adapter.status for adapter in self.snapshot.adapters}
        kept = [one.model_copy(update={"status": there.get(one.name, one.status)}) for one in adapters]
        self.snapshot = replace(self.snapshot, adapters=tuple(kept))


def _is(item: Any, action: UpdateStatus) -> bool:
    return bool(item.metadata.uid == action.uid and item.name == action.name)


def of_kind(actions: Iterable[Action], kind: Any) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]
