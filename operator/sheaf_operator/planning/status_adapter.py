"""What is said of an Adapter: where it is loaded, as the agents of those pods verified it, and where it should be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sheaf_crds import Adapter, AdapterStatus, Placement
from sheaf_crds.agent_api import AdapterState

from sheaf_operator.planning.catalogs import holds
from sheaf_operator.planning.conditions import Verdict, conditions
from sheaf_operator.planning.refs import Finding
from sheaf_operator.planning.snapshot import PodFacts

MOST_PLACEMENTS = 256


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What an Adapter's status is computed from.

    `placed` are the names of the pods that should keep it loaded (while pods start or go, more than `replicas`),
    `pods` the live ones of its Model, `model_replicas` how many of them there should be.
    """

    adapter: Adapter
    pods: Sequence[PodFacts]
    placed: frozenset[str] = frozenset()
    replicas: int = 0
    model_replicas: int = 0
    finding: Finding | None = None

    @property
    def desired(self) -> int:
        """Pods that should hold it now."""
        return min(self.replicas, len(self.placed))


def adapter_status(
    facts: AdapterFacts, states: Mapping[str, AdapterState], now: float
) -> tuple[AdapterStatus, Verdict]:
    """The status to store, and the verdict on Ready in it.

    Args:
        facts: the adapter, its Model's live pods, and where it should be.
        states: what the agent of each pod says of the adapter, by pod name; pods that say nothing are left out.
        now: Unix seconds.
    """
    found = [_placement(facts, pod, states.get(pod.name)) for pod in sorted(facts.pods, key=lambda pod: pod.name)]
    placements = [placement for placement in found if placement]
    serving = {pod.name for pod in facts.pods if pod.serving}
    resident = sum(placement.state == "Resident" and placement.pod in serving for placement in placements)
    ready = _ready(facts, placements, resident, states)
    generation = facts.adapter.metadata.generation
    status = AdapterStatus(
        observed_generation=generation,
        conditions=conditions(facts.adapter.status, (ready,), generation, now),
        ready_replicas=resident,
        desired_replicas=facts.desired,
        placements=tuple(placements[:MOST_PLACEMENTS]),
    )
    return status, ready


def _placement(facts: AdapterFacts, pod: PodFacts, state: AdapterState | None) -> Placement | None:
    if state is None:
        return Placement(pod=pod.name, state="Pending") if pod.name in facts.placed else None
    if state.state == "Resident" and not holds(state, facts.adapter.spec.digest):
        return Placement(pod=pod.name, state="Loading", digest=state.digest, message="an older content is still loaded")
    return Placement(pod=pod.name, state=state.state, digest=state.digest, message=state.message[:4096])


def _ready(
    facts: AdapterFacts, placements: Sequence[Placement], resident: int, states: Mapping[str, AdapterState]
) -> Verdict:
    if facts.finding:
        return Verdict("Ready", "False", facts.finding.reason, facts.finding.message, alarming=True)
    failed = [placement for placement in placements if placement.state == "Failed"]
    if failed and resident < max(1, facts.desired):
        first = failed[0]
        reason = states[first.pod].reason or "LoadFailed"
        return Verdict("Ready", "False", reason, f"{first.pod}: {first.message}", alarming=True)
    return _ready_by_count(facts, resident)


def _ready_by_count(facts: AdapterFacts, resident: int) -> Verdict:
    if not facts.pods:
        return _without_pods(facts)
    if facts.desired < min(facts.replicas, len(facts.pods)):
        message = f"placed on {facts.desired} of {facts.replicas} replicas; the others are full of adapters of the same"
        mend = "or a higher priority; raise lora.maxAdapters of the Model, its replicas, or this priority"
        return Verdict("Ready", "False", "CapacityExceeded", f"{message} {mend}", alarming=True)
    if not facts.desired:
        return Verdict("Ready", "True", "OnDemand", "it is loaded when a request comes")
    if resident >= facts.desired:
        return Verdict("Ready", "True", "Resident", f"resident on {resident} replicas")
    return Verdict("Ready", "False", "Loading", f"resident on {resident} of {facts.desired} replicas")


def _without_pods(facts: AdapterFacts) -> Verdict:
    model = facts.adapter.spec.model_ref.name
    if facts.model_replicas:
        return Verdict("Ready", "False", "Loading", f"no replica of Model {model} is there yet")
    return Verdict("Ready", "True", "NoReplicas", f"Model {model} has no replicas; it is loaded when there are")
