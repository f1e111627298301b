"""What every routing policy is told, and the little that most of them remember: what is under way on each pod."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from sheaf_gateway.admission.terms import Work

from sheaf.simulator.flights import Flight
from sheaf.simulator.pods import Pod

Pods = Sequence[Pod[Flight]]


class Policy:
    """Chooses a pod for each request. Subclasses override `choose`, and `cost` of what they want to remember.

    Attributes:
        name: as in tables.
        running: requests under way on each pod, as this gateway counts them.
    """

    name = "policy"

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a simulation's draw
        self.running: defaultdict[str, int] = defaultdict(int)

    def choose(self, flight: Flight, pods: Pods, now: float) -> Pod[Flight]:
        """The pod that the request goes to; `pods` is not empty."""
        raise NotImplementedError

    def expected(self, flight: Flight, pods: Pods) -> Work | None:  # noqa: ARG002
        """What the request would take where most of its prompt is cached; None: it is not told."""
        return None

    def uncached(self, flight: Flight) -> float | None:  # noqa: ARG002
        """Tokens of its prompt that the pod it was sent to has to compute; None: it is not told."""
        return None

    def sent(self, flight: Flight, pod: Pod[Flight], now: float) -> None:  # noqa: ARG002
        """It was sent there."""
        self.running[pod.name] += 1

    def first_token(self, flight: Flight, now: float) -> None:
        """Its first token is out."""

    def finished(self, flight: Flight, now: float, *, lost: bool = False) -> None:  # noqa: ARG002
        """It is over there: done, or lost with its pod."""
        if flight.pod is not None:
            self.running[flight.pod.name] -= 1

    def fleet_changed(self, pods: Pods, now: float) -> None:
        """These pods are there now."""


def least(pods: Pods, load: dict[str, int]) -> Pod[Flight]:
    """The first pod with the lowest load."""
    return min(pods, key=lambda pod: load[pod.name])
