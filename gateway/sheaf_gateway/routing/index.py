"""The predictive prefix index: what each pod's KV cache should hold, from this gateway's own history.

For every pod it keeps the blocks that the pod was sent in least-recently-used order and forgets as many as the pod's
own cache must have evicted, so that a pod is not credited with what it lost. A prompt's end is forgotten before its
beginning, as engines do; so whoever holds a block holds all before it, and a binary search finds how much of a prompt
matches. A pod's engine that starts again begins with nothing. A wrong entry can only make a request slower.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

PodKey = tuple[str, int]


class PrefixIndex:
    """Predicts how many leading blocks of a prompt a pod has cached; holds at most `max_blocks` entries in all."""

    def __init__(self, max_blocks: int = 262_144) -> None:
        self._max = max_blocks
        self._pods: dict[PodKey, OrderedDict[int, None]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def match(self, chain: Sequence[int], pods: Iterable[PodKey]) -> dict[PodKey, int]:
        """Number of leading blocks of `chain` that each (pod name, epoch) should hold; pods with none are left out."""
        found = {}
        for pod in pods:
            held = self._pods.get(pod)
            if held and chain and chain[0] in held:
                found[pod] = _matched(held, chain)
        return found

    def record(self, chain: Sequence[int], pod: PodKey, room: int = 0) -> None:
        """Remember that the pod was sent these blocks; `room` is how many blocks its cache holds (0: unknown)."""
        held = self._pods.get(pod)
        if held is None:
            held = self._pods[pod] = OrderedDict()
        before = len(held)
        most = min(room, self._max) if room > 0 else self._max
        for block in reversed(chain[:most]):
            held[block] = None
            held.move_to_end(block)
        _shrink(held, most)
        self._size += len(held) - before
        while self._size > self._max:
            self._give_up(self._size - self._max)

    def keep(self, pods: Iterable[PodKey]) -> None:
        """Forget every pod and epoch that is not named."""
        alive = set(pods)
        self._pods = {pod: held for pod, held in self._pods.items() if pod in alive}
        self._size = sum(map(len, self._pods.values()))

    def _give_up(self, excess: int) -> None:
        """Make room for all at the cost of the pod that takes most."""
        largest = max(self._pods.values(), key=len)
        count = min(excess, len(largest))
        _shrink(largest, len(largest) - count)
        self._size -= count


def _matched(held: OrderedDict[int, None], chain: Sequence[int]) -> int:
    low, high = 1, len(chain)
    while low < high:
        middle = (low + high + 1) // 2
        if chain[middle - 1] in held:
            low = middle
        else:
            high = middle - 1
    return low


def _shrink(held: OrderedDict[int, None], size: int) -> None:
    while len(held) > size:
        held.popitem(last=False)
