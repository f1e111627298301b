"""The predictive prefix index: which pod was sent which blocks, from this gateway's own history.

One bounded map in least-recently-used order from block hash to the set of pods that were sent it, held as
bits of an integer, so that one walk over a chain matches every pod at once (contiguous from the start: a bit
that is lost is lost for good). A pod's engine that starts again gets a new bit, so that nothing of an older
epoch matches. A wrong entry can only make a request slower.
"""

from collections.abc import Iterable, Sequence

PodKey = tuple[str, int]

_SWEEP_AT = 256


class PrefixIndex:
    """Predicts how many leading blocks of a prompt a pod has cached; holds at most `max_blocks` blocks."""

    def __init__(self, max_blocks: int = 262_144) -> None:
        self._max = max_blocks
        self._blocks: dict[int, int] = {}
        self._bits: dict[PodKey, int] = {}
        self._retired = 0
        self._next = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def match(self, chain: Sequence[int], pods: Iterable[PodKey]) -> dict[PodKey, int]:
        """Number of leading blocks of `chain` that each (pod name, epoch) was sent."""
        alive = {bit: pod for pod in pods if (bit := self._bits.get(pod)) is not None}
        matched: dict[PodKey, int] = {}
        mask = sum(alive)
        depth = 0
        for depth, block in enumerate(chain):
            kept = mask & self._blocks.get(block, 0)
            if kept != mask:
                _settle(matched, alive, mask & ~kept, depth)
                mask = kept
                if not mask:
                    return matched
        _settle(matched, alive, mask, depth + 1 if chain else 0)
        return matched

    def record(self, chain: Sequence[int], pod: PodKey) -> None:
        """Remember that the pod was sent these blocks; the oldest blocks leave where there is no room."""
        bit = self._bit(pod)
        blocks = self._blocks
        for block in reversed(chain[: self._max]):
            blocks[block] = blocks.pop(block, 0) | bit
        while len(blocks) > self._max:
            del blocks[next(iter(blocks))]

    def keep(self, pods: Iterable[PodKey]) -> None:
        """Forget every pod and epoch that is not named."""
        alive = set(pods)
        for pod in [pod for pod in self._bits if pod not in alive]:
            del self._bits[pod]
            self._retired += 1
        if self._retired >= _SWEEP_AT:
            self._sweep()

    def _bit(self, pod: PodKey) -> int:
        bit = self._bits.get(pod)
        if bit is None:
            bit = self._bits[pod] = 1 << self._next
            self._next += 1
        return bit

    def _sweep(self) -> None:
        renamed = {bit: 1 << place for place, bit in enumerate(self._bits.values())}
        for block, mask in list(self._blocks.items()):
            kept = sum(new for old, new in renamed.items() if mask & old)
            if kept:
                self._blocks[block] = kept
            else:
                del self._blocks[block]
        self._bits = {pod: renamed[bit] for pod, bit in self._bits.items()}
        self._next, self._retired = len(self._bits), 0


def _settle(matched: dict[PodKey, int], alive: dict[int, PodKey], lost: int, depth: int) -> None:
    while lost:
        bit = lost & -lost
        matched[alive[bit]] = depth
        lost ^= bit
