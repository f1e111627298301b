"""How the replicas of a Model are split between on-demand and spot capacity.

A function of what is declared and of which spot pods wait in vain; so the split is the same after every restart. The
first `onDemandFloor` replicas are on-demand. With policy Preferred, a spot pod that finds no capacity for a while keeps
waiting for it, and an on-demand pod stands in until the spot pod has a node. Spares that are declared come on top, at
most as many as replicas on spot; while one of them is there, one pod that waits needs no stand-in.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sheaf_crds.model import Spot

from sheaf_operator.planning.snapshot import PodFacts

SPOT_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Split:
    """How many pods there should be of each sort.

    `stand_ins` of the on-demand ones and `spares` of the spot ones are beyond the wanted replicas.
    """

    on_demand: int
    spot: int
    stand_ins: int = 0
    spares: int = 0


def split(declared: Spot, replicas: int, waiting: int) -> Split:
    """The split of so many replicas, of which so many spot pods wait in vain."""
    if declared.policy == "Never":
        return Split(replicas, 0)
    floor = 0 if declared.policy == "Required" else min(declared.on_demand_floor, replicas)
    needed = replicas - floor
    spares = min(declared.over_provision or 0, needed)
    stand_ins = 0 if declared.policy == "Required" else min(max(0, waiting - spares), needed)
    return Split(floor + stand_ins, needed + spares, stand_ins, spares)


def waiting_in_vain(pods: Iterable[PodFacts], spot_hash: str, now: float) -> int:
    """Spot pods of the current template that have found no node for SPOT_PATIENCE seconds."""
    return sum(_unschedulable(pod, spot_hash) and now >= pod.created_at + SPOT_PATIENCE for pod in pods)


def patience_ends(pods: Iterable[PodFacts], spot_hash: str) -> list[float]:
    """When spot pods without a node begin to count as waiting in vain (Unix seconds)."""
    return [pod.created_at + SPOT_PATIENCE for pod in pods if _unschedulable(pod, spot_hash)]


def _unschedulable(pod: PodFacts, spot_hash: str) -> bool:
    waits = pod.live and not pod.ready and pod.reason == "Unschedulable"
    return waits and pod.template_hash == spot_hash
