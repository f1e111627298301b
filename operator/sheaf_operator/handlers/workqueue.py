"""Which key to plan next. Pure; times are readings of one monotonic clock.

A key is planned when it changed, when a timer of it is due, and never twice at once: what changes meanwhile is planned
again afterwards, once, however often it changed. Keys are served in the order in which they became due; one that has
more to do than a turn allows goes to the end of the line.
"""

import heapq
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

SLACK = 64

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """Keys that wait, keys that are planned now, and timers; memory is bounded by the number of keys."""

    def __init__(self) -> None:
        self._due: OrderedDict[K, float] = OrderedDict()
        self._running: dict[K, float | None] = {}
        self._timers: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._due)

    @property
    def running(self) -> int:
        """Keys that are planned now."""
        return len(self._running)

    def changed(self, keys: Iterable[K], now: float) -> None:
        """Plan these keys as soon as possible; `now` counts for a key's waiting time from its first change."""
        for key in keys:
            if key in self._running:
                waiting = self._running[key]
                self._running[key] = now if waiting is None else waiting
            else:
                self._due.setdefault(key, now)

    def wake(self, key: K, at: float) -> None:
        """Plan the key at that time at the latest; an earlier timer of it stays."""
        if at < self._timers.get(key, float("inf")):
            self._timers[key] = at
            self._serial += 1
            heapq.heappush(self._heap, (at, self._serial, key))
            self._compact()

    def take(self, now: float) -> tuple[K, float] | None:
        """The next key to plan, with the time since when it waits; it counts as running until `done`."""
        self._ring(now)
        if not self._due:
            return None
        key, since = self._due.popitem(last=False)
        self._running[key] = None
        self._timers.pop(key, None)
        return key, since

    def done(self, key: K) -> None:
        """The key's turn is over; it waits again where it changed meanwhile."""
        waiting = self._running.pop(key)
        if waiting is not None:
            self._due[key] = waiting

    def next_timer(self) -> float | None:
        """When the next timer is due."""
        self._skim()
        return self._heap[0][0] if self._heap else None

    def forget(self) -> None:
        """Drop everything that waits; what runs now is let finish."""
        self._due.clear()
        self._timers.clear()
        self._heap.clear()

    def _ring(self, now: float) -> None:
        self._skim()
        while self._heap and self._heap[0][0] <= now:
            at, _, key = heapq.heappop(self._heap)
            del self._timers[key]
            self.changed((key,), at)
            self._skim()

    def _compact(self) -> None:
        """Keep the heap no more than twice as long as there are timers."""
        if len(self._heap) > 2 * len(self._timers) + SLACK:
            self._heap = [entry for entry in self._heap if self._timers.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def _skim(self) -> None:
        """Drop timers that were replaced by earlier ones or served by a turn."""
        while self._heap and self._timers.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
