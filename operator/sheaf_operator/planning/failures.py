"""When a pod that failed for good (evicted, refused by its node) is replaced, and when it is cleared away.

A pod that fails soon after its creation keeps its place for a while, so that replacing it does not spin: first
FAILED_POD_AGE seconds from its creation, then as long as its Model has been failing already (which doubles from try to
try), at most LONGEST_WAIT. Since when it has been failing is told by the oldest failed pod, which stays as the record,
for people too, until enough pods serve again. So the delay needs no memory but the pods themselves.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sheaf_operator.planning.snapshot import PodFacts

FAILED_POD_AGE = 10.0
LONGEST_WAIT = 300.0


@dataclass(frozen=True, slots=True)
class Failures:
    """The failed pods of a Model: those that hold their place until `replaced_at`, and those to clear away."""

    holding: Sequence[PodFacts]
    spent: Sequence[PodFacts]
    replaced_at: Sequence[float] = ()


def failures(pods: Collection[PodFacts], hashes: Collection[str], now: float, *, recovered: bool) -> Failures:
    """Sort a Model's failed pods.

    Args:
        pods: every pod of the Model.
        hashes: of the templates that are wanted; failed pods of others are cleared away at once.
        now: Unix seconds.
        recovered: whether enough pods serve.
    """
    failed = [pod for pod in pods if pod.phase == "Failed"]
    current = [pod for pod in failed if pod.template_hash in hashes]
    delay = _delay(current)
    holding = [pod for pod in current if now < pod.created_at + delay]
    record = min((pod for pod in current if not recovered), key=_failed_at, default=None)
    spent = [pod for pod in failed if pod not in holding and pod is not record]
    return Failures(holding, spent, [pod.created_at + delay for pod in holding])


def _delay(failed: Collection[PodFacts]) -> float:
    since = min((pod.ended_at or pod.created_at for pod in failed), default=0.0)
    newest = max((pod.created_at for pod in failed), default=0.0)
    return min(LONGEST_WAIT, max(FAILED_POD_AGE, newest - since))


def _failed_at(pod: PodFacts) -> tuple[float, str]:
    return pod.ended_at or pod.created_at, pod.name
