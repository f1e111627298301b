"""The fleet in memory, sorted by what belongs together, so that one change costs work for what it touches only.

A key names what is planned together: a Model with everything that names it (its Adapters and pods, also where the Model
is not there), an SLO, or an AutoscalingPolicy. Every change answers with the keys whose plan it may change. A change of
a Model, an Adapter or a pod touches a handful of keys; that of an SLO or AutoscalingPolicy those of the Models that
refer to it besides.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from sheaf_crds import SLO, Adapter, AutoscalingPolicy, KubeObject, Model
from sheaf_crds.agent_api import EngineLoad
from sheaf_crds.slo import SLOWindow

from sheaf_operator.planning.groups import Groups
from sheaf_operator.planning.market.settings import MarketSettings
from sheaf_operator.planning.refs import Finding
from sheaf_operator.planning.scaling import Scaling
from sheaf_operator.planning.snapshot import ClusterSnapshot, PodFacts

KeyKind = Literal["Model", "SLO", "AutoscalingPolicy"]
DeclaredKind = Literal["Model", "Adapter", "SLO", "AutoscalingPolicy"]
ItemKind = DeclaredKind | Literal["Pod"]
Item = Model | Adapter | SLO | AutoscalingPolicy | PodFacts
Obstacle = Callable[[Model], Finding | None]

_IDLE = EngineLoad()
_Object = TypeVar("_Object", bound=KubeObject)


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What is planned together; `name` is that of the Model, SLO or AutoscalingPolicy, whether it exists or not."""

    kind: KeyKind
    name: str


class FleetIndex:
    """Objects and pods of one namespace. Objects that are being deleted count as gone.

    Args:
        settings_digest: stands for what the operator itself puts into pods; part of every template.
        obstacle: why no pod can be made for a Model here (an accelerator that the settings do not know), or what of
            it is not heeded; None where all is well.
        market: what is known of zones and prices.
    """

    def __init__(
        self, settings_digest: str = "", obstacle: Obstacle | None = None, market: MarketSettings | None = None
    ) -> None:
        self.settings_digest = settings_digest
        self.market = market or MarketSettings()
        self.obstacle: Obstacle = obstacle or (lambda _: None)
        self._models: dict[str, Model] = {}
        self._adapters: dict[str, Adapter] = {}
        self._slos: dict[str, SLO] = {}
        self._policies: dict[str, AutoscalingPolicy] = {}
        self._pods: dict[str, PodFacts] = {}
        self._unreadable: set[tuple[str, str]] = set()
        self._refusals: dict[str, str] = {}
        self._scalings: dict[str, Scaling] = {}
        self._windows: dict[str, tuple[SLOWindow, ...]] = {}
        self._adapters_of, self._pods_of = Groups(), Groups()
        self._models_with: dict[KeyKind, Groups] = {"SLO": Groups(), "AutoscalingPolicy": Groups()}

    def upsert(self, item: Item) -> frozenset[Key]:
        """Take an object or a pod as it is now; returns the keys whose plan may have changed."""
        if isinstance(item, PodFacts):
            return self._put_pod(item)
        if item.metadata.deletion_timestamp is not None:
            return self.remove(item.kind, item.name)
        self._unreadable.discard((item.kind, item.name))
        if isinstance(item, Model):
            return self._put_model(item)
        if isinstance(item, Adapter):
            return self._put_adapter(item)
        if isinstance(item, SLO):
            return self._put_usable("SLO", self._slos, item)
        return self._put_usable("AutoscalingPolicy", self._policies, item)

    def remove(self, kind: ItemKind, name: str, uid: str = "") -> frozenset[Key]:
        """Forget an object or a pod, the one with that UID only where one is given; returns the keys to plan."""
        if uid and uid != self._uid(kind, name):
            return frozenset()
        unread = (kind, name) in self._unreadable
        self._unreadable.discard((kind, name))
        if kind == "Model":
            return self._drop_model(name)
        if kind == "Adapter":
            return self._drop_adapter(name)
        if kind == "Pod":
            return self._drop_pod(name)
        dirty = self._drop_usable(kind, self._slos if kind == "SLO" else self._policies, name)
        return dirty | self._users(kind, name) if unread else dirty

    def note_unreadable(self, kind: DeclaredKind, name: str) -> frozenset[Key]:
        """Take that an object is there and cannot be read; returns the keys to plan."""
        dirty = self.remove(kind, name)
        self._unreadable.add((kind, name))
        return dirty | self._users(kind, name) if kind in self._models_with else dirty

    def unreadable(self, kind: str, name: str) -> bool:
        """See `note_unreadable`."""
        return (kind, name) in self._unreadable

    def replace(self, snapshot: ClusterSnapshot) -> frozenset[Key]:
        """Become that snapshot; returns the keys whose plan may have changed."""
        items: tuple[Item, ...] = (
            *snapshot.models, *snapshot.adapters, *snapshot.slos, *snapshot.policies, *snapshot.pods
        )  # fmt: skip
        there = {(_kind(item), item.name) for item in items}
        dirty: set[Key] = set()
        for kind, name in [entry for entry in self._entries() if entry not in there]:
            dirty |= self.remove(kind, name)
        for item in items:
            dirty |= self.upsert(item)
        if snapshot.settings_digest != self.settings_digest:
            self.settings_digest = snapshot.settings_digest
            dirty |= {Key("Model", name) for name in self._models}
        return frozenset(dirty)

    def keys(self) -> frozenset[Key]:
        """Every key under which there is something."""
        names = {*self._models, *self._adapters_of.names(), *self._pods_of.names()}
        usable = {Key("SLO", name) for name in self._slos} | {Key("AutoscalingPolicy", name) for name in self._policies}
        return frozenset({Key("Model", name) for name in names} | usable)

    def snapshot(self) -> ClusterSnapshot:
        """Everything, each kind by name."""
        return ClusterSnapshot(
            models=_by_name(self._models),
            adapters=_by_name(self._adapters),
            slos=_by_name(self._slos),
            policies=_by_name(self._policies),
            pods=_by_name(self._pods),
            settings_digest=self.settings_digest,
        )

    def note_refusal(self, model: str, message: str) -> frozenset[Key]:
        """Why no further pod of a Model could be made when it was tried last; empty: one was made."""
        if self._refusals.get(model, "") == message:
            return frozenset()
        self._refusals.pop(model, None)
        if message:
            self._refusals[model] = message
        return frozenset({Key("Model", model)})

    def refusal(self, model: str) -> str:
        """See `note_refusal`."""
        return self._refusals.get(model, "")

    def model(self, name: str) -> Model | None:
        """The Model of that name."""
        return self._models.get(name)

    def adapter(self, name: str) -> Adapter | None:
        """The Adapter of that name."""
        return self._adapters.get(name)

    def slo(self, name: str) -> SLO | None:
        """The SLO of that name."""
        return self._slos.get(name)

    def policy(self, name: str) -> AutoscalingPolicy | None:
        """The AutoscalingPolicy of that name."""
        return self._policies.get(name)

    def pod(self, name: str) -> PodFacts | None:
        """The pod of that name."""
        return self._pods.get(name)

    def adapters_of(self, model: str) -> list[Adapter]:
        """The Adapters that refer to a Model of that name, by name."""
        return [self._adapters[name] for name in self._adapters_of.of(model)]

    def pods_of(self, model: str) -> list[PodFacts]:
        """The pods made for a Model of that name, by name."""
        return [self._pods[name] for name in self._pods_of.of(model)]

    def scaled_models(self) -> list[tuple[Model, AutoscalingPolicy]]:
        """Every Model whose AutoscalingPolicy exists, with it, by name of the policy and of the Model."""
        users = self._models_with["AutoscalingPolicy"]
        return [(self._models[name], self._policies[ref]) for ref in sorted(self._policies) for name in users.of(ref)]

    def models_under(self, slo: str) -> Iterable[str]:
        """Names of the Models that refer to the SLO of that name."""
        return self._models_with["SLO"].of(slo)

    def slos(self) -> list[SLO]:
        """Every SLO, by name."""
        return list(_by_name(self._slos))

    def scaling(self, model: str) -> Scaling | None:
        """What autoscaling says of the Model of that name now; None: it has not looked, or does not count."""
        return self._scalings.get(model)

    def note_scaling(self, model: str, scaling: Scaling | None) -> frozenset[Key]:
        """Take what autoscaling says of a Model (None: nothing any more); returns the keys to plan."""
        same = self._scalings.get(model) == scaling
        if scaling is not None:
            self._scalings[model] = scaling
        elif not same:
            del self._scalings[model]
        return frozenset() if same else frozenset({Key("Model", model)})

    def windows(self, slo: str) -> tuple[SLOWindow, ...] | None:
        """How the SLO of that name was kept, as measured lately; None: nobody measured."""
        return self._windows.get(slo)

    def note_windows(self, slo: str, windows: tuple[SLOWindow, ...]) -> frozenset[Key]:
        """Take how an SLO was kept; returns the keys to plan."""
        if self._windows.get(slo) == windows:
            return frozenset()
        self._windows[slo] = windows
        return frozenset({Key("SLO", slo)})

    def users_of(self, kind: Literal["SLO", "AutoscalingPolicy"], name: str) -> int:
        """How many Models refer to the SLO or AutoscalingPolicy of that name."""
        return self._models_with[kind].size(name)

    def _put_model(self, model: Model) -> frozenset[Key]:
        old = self._models.get(model.name)
        self._models[model.name] = model
        return frozenset() if _same(old, model) else self._model_changed(model.name, old, model)

    def _drop_model(self, name: str) -> frozenset[Key]:
        old = self._models.pop(name, None)
        self._refusals.pop(name, None)
        self._scalings.pop(name, None)
        return self._model_changed(name, old, None) if old else frozenset()

    def _model_changed(self, name: str, old: Model | None, new: Model | None) -> frozenset[Key]:
        dirty = {Key("Model", name)}
        twin = self._adapters.get(name)
        if twin is not None:
            dirty.add(Key("Model", twin.spec.model_ref.name))
        return frozenset(
            dirty | self._reused("SLO", name, old, new) | self._reused("AutoscalingPolicy", name, old, new)
        )

    def _reused(
        self, kind: Literal["SLO", "AutoscalingPolicy"], name: str, old: Model | None, new: Model | None
    ) -> set[Key]:
        before, after = _ref(old, kind), _ref(new, kind)
        self._models_with[kind].move(name, before, after)
        known: Mapping[str, KubeObject] = self._slos if kind == "SLO" else self._policies
        return {Key(kind, ref) for ref in {before, after} if ref in known and ref is not None and before != after}

    def _put_adapter(self, adapter: Adapter) -> frozenset[Key]:
        old = self._adapters.get(adapter.name)
        self._adapters[adapter.name] = adapter
        return frozenset() if _same(old, adapter) else self._adapter_changed(adapter.name, old, adapter)

    def _drop_adapter(self, name: str) -> frozenset[Key]:
        old = self._adapters.pop(name, None)
        return self._adapter_changed(name, old, None) if old else frozenset()

    def _adapter_changed(self, name: str, old: Adapter | None, new: Adapter | None) -> frozenset[Key]:
        before, after = (item.spec.model_ref.name if item else None for item in (old, new))
        self._adapters_of.move(name, before, after)
        twin = name if name in self._models else None
        return frozenset(Key("Model", model) for model in {before, after, twin} if model is not None)

    def _put_usable(
        self, kind: Literal["SLO", "AutoscalingPolicy"], shelf: dict[str, _Object], item: _Object
    ) -> frozenset[Key]:
        old = shelf.get(item.name)
        shelf[item.name] = item
        if _same(old, item):
            return frozenset()
        users = self._users(kind, item.name) if old is None or kind == "AutoscalingPolicy" else frozenset()
        return users | {Key(kind, item.name)}

    def _drop_usable(
        self, kind: Literal["SLO", "AutoscalingPolicy"], shelf: dict[str, SLO] | dict[str, AutoscalingPolicy], name: str
    ) -> frozenset[Key]:
        if kind == "SLO":
            self._windows.pop(name, None)
        return self._users(kind, name) | {Key(kind, name)} if shelf.pop(name, None) else frozenset()

    def _users(self, kind: KeyKind, name: str) -> frozenset[Key]:
        return frozenset(Key("Model", model) for model in self._models_with[kind].of(name))

    def _put_pod(self, pod: PodFacts) -> frozenset[Key]:
        old = self._pods.get(pod.name)
        self._pods[pod.name] = pod
        if old is not None and _relevant(old) == _relevant(pod):
            return frozenset()
        self._pods_of.move(pod.name, old.model if old else None, pod.model)
        return frozenset({Key("Model", pod.model), Key("Model", old.model if old else pod.model)})

    def _drop_pod(self, name: str) -> frozenset[Key]:
        old = self._pods.pop(name, None)
        if old is None:
            return frozenset()
        self._pods_of.move(name, old.model, None)
        return frozenset({Key("Model", old.model)})

    def _shelves(self) -> Mapping[ItemKind, Mapping[str, KubeObject | PodFacts]]:
        return {
            "Model": self._models,
            "Adapter": self._adapters,
            "SLO": self._slos,
            "AutoscalingPolicy": self._policies,
            "Pod": self._pods,
        }

    def _entries(self) -> Iterable[tuple[ItemKind, str]]:
        return ((kind, name) for kind, shelf in self._shelves().items() for name in shelf)

    def _uid(self, kind: ItemKind, name: str) -> str | None:
        item = self._shelves()[kind].get(name)
        return item.uid if isinstance(item, PodFacts) else item.metadata.uid if item else None


def _kind(item: Item) -> ItemKind:
    return "Pod" if isinstance(item, PodFacts) else item.kind


_Named = TypeVar("_Named")


def _by_name(shelf: Mapping[str, _Named]) -> tuple[_Named, ...]:
    return tuple(shelf[name] for name in sorted(shelf))


def _ref(model: Model | None, kind: Literal["SLO", "AutoscalingPolicy"]) -> str | None:
    if model is None:
        return None
    ref = model.spec.slo_ref if kind == "SLO" else model.spec.autoscaling_policy_ref
    return ref.name if ref else None


def _same(old: KubeObject | None, new: KubeObject) -> bool:
    """Whether nothing differs but what no decision reads; a status that somebody overwrote is a difference."""
    if old is None or old.metadata.uid != new.metadata.uid:
        return False
    metadata = {"resource_version": new.metadata.resource_version}
    return old.model_copy(update={"metadata": old.metadata.model_copy(update=metadata)}) == new


def _relevant(pod: PodFacts) -> PodFacts:
    """The pod without what changes all the time and decides nothing: the load counts only while the pod drains."""
    agent = pod.agent
    if agent is None:
        return pod
    load = agent.load if agent.draining else _IDLE
    return replace(pod, agent=agent.model_copy(update={"version": 0, "load": load}))
