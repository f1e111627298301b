"""Which adapters are kept loaded on which pods of a Model.

Rendezvous hashing with bounded loads (Thaler and Ravishankar 1998; Mirrokni, Thorup and Zadimoghaddam 2018): every
adapter ranks the pods by a hash of both names and takes the first ones with room. The result is a function of the
adapters, the pods and their capacity only, not of the way there: a restarted operator, or one that cannot reach an
agent, places as before, and a pod that comes or goes moves little more than its own share. Higher priority chooses
first; within a priority every adapter gets its first replica before any gets its second.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_MASK = (1 << 64) - 1
_SLACK = 8


@dataclass(frozen=True, slots=True)
class Want:
    """An adapter, the replicas that should hold it, and its priority (higher goes first)."""

    adapter: str
    replicas: int
    priority: int = 0


def place(wants: Iterable[Want], capacity: Mapping[str, int]) -> dict[str, frozenset[str]]:
    """The adapters that each pod keeps loaded.

    Args:
        wants: adapters of one Model, each name once.
        capacity: adapters that each pod may hold, by pod name.

    Returns:
        For every pod the names placed on it, never more than its capacity. An adapter short of replicas means that
        every other pod is full of adapters of its priority or higher.
    """
    pods = sorted(capacity)
    rounds = _rounds(wants, len(pods))
    bound = _soft_bound(len(rounds), len(pods))
    held: dict[str, set[str]] = {pod: set() for pod in pods}
    hashes = {pod: _hash(pod) for pod in pods}
    for adapter in rounds:
        room = [pod for pod in pods if adapter not in held[pod] and len(held[pod]) < capacity[pod]]
        if room:
            held[_choose(adapter, room, held, hashes, bound)].add(adapter)
    return {pod: frozenset(adapters) for pod, adapters in held.items()}


def _rounds(wants: Iterable[Want], pods: int) -> Sequence[str]:
    """Adapters in the order in which they choose, once for each replica."""
    turns = ((-want.priority, turn, want.adapter) for want in wants for turn in range(min(want.replicas, pods)))
    return [adapter for _, _, adapter in sorted(turns)]


def _soft_bound(placements: int, pods: int) -> int:
    """Adapters on a pod beyond which another one is preferred: the average, and an eighth to keep movement small."""
    average = placements / pods if pods else 0
    return math.ceil(average) + int(average) // _SLACK


def _choose(
    adapter: str, room: Sequence[str], held: Mapping[str, set[str]], hashes: Mapping[str, int], bound: int
) -> str:
    own = _hash(adapter)
    below = [pod for pod in room if len(held[pod]) < bound]
    if below:
        return max(below, key=lambda pod: (_mix(own ^ hashes[pod]), pod))
    return min(room, key=lambda pod: (len(held[pod]), _mix(own ^ hashes[pod]), pod))


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _mix(value: int) -> int:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
