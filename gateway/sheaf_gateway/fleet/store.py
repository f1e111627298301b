"""The one place where the current view of the fleet lives: replaced on news, read by every request.

News are changes of declared objects and pods, a new report of an agent, an agent that does not answer, or a request
that found an adapter loaded or missing before the agent said so. Each is worked in with time proportional to what it
touches: the pods of one Model, or the names that depend on one object. Listeners are called in the event loop.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType

import msgspec
from sheaf_crds.agent_api import AgentState

from sheaf_gateway.fleet import metrics
from sheaf_gateway.fleet.assemble import arranged, bare_digest, pod_view, renamed, thawed
from sheaf_gateway.fleet.declared import Declared
from sheaf_gateway.fleet.snapshot import KINDS, Changes, FleetSnapshot, Item, Key, PodSnapshot, parts_of
from sheaf_gateway.fleet.view import Fleet, Pod

_NO_KEYS: frozenset[Key] = frozenset()
_NOTHING: frozenset[str] = frozenset()


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A new view, and in what it differs from the one before.

    `models` are the Models whose pods look different, `names` the served names that came, went or changed, `keys`
    the declared objects and pods that did. `shape` says that more than load or residency changed: names, or which
    pods there are, their readiness, draining, deadline or epoch.
    """

    fleet: Fleet
    models: frozenset[str] = _NOTHING
    names: frozenset[str] = _NOTHING
    keys: frozenset[Key] = _NO_KEYS
    shape: bool = False


Listener = Callable[[Fleet], None]
Watcher = Callable[[Change], None]


class FleetStore:
    """Holds the fleet; `own_running` tells how many requests of this gateway are on a pod. `turn` is another number for
    each view of it, by which others tell whether what they made of one still holds without holding it."""

    def __init__(self, own_running: Callable[[str], int] = lambda _pod: 0) -> None:
        self.fleet = Fleet()
        self.turn = 0
        self.declared = Declared()
        self.states: dict[str, AgentState] = {}
        self.suspects: set[str] = set()
        self.held: set[str] = set()
        self.known = False
        self._snapshot: FleetSnapshot | None = None
        self._own_running = own_running
        self._pods: dict[str, Pod] = {}
        self._groups: dict[str, dict[str, Pod]] = {}
        self._watchers: list[Watcher] = []

    @property
    def snapshot(self) -> FleetSnapshot | None:
        """Everything declared, None until there was a first whole view; built when asked for, O(objects)."""
        if self.known and self._snapshot is None:
            self._snapshot = self.declared.snapshot(self.fleet.version)
        return self._snapshot

    def watch(self, watcher: Watcher) -> None:
        """Call the watcher after every change."""
        self._watchers.append(watcher)

    def listen(self, listener: Listener) -> None:
        """Call the listener after every change of the fleet's shape (see `Change`)."""
        self.watch(lambda change: listener(change.fleet) if change.shape else None)

    def apply_snapshot(self, snapshot: FleetSnapshot) -> None:
        """Take a whole new fleet; reports of pods that are still the same are kept."""
        fresh: dict[Key, Item | None] = {
            (kind, item.name): item for kind, items in parts_of(snapshot).items() for item in items
        }
        gone: dict[Key, Item | None] = {
            (kind, name): None for kind in KINDS for name in self.declared.items[kind] if (kind, name) not in fresh
        }
        self.apply({**gone, **fresh}, snapshot.version)

    def apply(self, changes: Changes, version: int | None = None) -> None:
        """Take changes of declared objects and pods; without a version the fleet's own one grows by one."""
        news = {key: item for key, item in changes.items() if key[0] != "pods" or self.declared.get(*key) != item}
        names = self.declared.apply(news)
        models = {model for kind, name in news if kind == "pods" for model in self._take_pod(name)}
        first, self.known, self._snapshot = not self.known, True, None
        grown = self.fleet.version + 1 if version is None else version
        metrics.SNAPSHOT_VERSION.set(grown)
        self._publish(models, names, frozenset(news), grown, shape=first)

    def apply_state(self, pod: str, state: AgentState) -> None:
        """Take an agent's report; one of a pod that is gone is dropped."""
        declared = self.declared.pods.get(pod)
        if declared is None:
            return
        doubted = pod in self.suspects
        self.suspects.discard(pod)
        self.states[pod] = state
        view = pod_view(declared, state, self._own_running(pod))
        if doubted or view != self._pods[pod]:
            self._replace(view)

    def suspect(self, pods: Iterable[str]) -> None:
        """The agents of these pods do not answer: use the pods only where there are no others, until they do."""
        fresh = {pod for pod in pods if pod in self._pods} - self.suspects
        if fresh:
            self.suspects |= fresh
            self._publish({self._pods[pod].model for pod in fresh})

    def trust(self, pod: str) -> None:
        """The pod's agent answers, even if it refuses to report."""
        if pod in self.suspects:
            self.suspects.discard(pod)
            self._publish({self._pods[pod].model})

    def hold(self, pod: str) -> None:
        """Keep requests from a pod as long as another serves."""
        if pod in self._pods and pod not in self.held:
            self.held.add(pod)
            self._publish({self._pods[pod].model})

    def release(self, pod: str) -> None:
        """The pod takes requests."""
        if pod in self.held:
            self.held.discard(pod)
            self._publish({self._pods[pod].model} if pod in self._pods else ())

    def release_all(self, model: str) -> bool:
        """All pods of a Model take requests; whether that is news."""
        held = [pod for pod in self.held if pod not in self._pods or self._pods[pod].model == model]
        self.held.difference_update(held)
        if held:
            self._publish({model})
        return bool(held)

    def note_resident(self, pod: str, adapter: str, digest: str) -> None:
        """A load that a request asked for ended well, ahead of the agent's next report."""
        found = self._pods.get(pod)
        if found is not None:
            self._reside(found, {**found.resident, adapter: bare_digest(digest)})

    def note_absent(self, pod: str, adapter: str) -> None:
        """The engine does not know an adapter that it was said to hold."""
        found = self._pods.get(pod)
        if found is not None and adapter in found.resident:
            self._reside(found, {name: digest for name, digest in found.resident.items() if name != adapter})

    def _take_pod(self, name: str) -> set[str]:
        """Work a declared pod in; the Models concerned."""
        before, declared = self._pods.pop(name, None), self.declared.pods.get(name)
        models = set()
        if before is not None:
            models.add(before.model)
            self._groups[before.model].pop(name)
        if declared is None or before is None or not _same(before, declared):
            self.states.pop(name, None)
        if declared is not None and declared.unheard:
            self.suspects.add(name)
        elif name not in self.states or (declared is not None and declared.ready):
            self.suspects.discard(name)
        if declared is not None:
            models.add(declared.model)
            view = self._view(declared, before)
            self._pods[name] = self._groups.setdefault(declared.model, {})[name] = view
        return models

    def _view(self, declared: PodSnapshot, before: Pod | None) -> Pod:
        fresh = pod_view(declared, self.states.get(declared.name), 0)
        if before is None or declared.name not in self.states:
            return fresh
        return msgspec.structs.replace(
            fresh, foreign_running=before.foreign_running, foreign_waiting=before.foreign_waiting
        )

    def _reside(self, pod: Pod, resident: dict[str, str]) -> None:
        self._replace(msgspec.structs.replace(pod, resident=MappingProxyType(resident)))

    def _replace(self, pod: Pod) -> None:
        self._pods[pod.name] = self._groups[pod.model][pod.name] = pod
        self._publish({pod.model})

    def _publish(
        self,
        models: Collection[str],
        names: Collection[str] = (),
        keys: frozenset[Key] = _NO_KEYS,
        version: int | None = None,
        *,
        shape: bool = False,
    ) -> None:
        before = self.fleet
        served = renamed(before.served, {name: self.declared.served(name) for name in names})
        pods, ready = self._regrouped(models)
        number = before.version if version is None else version
        self.fleet = Fleet(version=number, served=served, pods=pods, ready=ready)
        self.turn += 1
        self._tell(
            Change(
                fleet=self.fleet,
                models=frozenset(models),
                names=frozenset(name for name in names if served.get(name) != before.served.get(name)),
                keys=keys,
                shape=shape or served is not before.served or _reshaped(before, self.fleet, models),
            )
        )

    def _regrouped(self, models: Collection[str]) -> tuple[Mapping[str, tuple[Pod, ...]], Mapping[str, int]]:
        if not models:
            return self.fleet.pods, self.fleet.ready
        pods, ready = thawed(self.fleet.pods), thawed(self.fleet.ready)
        for model in models:
            if group := self._groups.get(model):
                pods[model] = found = arranged(group.values(), self.suspects, self.held)
                ready[model] = sum(pod.ready for pod in found)
            else:
                for mapping in (self._groups, pods, ready):
                    mapping.pop(model, None)
        return MappingProxyType(pods), MappingProxyType(ready)

    def _tell(self, change: Change) -> None:
        metrics.AGENTS_KNOWN.set(len(self.states))
        metrics.PODS_SUSPECT.set(len(self.suspects))
        for watcher in self._watchers:
            watcher(change)


def poll_key(pod: PodSnapshot) -> tuple[str, str, str]:
    """What makes a pod the same one for its agent's reports."""
    return pod.name, pod.uid, pod.agent_url


def _same(before: Pod, after: PodSnapshot) -> bool:
    return (before.name, before.uid, before.agent_url) == poll_key(after)


def _reshaped(before: Fleet, after: Fleet, models: Iterable[str]) -> bool:
    return any(_shape(before.pods_of(model)) != _shape(after.pods_of(model)) for model in models)


def _shape(pods: tuple[Pod, ...]) -> list[tuple[str, str, str, bool, bool, float, int]]:
    return [(pod.name, pod.uid, pod.engine_url, pod.ready, pod.draining, pod.deadline, pod.epoch) for pod in pods]
