"""When continuations begin: no more at once than pods can take beside what they run, interactive ones first.

A continuation counts from when it is sent until its first new event, so that the pace follows the engines': a storm
after a pod's loss is spread over the time that its prompts take.
"""

import heapq
import itertools
from typing import NamedTuple


class _Waiting(NamedTuple):
    batch: bool
    number: int


class Pacing:
    """The continuations of one Model that wait, and how many are starting."""

    def __init__(self) -> None:
        self._heap: list[_Waiting] = []
        self._waiting: set[int] = set()
        self._numbers = itertools.count(1)
        self.starting = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, *, batch: bool) -> int:
        """Take a place in the queue."""
        number = next(self._numbers)
        self._waiting.add(number)
        heapq.heappush(self._heap, _Waiting(batch, number))
        return number

    def leave(self, number: int) -> None:
        """Give the place up."""
        self._waiting.discard(number)

    def next(self, most: int) -> int | None:
        """Whose turn it is, where fewer than `most` are starting; the place is taken until `started`."""
        while self._heap and self._heap[0].number not in self._waiting:
            heapq.heappop(self._heap)
        if not self._heap or self.starting >= most:
            return None
        number = heapq.heappop(self._heap).number
        self._waiting.discard(number)
        self.starting += 1
        return number

    def started(self) -> None:
        """One has begun, or will not."""
        self.starting = max(0, self.starting - 1)
