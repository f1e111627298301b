"""What each pod's KV cache should hold, in two tiers.

**Predicted**, from this gateway's own history: for every pod the blocks that it was sent in least-recently-used order;
as many are forgotten as the pod's own cache must have evicted, so that a pod is not credited with what it lost. A
prompt's end is forgotten before its beginning, as engines do; so whoever holds a block holds all before it, and a
binary search finds how much of a prompt matches.

**Announced** by the engine itself (see `blocks`), where its events are heard. What was sent is then only expected: once
the pod has answered and its events had time to come, what they did not confirm is forgotten again (`settle`). That is
done only while the events confirm what they should: an engine that renders otherwise than the gateway believes, or
whose earlier events were missed, is predicted as before, and what it announced is added.

A pod's engine that starts again begins with nothing. A wrong entry can only make a request slower.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import msgspec

from sheaf_gateway.routing.blocks import NOTHING, Blocks, Depth
from sheaf_gateway.routing.prefix import leading

PodKey = tuple[str, int]
Held = OrderedDict[int, None]

_EVIDENCE = 3
_TRUSTED = 0.5
_RATE = 0.2
_NOTHING_HELD: Held = OrderedDict()


class Announced(msgspec.Struct):
    """What one engine announced, and how much of what it was sent its events confirm (`trust`, from 0 to 1)."""

    blocks: Blocks
    trust: float = 0.0


class PrefixIndex:
    """Predicts how many leading blocks of a prompt a pod has cached; holds at most `max_blocks` entries in all, and as
    many announced KV blocks."""

    def __init__(self, max_blocks: int = 262_144) -> None:
        self._max = max_blocks
        self._pods: dict[PodKey, Held] = {}
        self._size = 0
        self.announced: dict[PodKey, Announced] = {}

    def __len__(self) -> int:
        return self._size

    def match(self, chain: Sequence[int], pods: Sequence[PodKey]) -> dict[PodKey, int]:
        """Number of leading blocks of `chain` that each (pod name, epoch) should hold; pods with none are left out."""
        depths = self.depths(chain, [self._pods.get(pod, _NOTHING_HELD) for pod in pods], pods)
        return {pod: depth for pod, depth in zip(pods, depths, strict=False) if depth}

    def history(self, pod: PodKey) -> Held:
        """What the pod was sent, the least recently used first; valid until `keep` leaves it out."""
        held = self._pods.get(pod)
        if held is None:
            held = self._pods[pod] = OrderedDict()
        return held

    def depths(self, chain: Sequence[int], histories: Sequence[Held], pods: Sequence[PodKey]) -> list[int]:
        """Number of leading blocks of `chain` that each pod should hold, by their histories; empty: none holds any."""
        if not chain:
            return []
        found: list[int] = []
        first, whole = chain[0], len(chain)
        guess = whole
        for held in histories:
            if first not in held:
                found.append(0)
                continue
            if chain[guess - 1] not in held or (guess < whole and chain[guess] in held):
                guess = leading(held, chain, 1)
            found.append(guess)
        return self._with_announced(chain, pods, found) if self.announced else found

    def record(self, chain: Sequence[int], pod: PodKey, room: int = 0) -> None:
        """Remember that the pod was sent these blocks; `room` is how many blocks its cache holds (0: unknown)."""
        held = self.history(pod)
        before = len(held)
        most = min(room, self._max) if room > 0 else self._max
        refresh = held.move_to_end
        for block in reversed(chain[:most]):
            held[block] = None
            refresh(block)
        if len(held) > most:
            self._shrink(held, most)
        self._size += len(held) - before
        while self._size > self._max:
            self._give_up(self._size - self._max)

    def announce(self, pod: PodKey) -> Blocks:
        """Where the events of a pod's engine go; empty at first."""
        self.announced[pod] = fresh = Announced(Blocks())
        return fresh.blocks

    def silence(self, pod: PodKey) -> None:
        """The events of a pod's engine are not heard any more."""
        self.announced.pop(pod, None)

    def settle(self, chain: Sequence[int], pod: PodKey, *, computed: bool) -> None:
        """What the pod announced of these blocks has come by now; `computed`: all of them should be there."""
        engine = self.announced.get(pod)
        if engine is None:
            return
        if computed and len(chain) >= _EVIDENCE:
            share = min(1.0, engine.blocks.matched(chain) / (len(chain) - 1))
            engine.trust += _RATE * (share - engine.trust)
        held = self._pods.get(pod)
        if engine.trust >= _TRUSTED and held:
            before = len(held)
            for block in chain:
                held.pop(block, None)
            self._size += len(held) - before

    def depth(self, chain: Sequence[int], prompt: bytes, pod: PodKey) -> Depth:
        """How far the pod's engine announced to hold a prompt, to the KV block."""
        engine = self.announced.get(pod)
        return NOTHING if engine is None else engine.blocks.depth(chain, prompt)

    def exact(self, pod: PodKey) -> bool:
        """Whether the pod's events tell all that it holds of prompts whose bytes are known."""
        engine = self.announced.get(pod)
        return engine is not None and engine.trust >= _TRUSTED

    def keep(self, pods: Iterable[PodKey]) -> None:
        """Forget every pod and epoch that is not named."""
        alive = set(pods)
        self._pods = {pod: held for pod, held in self._pods.items() if pod in alive}
        self.announced = {pod: engine for pod, engine in self.announced.items() if pod in alive}
        self._size = sum(map(len, self._pods.values()))

    def _with_announced(self, chain: Sequence[int], pods: Sequence[PodKey], found: list[int]) -> list[int]:
        for place, pod in enumerate(pods):
            engine = self.announced.get(pod)
            if engine is not None and chain[0] in engine.blocks.marks:
                found[place] = max(found[place], leading(engine.blocks.marks, chain, 1))
        return found

    def _give_up(self, excess: int) -> None:
        """Make room for all at the cost of the pod that takes most."""
        largest = self._largest()
        count = min(excess, len(largest))
        self._shrink(largest, len(largest) - count)
        self._size -= count

    def _shrink(self, held: Held, size: int) -> None:
        while len(held) > size:
            held.popitem(last=False)

    def _largest(self) -> Held:
        return max(self._pods.values(), key=len)
