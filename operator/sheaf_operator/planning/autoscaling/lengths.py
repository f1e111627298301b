"""How long requests are: what gateways say of the last few hundred, averaged over some minutes.

A few hundred requests of very different lengths give a mean that is off by a twentieth: a replica more or less where
there are twenty, wished for and given up again. Lengths that have grown by more than chance does count at once.
"""

from dataclasses import dataclass

from sheaf_operator.planning.autoscaling.facts import Work

SPAN_S = 300.0
FIRST_S = 10.0
LEAP = 1.2


@dataclass(frozen=True, slots=True)
class Lengths:
    """The mean so far (None: nothing is known), since when it is one, and when it was brought up to date last, Unix
    seconds."""

    mean: Work | None = None
    since: float = 0.0
    at: float = 0.0

    def with_work(self, work: Work | None, now: float) -> "Lengths":
        """The mean after one more look; what is not known now changes nothing."""
        if work is None:
            return self
        if self.mean is None:
            return Lengths(work, now, now)
        passed = max(0.0, now - self.at)
        weight = min(1.0, passed / min(SPAN_S, now - self.since + FIRST_S))
        return Lengths(_between(self.mean, work, weight), self.since, now)

    def of(self, work: Work | None) -> Work | None:
        """What to reckon with, where gateways say `work` now."""
        if work is None or self.mean is None:
            return work
        leapt = work.uncached > LEAP * self.mean.uncached or work.output > LEAP * self.mean.output
        return work if leapt else self.mean


def _between(before: Work, after: Work, weight: float) -> Work:
    """The mean of both; a context that one of them does not know is the other's."""
    known = after if not before.context else before if not after.context else None

    def mean(one: float, other: float) -> float:
        return one + weight * (other - one)

    return Work(
        mean(before.prompt, after.prompt),
        mean(before.uncached, after.uncached),
        mean(before.output, after.output),
        mean(before.spread, after.spread),
        known.context if known else mean(before.context, after.context),
        known.context_spread if known else mean(before.context_spread, after.context_spread),
    )
