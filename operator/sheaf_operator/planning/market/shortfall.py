"""How much of the load is expected to find no replica: over the loads of late and what the market may take meanwhile.

Loads are in replicas' worth. A pod on spot is away for a share of its time: losses an hour by the time that a new one
takes to serve. Pods of one zone are taken together, zones apart from each other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """Pods that are taken together: how many, and for what share of the time they are away (0 to 1)."""

    count: int
    away: float


def unserved(loads: Sequence[float], most: int) -> tuple[float, ...]:
    """Mean load, in replicas' worth, beyond what 0, 1 .. `most` replicas serve; 0 without loads."""
    number = max(1, len(loads))
    return tuple(sum(load - serving for load in loads if load > serving) / number for serving in range(most + 1))


def expected(beyond: Sequence[float], firm: int, groups: Iterable[Group]) -> float:
    """Mean load beyond what serves, with `firm` replicas that are never away and groups that are at times.

    It falls with every replica more, and by ever less where groups are of one pod each.

    Args:
        beyond: load beyond what 0, 1, .. replicas serve; of more as many as its last.
        firm: replicas that are never away.
        groups: the others.
    """
    last = len(beyond) - 1
    return sum(chance * beyond[min(firm + count, last)] for count, chance in _serving(groups).items())


def _serving(groups: Iterable[Group]) -> dict[int, float]:
    """How many pods of all groups serve, and how likely."""
    found = {0: 1.0}
    for group in groups:
        after: dict[int, float] = {}
        for count, chance in found.items():
            after[count + group.count] = after.get(count + group.count, 0.0) + chance * (1.0 - group.away)
            after[count] = after.get(count, 0.0) + chance * group.away
        found = after
    return found
