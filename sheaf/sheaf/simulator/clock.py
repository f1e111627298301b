"""The discrete-event kernel: a virtual clock and what is due on it.

Events of one time happen in the order in which they were asked for, so a run is a function of its inputs alone.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

Action = Callable[[Any], None]
RARELY = 200_000
EPOCH = 1_700_000_000.0


@contextlib.contextmanager
def rarely_collected() -> Iterator[None]:
    """Look for cycles of garbage seldom: a simulation makes hardly any, and looking takes a seventh of its time."""
    before = gc.get_threshold()
    gc.set_threshold(RARELY, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


class Timed(Protocol):
    """Something that arrives at a time, in seconds."""

    @property
    def arrival(self) -> float:
        """When it comes."""


T = TypeVar("T", bound=Timed)


class Clock:
    """Virtual time, in seconds, that jumps from event to event.

    Attributes:
        now: the time of the event that happens.
        epoch: Unix seconds of virtual 0.
        happened: events so far.
    """

    __slots__ = ("_heap", "_number", "epoch", "happened", "now")

    def __init__(self, start: float = 0.0, epoch: float = EPOCH) -> None:
        self.now = start
        self.epoch = epoch
        self.happened = 0
        self._heap: list[tuple[float, int, Action, Any]] = []
        self._number = 0

    def at(self, time: float, action: Action, item: Any = None) -> None:
        """Call ``action(item)`` at `time`, which must not lie in the past."""
        self._number += 1
        heapq.heappush(self._heap, (time, self._number, action, item))

    def run(self, until: float = float("inf")) -> None:
        """Let everything happen that is due up to and including `until`."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until:
            time, _, action, item = pop(heap)
            self.now = time
            self.happened += 1
            action(item)
        if self.now < until < float("inf"):
            self.now = until

    def step(self) -> bool:
        """Let the next thing happen; False where nothing is due any more."""
        if not self._heap:
            return False
        self.run(self._heap[0][0])
        return True

    def feed(self, arrivals: Iterable[T], action: Callable[[T], None]) -> None:
        """Call `action` with each arrival at its time; they come in order of time and are read one ahead."""
        self._next(iter(arrivals), action)

    def _next(self, arrivals: Iterator[T], action: Callable[[T], None]) -> None:
        item = next(arrivals, None)
        if item is None:
            return

        def arrive(item: T) -> None:
            action(item)
            following = next(arrivals, None)
            if following is not None:
                self.at(following.arrival, arrive, following)

        self.at(item.arrival, arrive, item)
