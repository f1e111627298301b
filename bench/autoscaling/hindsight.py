"""The fewest GPU hours that anyone could do with who knows the trace: a schedule of replicas, found by search.

The hour is cut into blocks. Runs with a constant number say which blocks a number carries; from the schedule that they
suggest, blocks are lowered one by one while the whole run still attains the share that is asked. Every replica is
requested a cold start before its block and paid for from then on, as everybody's are. What is found can be reached, so
the true least is no more than that; the search is bounded, so it may be a little less.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sheaf.simulator.clock import EPOCH
from sheaf_crds.model import ModelAutoscaling
from sheaf_operator.planning import FleetIndex
from sheaf_operator.planning.autoscaling import Reports
from sheaf_operator.planning.index import Key
from sheaf_operator.planning.scaling import Scaling

EASE = 0.9


@dataclass(frozen=True)
class Schedule:
    """Replicas wanted in each block, times in seconds since the first request."""

    numbers: tuple[int, ...]
    block_s: float
    ahead_s: float

    def at(self, now: float) -> int:
        """The number to ask for now: what serves in this block, or will have to when a replica asked for now does."""
        here, soon = (max(0.0, time) // self.block_s for time in (now, now + self.ahead_s))
        last = len(self.numbers) - 1
        return max(self.numbers[min(int(block), last)] for block in (here, soon))


class Planned:
    """An autoscaler that follows a schedule; `begin` is when the first request comes, virtual seconds."""

    def __init__(self, index: FleetIndex, schedule: Schedule, begin: float) -> None:
        self._index, self._schedule, self._begin = index, schedule, begin

    def observe(self, reports: Reports, now: float) -> frozenset[Key]:  # noqa: ARG002
        """See Autoscaler."""
        number = self._schedule.at(now - EPOCH - self._begin)
        record = ModelAutoscaling(policy="chat", desired_replicas=number)
        return self._index.note_scaling("chat", Scaling(number, record))


@dataclass(frozen=True)
class Trial:
    """One run of a schedule: what it attained in all and in each block, and the GPU hours that it cost."""

    schedule: Schedule
    attained: float
    blocks: tuple[float, ...]
    hours: float


class Search:
    """Looks for the cheapest schedule with at most so many runs.

    Args:
        measure: runs a schedule.
        seconds: how long the trace is.
        block_s: length of a block.
        ahead_s: how long a replica takes to start.
        attained: share of requests that must keep their promise.
        runs: how many runs are allowed.
    """

    def __init__(
        self,
        measure: Callable[[Schedule], Trial],
        seconds: float,
        block_s: float,
        ahead_s: float,
        attained: float,
        runs: int,
    ) -> None:
        self._measure, self._attained, self._left = measure, attained, runs
        self._block_s, self._ahead_s = block_s, ahead_s
        self._blocks = max(1, math.ceil(seconds / block_s))

    def best(self, guess: int) -> Trial | None:
        """The cheapest schedule found that attains enough; `guess` is a number to begin with."""
        steady = self._steady(guess)
        first = self._raised(self._composed(steady))
        known = [trial for trial in (first, *steady.values()) if trial and trial.attained >= self._attained]
        if not known:
            return None
        return self._lowered(min(known, key=lambda trial: trial.hours))

    def _steady(self, guess: int) -> dict[int, Trial]:
        """Runs with one number throughout: up from the guess until it is enough, and two below the least enough."""
        found: dict[int, Trial] = {}
        number = guess
        while self._left and (number not in found) and not self._enough(found.get(number - 1)):
            found[number] = self._run((number,) * self._blocks)
            number += 1
        for lower in range(number - 2, max(0, number - 4), -1):
            if self._left and lower not in found:
                found[lower] = self._run((lower,) * self._blocks)
        return found

    def _composed(self, steady: Mapping[int, Trial]) -> tuple[int, ...]:
        """In each block the smallest number that carries it in a run with that number."""
        most = max(steady)
        return tuple(
            min((number for number in steady if steady[number].blocks[block] >= EASE), default=most)
            for block in range(self._blocks)
        )

    def _raised(self, numbers: tuple[int, ...]) -> Trial | None:
        """The schedule with its worst block raised until it is enough."""
        while self._left:
            trial = self._run(numbers)
            if self._enough(trial):
                return trial
            worst = min(range(self._blocks), key=lambda block: trial.blocks[block])
            numbers = _changed(numbers, worst, 1)
        return None

    def _lowered(self, best: Trial) -> Trial:
        """The schedule with one block after the other lowered, while that is enough."""
        for block in sorted(range(self._blocks), key=lambda block: -best.blocks[block]):
            numbers = best.schedule.numbers
            if not self._left:
                break
            if numbers[block] > 1:
                trial = self._run(_changed(numbers, block, -1))
                best = trial if self._enough(trial) and trial.hours < best.hours else best
        return best

    def _run(self, numbers: tuple[int, ...]) -> Trial:
        self._left -= 1
        return self._measure(Schedule(numbers, self._block_s, self._ahead_s))

    def _enough(self, trial: Trial | None) -> bool:
        return trial is not None and trial.attained >= self._attained


def _changed(numbers: Sequence[int], block: int, by: int) -> tuple[int, ...]:
    return tuple(number + by * (index == block) for index, number in enumerate(numbers))
