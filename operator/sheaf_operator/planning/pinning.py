"""Which adapters each pod of a Model keeps loaded: the declared replicas first, then what helps where there is room.

Pods that serve share the adapters among themselves; a pod that is still starting prepares its share of the whole. So an
adapter leaves a serving pod only when the pod that takes it over serves too. Beyond the declared replicas an adapter is
kept on further pods where it could not be loaded for a reason of the pod (not of the adapter, which would fail
everywhere), and where it is popular. What is further goes behind everybody's declared replicas, and moves none of them.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sheaf_crds import Adapter, Model
from sheaf_crds.agent_api import AdapterState

from sheaf_operator.planning.engine import lora_capacity
from sheaf_operator.planning.placement import Shelves, Want, place
from sheaf_operator.planning.popularity import wished_replicas
from sheaf_operator.planning.snapshot import PodFacts

REASONS_OF_THE_POD = frozenset(
    {"AgentError", "CapacityExceeded", "DiskFull", "EngineRefused", "EngineUnreachable", "SourceUnreachable"}
)
SECOND_TRIES = 2
FREE_FOR_DEMAND = 1

States = Mapping[str, Mapping[str, AdapterState]]


@dataclass(frozen=True, slots=True)
class Pinning:
    """The adapters that each pod that is there keeps loaded, the pods of each adapter, and how many it is wished on."""

    by_pod: Mapping[str, frozenset[str]]
    by_adapter: Mapping[str, frozenset[str]]
    wished: Mapping[str, int]


def pinning(model: Model, adapters: Sequence[Adapter], pods: Iterable[PodFacts]) -> Pinning:
    """Where the adapters of a Model are kept loaded.

    Args:
        model: the Model.
        adapters: its Adapters, those that can be served.
        pods: every pod of the Model.
    """
    there = [pod for pod in pods if pod.live or pod.bides]
    serving = [pod for pod in there if pod.ready]
    declared = [Want(adapter.name, adapter.spec.replicas, adapter.spec.priority) for adapter in adapters]
    starting = {} if len(there) == len(serving) else place(declared, _capacities(model, there))
    shelves = Shelves(_capacities(model, serving))
    shelves.fill(declared)
    states = states_of(serving)
    _try_elsewhere(shelves, adapters, states)
    wished = {adapter.name: wished_replicas(adapter, states.get(adapter.name, {}).values()) for adapter in adapters}
    extra = [Want(one.name, wished[one.name] - one.spec.replicas, one.spec.priority) for one in adapters]
    shelves.fill([want for want in extra if want.replicas > 0], spare=FREE_FOR_DEMAND)
    by_pod = starting | shelves.held()
    return Pinning(by_pod, _by_adapter(by_pod), wished)


def states_of(pods: Iterable[PodFacts]) -> States:
    """What each pod's agent says of each adapter: adapter name to pod name to state."""
    states: dict[str, dict[str, AdapterState]] = defaultdict(dict)
    for pod in pods:
        for state in pod.agent.adapters if pod.agent else ():
            states[state.name][pod.name] = state
    return states


def _try_elsewhere(shelves: Shelves, adapters: Sequence[Adapter], states: States) -> None:
    """Place what failed for a reason of its pod on another one as well; where it failed, it is tried again too."""
    failed: dict[str, set[str]] = defaultdict(set)
    for name, pod in ((name, pod) for name, on in states.items() for pod, state in on.items() if _pods_fault(state)):
        failed[name].add(pod)
    unlucky = [adapter for adapter in adapters if adapter.name in failed]
    for _ in range(SECOND_TRIES):
        wants = [Want(one.name, _failures(shelves, one, failed[one.name]), one.spec.priority) for one in unlucky]
        shelves.fill([Want(want.adapter, 1, want.priority) for want in wants if want.replicas > 0])


def _failures(shelves: Shelves, adapter: Adapter, failed: set[str]) -> int:
    """Declared replicas for which no pod is left where it did not fail."""
    holders = shelves.holders(adapter.name)
    return min(adapter.spec.replicas, len(holders)) - len(set(holders) - failed)


def _pods_fault(state: AdapterState) -> bool:
    return state.state == "Failed" and state.reason in REASONS_OF_THE_POD


def _by_adapter(by_pod: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
    holders: dict[str, set[str]] = defaultdict(set)
    for pod, names in by_pod.items():
        for name in names:
            holders[name].add(pod)
    return {name: frozenset(pods) for name, pods in holders.items()}


def _capacities(model: Model, pods: Iterable[PodFacts]) -> Mapping[str, int]:
    declared = lora_capacity(model.spec)
    return {pod.name: pod.agent.capacity if pod.agent and pod.agent.capacity else declared for pod in pods}
