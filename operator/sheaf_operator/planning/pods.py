"""Which pods of a Model to start and which to let go.

Rules: never fewer serving pods than there are now or than wanted, whichever is less; at most one pod above the wanted
number while a new template rolls out; those that do not serve go first, then those that hold the fewest adapters,
then the youngest. A pod that serves is drained before it is deleted. A pod that drains for another reason (a spot
notice) is no longer counted, so its replacement is started at once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sheaf_operator.planning.actions import Action, CreatePod, DeletePod, DrainPod, PodTemplate
from sheaf_operator.planning.snapshot import PodFacts
from sheaf_operator.planning.template import pod_names

SURGE = 1
FAILED_POD_AGE = 10.0
DRAIN_LINGER = 2.0

Settled = Callable[[PodFacts], bool]


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many pods of which template, and for how long those that go may drain (seconds)."""

    template: PodTemplate
    replicas: int
    drain_seconds: float


def plan_pods(wanted: Wanted, pods: Sequence[PodFacts], settled: Settled, now: float) -> list[Action]:
    """Repairs, removals and creations for the pods of one Model.

    Args:
        wanted: what should run.
        pods: every pod of the Model.
        settled: whether a pod serves and has loaded what it should hold; a new pod counts as capacity from then on.
        now: Unix seconds.
    """
    live = [pod for pod in pods if pod.live or _cooling(pod, now)]
    current = [pod for pod in live if pod.template_hash == wanted.template.hash]
    outdated = [pod for pod in live if pod.template_hash != wanted.template.hash]
    removals = _removals(wanted, current, outdated, settled)
    actions = finish(pods, wanted.drain_seconds, now)
    actions += [retire(pod, wanted.drain_seconds, reason) for pod, reason in removals]
    return actions + _creations(wanted, pods, current, len(live) - len(removals))


def finish(pods: Iterable[PodFacts], drain_seconds: float, now: float) -> list[Action]:
    """Delete pods that failed for good or have drained."""
    failed = [pod for pod in pods if pod.phase == "Failed" and not _cooling(pod, now)]
    actions: list[Action] = [DeletePod(pod.name, pod.uid, f"it failed: {pod.message or pod.reason}") for pod in failed]
    gone = [pod for pod in pods if pod.draining and pod.phase not in ("Terminating", "Failed")]
    return actions + [
        DeletePod(pod.name, pod.uid, "it has drained") for pod in gone if drained(pod, drain_seconds, now)
    ]


def drained(pod: PodFacts, drain_seconds: float, now: float) -> bool:
    """Whether nothing runs there any more and everyone has heard of it, or its time is up."""
    if pod.agent is None or now >= pod.agent.drain_deadline:
        return True
    idle = pod.agent.load.running + pod.agent.load.waiting == 0
    return idle and now >= pod.agent.drain_deadline - drain_seconds + DRAIN_LINGER


def retire(pod: PodFacts, drain_seconds: float, reason: str) -> Action:
    """Drain a pod that serves; delete one that does not."""
    if pod.serving and pod.agent is not None and drain_seconds > 0:
        return DrainPod(pod.name, pod.uid, drain_seconds, reason)
    return DeletePod(pod.name, pod.uid, reason)


def wake_times(pods: Iterable[PodFacts], drain_seconds: float, now: float) -> list[float]:
    """When time alone changes what to do with these pods (Unix seconds, all later than now)."""
    deadlines = [pod.agent.drain_deadline for pod in pods if pod.agent is not None and pod.agent.draining]
    lingers = [deadline - drain_seconds + DRAIN_LINGER for deadline in deadlines]
    retries = [pod.created_at + FAILED_POD_AGE for pod in pods if pod.phase == "Failed"]
    return [time for time in (*deadlines, *lingers, *retries) if time > now]


def _cooling(pod: PodFacts, now: float) -> bool:
    """A pod that failed as soon as it was made keeps its place for a while, so that replacing it does not spin."""
    return pod.phase == "Failed" and now < pod.created_at + FAILED_POD_AGE


def _removals(
    wanted: Wanted, current: Sequence[PodFacts], outdated: Sequence[PodFacts], settled: Settled
) -> list[tuple[PodFacts, str]]:
    """Outdated pods go as far as new ones have taken over, surplus pods as far as others serve."""
    old = _affordable(_expendable(outdated), sum(map(settled, current)) + _serving(outdated) - wanted.replicas)
    surplus = _expendable(current)[: max(0, len(current) - wanted.replicas)]
    others = _serving(current) + _serving(outdated) - _serving(old)
    extra = _affordable(surplus, others - wanted.replicas)
    too_many = f"{wanted.replicas} replicas are wanted"
    return [(pod, "its template is outdated") for pod in old] + [(pod, too_many) for pod in extra]


def _affordable(pods: Sequence[PodFacts], spare: int) -> list[PodFacts]:
    """All that do not serve, and of those that serve as many as can be spared."""
    idle = [pod for pod in pods if not pod.serving]
    return idle + [pod for pod in pods if pod.serving][: max(0, spare)]


def _serving(pods: Iterable[PodFacts]) -> int:
    return sum(pod.serving for pod in pods)


def _expendable(pods: Sequence[PodFacts]) -> list[PodFacts]:
    """The pods in the order in which their loss is felt least."""
    return sorted(pods, key=lambda pod: (pod.serving, _adapters(pod), -pod.created_at, pod.name))


def _adapters(pod: PodFacts) -> int:
    return sum(state.state == "Resident" for state in pod.agent.adapters) if pod.agent else 0


def _creations(wanted: Wanted, pods: Sequence[PodFacts], current: Sequence[PodFacts], remaining: int) -> list[Action]:
    missing = wanted.replicas - len(current)
    room = wanted.replicas + SURGE - remaining
    if missing <= 0 or room <= 0:
        return []
    rolls = remaining > len(current)
    reason = "a new template rolls out" if rolls else f"{wanted.replicas} replicas are wanted, {len(current)} are there"
    names = pod_names(wanted.template, (pod.name for pod in pods), min(missing, room))
    return [CreatePod(name, wanted.template, reason) for name in names]
