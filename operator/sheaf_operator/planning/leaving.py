"""How a pod goes: drained while it serves, deleted when nothing runs there any more or its time is up."""

from collections.abc import Iterable

from sheaf_operator.planning.actions import Action, DeletePod, DrainPod
from sheaf_operator.planning.snapshot import Notice, PodFacts

DRAIN_LINGER = 2.0


def retire(pod: PodFacts, drain_seconds: float, reason: str) -> Action:
    """Drain a pod that answers; delete one that does not."""
    if pod.answers and pod.agent is not None and drain_seconds > 0:
        return DrainPod(pod.name, pod.uid, drain_seconds, reason)
    return DeletePod(pod.name, pod.uid, reason)


def clear(failed: Iterable[PodFacts]) -> list[Action]:
    """Delete pods that failed for good."""
    return [DeletePod(pod.name, pod.uid, f"it failed: {pod.message or pod.reason}") for pod in failed]


def see_off(pods: Iterable[PodFacts], drain_seconds: float, now: float, *, replaced: bool) -> list[Action]:
    """What is due for the pods that have to go already: those that drain, and those under notice.

    Args:
        pods: every pod of a Model.
        drain_seconds: how long a pod may drain.
        now: Unix seconds.
        replaced: whether enough other pods serve. A pod that answers, and of which nobody says when it has to be gone,
            stays until then.
    """
    going = [pod for pod in pods if not pod.ended]
    gone = [pod for pod in going if pod.draining and drained(pod, drain_seconds, now)]
    actions: list[Action] = [DeletePod(pod.name, pod.uid, "it has drained") for pod in gone]
    noticed = [(pod, pod.notice) for pod in going if pod.notice is not None and not pod.draining]
    return actions + [_heed(pod, notice, drain_seconds, now) for pod, notice in noticed if replaced or not pod.bides]


def drained(pod: PodFacts, drain_seconds: float, now: float) -> bool:
    """Whether nothing runs there any more and everyone has heard of it, or its time is up."""
    if pod.agent is None or now >= pod.agent.drain_deadline:
        return True
    idle = pod.agent.load.running + pod.agent.load.waiting == 0
    return idle and now >= pod.agent.drain_deadline - drain_seconds + DRAIN_LINGER


def drain_times(pods: Iterable[PodFacts], drain_seconds: float) -> list[float]:
    """When time alone changes what to do with pods that drain (Unix seconds)."""
    deadlines = [pod.agent.drain_deadline for pod in pods if pod.agent is not None and pod.draining]
    return deadlines + [deadline - drain_seconds + DRAIN_LINGER for deadline in deadlines]


def _heed(pod: PodFacts, notice: Notice, drain_seconds: float, now: float) -> Action:
    """Drain a pod under notice within what is left of its time."""
    left = drain_seconds if notice.deadline is None else min(drain_seconds, notice.deadline - now)
    return retire(pod, left, f"{notice.reason}: {notice.message or notice.source}")
