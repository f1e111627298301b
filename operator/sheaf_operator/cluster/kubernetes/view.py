"""What is known of the cluster: raw objects in, a FleetIndex and the keys that changed out.

Three sources feed it and may overtake each other: the watch, full lists, and the answers to the operator's own writes.
An object is taken where its resourceVersion is not older than the one known, and never again after its UID was seen
deleted. So what was written is in the view when the write returns, and an event that comes late changes nothing.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from sheaf_crds.agent_api import AgentState

from sheaf_operator.cluster.kubernetes.objects import Refusal, read
from sheaf_operator.cluster.kubernetes.resources import NODES, PODS, Raw, Resource, version_of
from sheaf_operator.planning.index import FleetIndex, Key
from sheaf_operator.planning.manifest.essence import essence
from sheaf_operator.planning.manifest.facts import NodeFacts, node_facts, pod_facts

REMEMBERED = 50_000
AGENT_PORT = 8001

Place = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Known:
    """Which object of a name was taken last."""

    uid: str
    version: int


@dataclass
class View:
    """The cluster as last heard of.

    Attributes:
        index: what the planner reads.
        clock: Unix seconds.
        moved: called when keys have changed.
        address_moved: called with name and UID of a pod whose agent may have another address now, or none.
        spot_labels: labels that mark spot nodes, beside those of the clouds.
    """

    index: FleetIndex
    clock: Callable[[], float]
    moved: Callable[[], None]
    address_moved: Callable[[str, str], None]
    spot_labels: Mapping[str, str] = field(default_factory=dict)
    refusals: dict[Key, dict[Place, Refusal]] = field(default_factory=dict)
    dirty: set[Key] = field(default_factory=set)
    nodes: dict[str, NodeFacts] = field(default_factory=dict)
    pods: dict[str, Raw] = field(default_factory=dict)
    agents: dict[str, AgentState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._known: dict[Place, Known] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._on_node: defaultdict[str, set[str]] = defaultdict(set)

    def take(self, resource: Resource, raw: Raw) -> None:
        """Take an object that is there, unless a newer state of it is known."""
        meta = raw["metadata"]
        place, uid, version = (resource.kind, str(meta["name"])), str(meta.get("uid", "")), version_of(raw)
        known = self._known.get(place)
        if uid in self._gone or (known and version and version <= known.version):
            return
        self._known[place] = Known(uid, version)
        if resource is PODS:
            self._take_pod(raw)
        elif resource is NODES:
            self._take_node(raw)
        else:
            self._take_object(resource, raw)

    def drop(self, resource: Resource, name: str, uid: str) -> None:
        """The object with that UID is gone."""
        self._gone[uid] = None
        if len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)
        place = (resource.kind, name)
        known = self._known.get(place)
        if known is None or known.uid != uid:
            return
        del self._known[place]
        if resource is NODES:
            self.nodes.pop(name, None)
            self._refresh(self._on_node.get(name, ()))
            return
        if resource is PODS:
            self._drop_pod(name)
        self._forgive(place)
        self.mark(self.index.remove(resource.kind, name))  # type: ignore[arg-type]

    def prune(self, resource: Resource, seen: Collection[str], version: int) -> None:
        """Drop what a complete list, taken at that resourceVersion, no longer had (`seen`: its UIDs)."""
        missing = [
            (name, known.uid)
            for (kind, name), known in self._known.items()
            if kind == resource.kind and known.uid not in seen and known.version <= version
        ]
        for name, uid in missing:
            self.drop(resource, name, uid)

    def heard(self, uid: str, name: str, state: AgentState | None) -> None:
        """What the agent of a pod says; None: it cannot be reached."""
        raw = self.pods.get(name)
        if raw is None or raw["metadata"].get("uid") != uid:
            return
        if state is None:
            self.agents.pop(uid, None)
        else:
            self.agents[uid] = state
        self._refresh((name,))

    def taken(self) -> frozenset[Key]:
        """The keys that changed since the last call."""
        keys, self.dirty = frozenset(self.dirty), set()
        return keys

    def address(self, name: str, uid: str) -> str:
        """Where the agent of a pod listens; empty where it has no address or is another pod."""
        raw = self.pods.get(name)
        return agent_address(raw) if raw is not None and raw["metadata"].get("uid") == uid else ""

    def refresh_waiting(self, key: Key) -> None:
        """Look again at the pods of a Model that do not serve: what is said of those depends on the time."""
        if key.kind == "Model":
            self._refresh([pod.name for pod in self.index.pods_of(key.name) if not pod.ready])

    def _take_pod(self, whole: Raw) -> None:
        raw = essence(whole)
        meta = raw["metadata"]
        name, uid = str(meta["name"]), str(meta.get("uid", ""))
        if name in self.pods:
            self._drop_pod(name, but=uid)
        self.pods[name] = raw
        self._on_node[node_of(raw)].add(name)
        self.address_moved(name, uid)
        self._refresh((name,))

    def _drop_pod(self, name: str, but: str = "") -> None:
        raw = self.pods.pop(name, None)
        if raw is None:
            return
        uid = str(raw["metadata"].get("uid", ""))
        on_node = self._on_node[node_of(raw)]
        on_node.discard(name)
        if not on_node:
            del self._on_node[node_of(raw)]
        if uid != but:
            self.agents.pop(uid, None)
            self.address_moved(name, uid)

    def _take_node(self, raw: Raw) -> None:
        facts = node_facts(raw, self.spot_labels)
        if self.nodes.get(facts.name) != facts:
            self.nodes[facts.name] = facts
            self._refresh(self._on_node.get(facts.name, ()))

    def _take_object(self, resource: Resource, raw: Raw) -> None:
        place = (resource.kind, str(raw["metadata"]["name"]))
        item = read(resource.kind, raw)  # type: ignore[arg-type]
        self._forgive(place)
        if isinstance(item, Refusal):
            key = refusal_key(place)
            self.refusals.setdefault(key, {})[place] = item
            self.mark({key} | self.index.note_unreadable(*place))  # type: ignore[arg-type]
        else:
            self.mark(self.index.upsert(item))

    def _forgive(self, place: Place) -> None:
        key = refusal_key(place)
        refused = self.refusals.get(key, {})
        if refused.pop(place, None) is not None:
            self.mark({key})
        if not refused:
            self.refusals.pop(key, None)

    def _refresh(self, names: Collection[str]) -> None:
        for name in tuple(names):
            raw = self.pods[name]
            agent = self.agents.get(str(raw["metadata"].get("uid", "")))
            facts = pod_facts(raw, self.nodes.get(node_of(raw)), agent, self.clock())
            self.mark(self.index.upsert(facts))

    def mark(self, keys: Collection[Key]) -> None:
        """These keys may have another plan now."""
        if keys:
            self.dirty.update(keys)
            self.moved()


def refusal_key(place: Place) -> Key:
    """The key whose turn writes the refusal of an object; an Adapter's is the one that covers its served name."""
    kind, name = place
    return Key("Model" if kind == "Adapter" else kind, name)  # type: ignore[arg-type]


def node_of(raw: Raw) -> str:
    """The node that a pod runs on, or empty."""
    return str((raw.get("spec") or {}).get("nodeName") or "")


def agent_address(raw: Raw) -> str:
    """Where the agent of a pod listens; empty where the pod has no address or has ended."""
    status = raw.get("status") or {}
    ip = str(status.get("podIP") or "")
    if not ip or status.get("phase") in ("Succeeded", "Failed"):
        return ""
    return f"http://[{ip}]:{AGENT_PORT}" if ":" in ip else f"http://{ip}:{AGENT_PORT}"
