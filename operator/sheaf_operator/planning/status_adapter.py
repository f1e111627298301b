"""What is said of an Adapter: where it is loaded, as the agents of those pods verified it, and where it should be.

Copies that requests loaded elsewhere come and go with the traffic; they are not listed, so that traffic causes no
writes, and count only up to the wanted number, while an adapter moves.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sheaf_crds import Adapter, AdapterStatus, Placement
from sheaf_crds.agent_api import AdapterState

from sheaf_operator.planning.catalogs import holds
from sheaf_operator.planning.conditions import Verdict, conditions
from sheaf_operator.planning.refs import Finding
from sheaf_operator.planning.snapshot import PodFacts
from sheaf_operator.planning.words import counted, share

MOST_PLACEMENTS = 256
LONGEST_MESSAGE = 256


@dataclass(frozen=True, slots=True)
class PodNames:
    """The pods of a Model that may hold adapters (all that stay, at least for a while), and those that serve."""

    live: frozenset[str] = frozenset()
    serving: frozenset[str] = frozenset()

    @classmethod
    def of(cls, pods: Iterable[PodFacts]) -> "PodNames":
        """Sort the pods of a Model."""
        there = [pod for pod in pods if pod.live or pod.bides]
        return cls(frozenset(pod.name for pod in there), frozenset(pod.name for pod in there if pod.ready))


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What an Adapter's status is computed from.

    `placed` are the names of the pods that should keep it loaded (while pods start or go, more than `wished`), `wished`
    the replicas that should hold it where there is room, `model_replicas` how many pods its Model should have.
    """

    adapter: Adapter
    pods: PodNames
    placed: frozenset[str] = frozenset()
    wished: int = 0
    model_replicas: int = 0
    finding: Finding | None = None

    @property
    def declared(self) -> int:
        """Pods that have to hold it now for it to be as declared."""
        return min(self.adapter.spec.replicas, len(self.placed))

    @property
    def desired(self) -> int:
        """Pods that should hold it now."""
        return min(self.wished, len(self.placed))


def adapter_status(
    facts: AdapterFacts, states: Mapping[str, AdapterState], now: float
) -> tuple[AdapterStatus, Verdict]:
    """The status to store, and the verdict on Ready in it.

    Args:
        facts: the adapter, its Model's live pods, and where it should be.
        states: what the agent of each pod says of the adapter, by pod name; pods that say nothing are left out.
        now: Unix seconds.
    """
    placements = _placements(facts, states)
    resident = _resident(facts, states)
    ready = _ready(facts, placements, resident, states)
    generation = facts.adapter.metadata.generation
    status = AdapterStatus(
        observed_generation=generation,
        conditions=conditions(facts.adapter.status, (ready,), generation, now),
        ready_replicas=min(resident, facts.desired),
        desired_replicas=facts.desired,
        placements=_bounded(placements),
    )
    return status, ready


def _resident(facts: AdapterFacts, states: Mapping[str, AdapterState]) -> int:
    """Serving pods that hold the declared content."""
    serving = facts.pods.serving
    return sum(name in serving and holds(state, facts.adapter.spec.digest) for name, state in states.items())


def _placements(facts: AdapterFacts, states: Mapping[str, AdapterState]) -> list[Placement]:
    """The pods that should hold it, and those that could not load it for a request."""
    told = facts.placed | {name for name, state in states.items() if state.state == "Failed"}
    return [_placement(facts, name, states.get(name)) for name in sorted(told & facts.pods.live)]


def _placement(facts: AdapterFacts, pod: str, state: AdapterState | None) -> Placement:
    if state is None:
        return Placement(pod=pod, state="Pending")
    if state.state == "Resident" and not holds(state, facts.adapter.spec.digest):
        return Placement(pod=pod, state="Loading", digest=state.digest, message="an older content is still loaded")
    return Placement(pod=pod, state=state.state, digest=state.digest, message=state.message[:LONGEST_MESSAGE])


def _bounded(placements: Sequence[Placement]) -> tuple[Placement, ...]:
    """As many as a status may hold; where that is not all, those with trouble first."""
    if len(placements) <= MOST_PLACEMENTS:
        return tuple(placements)
    order = {"Failed": 0, "Loading": 1, "Pending": 2, "Resident": 3}
    worst = sorted(placements, key=lambda placement: (order[placement.state], placement.pod))[:MOST_PLACEMENTS]
    return tuple(sorted(worst, key=lambda placement: placement.pod))


def _ready(
    facts: AdapterFacts, placements: Iterable[Placement], resident: int, states: Mapping[str, AdapterState]
) -> Verdict:
    if facts.finding:
        return Verdict("Ready", "False", facts.finding.reason, facts.finding.message, alarming=True)
    failed = [placement for placement in placements if placement.state == "Failed"]
    if failed and resident < max(1, facts.declared):
        first = failed[0]
        reason = states[first.pod].reason or "LoadFailed"
        return Verdict("Ready", "False", reason, f"{first.pod}: {first.message}", alarming=True)
    return _ready_by_count(facts, resident)


def _ready_by_count(facts: AdapterFacts, resident: int) -> Verdict:
    if not facts.pods.live:
        return _without_pods(facts)
    if facts.declared < min(facts.adapter.spec.replicas, len(facts.pods.live)):
        placed = share(facts.declared, facts.adapter.spec.replicas, "replica")
        message = f"placed on {placed}; the others are full of adapters of the same"
        mend = "or a higher priority; raise lora.maxAdapters of the Model, its replicas, or this priority"
        return Verdict("Ready", "False", "CapacityExceeded", f"{message} {mend}", alarming=True)
    if not facts.declared:
        return Verdict("Ready", "True", "OnDemand", "it is loaded when a request comes")
    if resident >= facts.declared:
        return Verdict("Ready", "True", "Resident", f"resident on {counted(min(resident, facts.desired), 'replica')}")
    return Verdict("Ready", "False", "Loading", f"resident on {share(resident, facts.declared, 'replica')}")


def _without_pods(facts: AdapterFacts) -> Verdict:
    model = facts.adapter.spec.model_ref.name
    if facts.model_replicas:
        return Verdict("Ready", "False", "Loading", f"no replica of Model {model} is there yet")
    return Verdict("Ready", "True", "NoReplicas", f"Model {model} has no replicas; it is loaded when there are")
