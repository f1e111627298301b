"""Autoscalers of others, re-implemented from their sources as of mid 2026, to be run beside Sheaf's own.

All three see the requests that are anywhere (running, waiting, held) without delay, which is more than a metrics
pipeline gives them, and differ in what they do with it. `target` is requests for each replica.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from sheaf_crds.model import ModelAutoscaling
from sheaf_operator.planning.autoscaling import Reports
from sheaf_operator.planning.autoscaling.gather import demand_of
from sheaf_operator.planning.index import FleetIndex, Key
from sheaf_operator.planning.scaling import Scaling


class Rule(Protocol):
    """One Model's autoscaler: a number from what is there."""

    def replicas(self, present: float, current: int, ready: int, now: float) -> int:
        """The replicas wanted; `current` was wanted before, of which `ready` serve."""
        ...


class Hpa:
    """Kubernetes' HorizontalPodAutoscaler on an average value, with the defaults of its controller and of `behavior`.

    Every 15 s: ceil(total / target), nothing within a tolerance of 10 %; up by at most the greater of 100 % and four
    pods in 15 s; down to the highest recommendation of the last `stabilization` seconds (300), of which the number that
    it finds is the first.
    """

    SYNC_S = 15.0
    TOLERANCE = 0.1

    def __init__(self, target: float, stabilization: float = 300.0) -> None:
        self._target, self._stabilization = target, stabilization
        self._recommended: deque[tuple[float, int]] = deque()
        self._next = float("-inf")

    def replicas(self, present: float, current: int, ready: int, now: float) -> int:  # noqa: ARG002
        """See the class."""
        if now < self._next:
            return current
        self._next = now + self.SYNC_S
        if not self._recommended:
            self._recommended.append((now, current))
        ratio = present / (self._target * current) if current else float(present > 0)
        wanted = current if abs(ratio - 1.0) <= self.TOLERANCE else math.ceil(present / self._target)
        self._recommended.append((now, wanted))
        while self._recommended[0][0] < now - self._stabilization:
            self._recommended.popleft()
        if wanted > current:
            return min(wanted, max(2 * current, current + 4))
        return min(current, max(count for _, count in self._recommended))


class Kpa:
    """Knative's: averages over a stable and a panic window; up at once in panic, and not down until it is over.

    Defaults of its configuration: stable 60 s, panic a tenth of it, panic above twice what is ready, 70 % of the
    target, up at most 1000 times and down at most to a half in a step. It begins in panic where it finds more than one
    pod. AIBrix runs it with 180 s and 60 s.
    """

    PANIC = 2.0
    UP, DOWN = 1000.0, 2.0

    def __init__(self, target: float, stable: float = 60.0, panic: float = 6.0, utilization: float = 0.7) -> None:
        self._target, self._stable, self._panic = target * utilization, stable, panic
        self._seen: deque[tuple[float, float]] = deque()
        self._panic_since: float | None = None
        self._most = 0

    def replicas(self, present: float, current: int, ready: int, now: float) -> int:  # noqa: ARG002
        """See the class."""
        if not self._seen and ready > 1:
            self._panic_since, self._most = now, ready
        self._seen.append((now, present))
        while self._seen[0][0] <= now - self._stable:
            self._seen.popleft()
        serving = max(1, ready)
        least, most = math.floor(serving / self.DOWN), math.ceil(serving * self.UP)
        hasty = math.ceil(self._mean(now - self._panic) / self._target)
        calm = min(max(math.ceil(self._mean(now - self._stable) / self._target), least), most)
        self._judge(hasty / serving, now)
        if self._panic_since is None:
            return calm
        self._most = max(self._most, calm, min(max(hasty, least), most))
        return self._most

    def _judge(self, over: float, now: float) -> None:
        if over >= self.PANIC:
            self._panic_since = now
        elif self._panic_since is not None and self._panic_since + self._stable < now:
            self._panic_since, self._most = None, 0

    def _mean(self, begin: float) -> float:
        values = [value for time, value in self._seen if time > begin]
        return sum(values) / len(values)


class Apa:
    """AIBrix' own: the ratio of use to target on the pods that serve, with a band of 10 % and at most a factor of two.

    Use is the mean of `window` seconds (60), looked at every 10 s; down to the highest recommendation of the last
    `cooldown` seconds (300).
    """

    SYNC_S = 10.0
    TOLERANCE = 0.1
    RATE = 2.0

    def __init__(self, target: float, window: float = 60.0, cooldown: float = 300.0) -> None:
        self._target, self._window, self._cooldown = target, window, cooldown
        self._seen: deque[tuple[float, float]] = deque()
        self._recommended: deque[tuple[float, int]] = deque()
        self._next = float("-inf")

    def replicas(self, present: float, current: int, ready: int, now: float) -> int:
        """See the class."""
        self._seen.append((now, present))
        while self._seen[0][0] <= now - self._window:
            self._seen.popleft()
        if now < self._next:
            return current
        self._next = now + self.SYNC_S
        wanted = self._ratio(max(1, ready), current)
        self._recommended.append((now, wanted))
        while self._recommended[0][0] < now - self._cooldown:
            self._recommended.popleft()
        return wanted if wanted >= current else min(current, max(count for _, count in self._recommended))

    def _ratio(self, serving: int, current: int) -> int:
        ratio = sum(value for _, value in self._seen) / len(self._seen) / serving / self._target
        if ratio > 1.0 + self.TOLERANCE:
            return min(math.ceil(serving * ratio), math.ceil(self.RATE * serving))
        if ratio < 1.0 - self.TOLERANCE:
            return max(math.ceil(serving * ratio), math.floor(serving / self.RATE))
        return current


class PeerScaler:
    """Runs a rule for each Model; within the bounds of its AutoscalingPolicy, and at least one replica."""

    def __init__(self, index: FleetIndex, rules: Mapping[str, Rule]) -> None:
        self._index, self._rules = index, rules
        self._numbers: dict[str, int] = {}

    def observe(self, reports: Reports, now: float) -> frozenset[Key]:
        """Note decisions in the fleet's index; returns the keys to plan."""
        dirty: set[Key] = set()
        for model, policy in self._index.scaled_models():
            demand = demand_of(model.name, reports, now)
            if demand is None:
                continue
            current = self._numbers.get(model.name, model.spec.replicas)
            ready = sum(pod.serving for pod in self._index.pods_of(model.name))
            wanted = self._rules[model.name].replicas(float(demand.present), current, ready, now)
            number = max(1, policy.spec.min_replicas, min(wanted, policy.spec.max_replicas))
            self._numbers[model.name] = number
            record = ModelAutoscaling(policy=policy.name, desired_replicas=number)
            dirty |= self._index.note_scaling(model.name, Scaling(number, record))
        return frozenset(dirty)
