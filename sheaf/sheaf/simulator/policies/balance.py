"""Peers that know nothing of prefixes beyond a key: round robin, least request, session affinity, CHWBL."""

from __future__ import annotations

from bisect import bisect
from functools import lru_cache

import xxhash

from sheaf.simulator.flights import Flight
from sheaf.simulator.pods import Pod
from sheaf.simulator.policies.base import Pods, Policy, least


class RoundRobin(Policy):
    """In turn, as production-stack does over endpoints in sorted order."""

    name = "round-robin"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._turn = 0

    def choose(self, flight: Flight, pods: Pods, now: float) -> Pod[Flight]:  # noqa: ARG002
        """The next one."""
        self._turn += 1
        return pods[(self._turn - 1) % len(pods)]


class LeastRequest(Policy):
    """Fewest requests under way, ties at random (AIBrix least-request, KubeAI LeastLoad)."""

    name = "least-request"

    def choose(self, flight: Flight, pods: Pods, now: float) -> Pod[Flight]:  # noqa: ARG002
        """The least loaded."""
        fewest = min(self.running[pod.name] for pod in pods)
        return self.random.choice([pod for pod in pods if self.running[pod.name] == fewest])


class Session(Policy):
    """A consistent hash of the session (production-stack `session`, uhashring with 160 points a node)."""

    name = "session"
    POINTS = 160

    def choose(self, flight: Flight, pods: Pods, now: float) -> Pod[Flight]:  # noqa: ARG002
        """The session's place on the ring."""
        names = tuple(pod.name for pod in pods)
        points, owners = ring(names, self.POINTS)
        place = bisect(points, xxhash.xxh64_intdigest(b"%d" % flight.call.session))
        return pods[owners[place % len(owners)]]


class BoundedHash(Policy):
    """Consistent hashing with bounded loads as in KubeAI's PrefixHash: 256 points a pod, load factor 125 %.

    The key is the adapter and the first 100 characters of the first user message. A trace has no messages; where many
    share a first segment (a system prompt) the second one is the first that the user wrote.
    """

    name = "chwbl"
    POINTS = 256
    FACTOR = 1.25

    def choose(self, flight: Flight, pods: Pods, now: float) -> Pod[Flight]:  # noqa: ARG002
        """Clockwise from the key, the first whose load is within the bound."""
        points, owners = ring(tuple(pod.name for pod in pods), self.POINTS)
        start = bisect(points, self.key(flight))
        bound = (sum(self.running[pod.name] for pod in pods) + 1) / len(pods) * self.FACTOR
        for step in range(len(owners)):
            pod = pods[owners[(start + step) % len(owners)]]
            if self.running[pod.name] <= bound:
                return pod
        return pods[owners[start % len(owners)]]

    def key(self, flight: Flight) -> int:
        """Adapter and beginning of what the user said."""
        segments = flight.call.segments
        said = segments[1] if len(segments) > 1 else segments[0]
        return xxhash.xxh64_intdigest(f"{flight.call.adapter}{said[0]}".encode())


class LeastTokens(Policy):
    """Fewest prompt tokens under way (llm-d's token load, alone)."""

    name = "least-tokens"

    def choose(self, flight: Flight, pods: Pods, now: float) -> Pod[Flight]:  # noqa: ARG002
        """The least loaded."""
        return least(pods, self.running)

    def sent(self, flight: Flight, pod: Pod[Flight], now: float) -> None:  # noqa: ARG002
        """Count its tokens."""
        self.running[pod.name] += flight.call.input_tokens

    def finished(self, flight: Flight, now: float, *, lost: bool = False) -> None:  # noqa: ARG002
        """Count them off."""
        if flight.pod is not None:
            self.running[flight.pod.name] -= flight.call.input_tokens


@lru_cache(maxsize=64)
def ring(names: tuple[str, ...], points: int) -> tuple[list[int], list[int]]:
    """Sorted points of a hash ring, and the index of the name that each belongs to."""
    placed = sorted(
        (xxhash.xxh64_intdigest(f"{name}{point}".encode()), index)
        for index, name in enumerate(names)
        for point in range(points)
    )
    return [point for point, _ in placed], [index for _, index in placed]
