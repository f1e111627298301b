"""How many requests the pods of each Model are given at once: the gateway's own rule on what their engines report.

A pod's report is taken when somebody asks and the last one is `REPORT_S` old, which is how often an agent looks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from sheaf_gateway.admission.slots import Bounds

from sheaf.simulator.flights import Flight
from sheaf.simulator.pods import Pod

REPORT_S = 1.0


class Slots:
    """The bounds of all pods; `ceiling` is the highest."""

    def __init__(self, ceiling: int) -> None:
        self._bounds = Bounds(ceiling)
        self._models: dict[str, _Taking] = {}
        self._fresh: dict[str, Sequence[Pod[Flight]]] = {}

    def changed(self, model: str, pods: Sequence[Pod[Flight]]) -> None:
        """These pods of a Model take requests now."""
        self._fresh[model] = pods

    def of(self, model: str, now: float) -> int:
        """Requests that the pods of a Model take at once; 0 where none does."""
        found = self._models.get(model)
        if found is None or model in self._fresh:
            found = self._models[model] = self._changed(found, self._fresh.pop(model, ()), now)
        due = found.due
        while due and due[0][0] <= now:
            _, pod = due.popleft()
            found.total += self._heard(pod)
            due.append((now + REPORT_S, pod))
        return found.total

    def _changed(self, before: _Taking | None, pods: Sequence[Pod[Flight]], now: float) -> _Taking:
        """Pods that are still there report when they would have; others are heard at once, or forgotten."""
        here, due = set(pods), before.due if before is not None else ()
        gone = {pod.name for _, pod in due if pod not in here}
        self._bounds.forget(gone)
        kept = [entry for entry in due if entry[1] in here]
        known = {pod for _, pod in kept}
        fresh = [(now, pod) for pod in pods if pod not in known]
        return _Taking(deque([*fresh, *kept]), sum(self._bounds.of(pod.name) for pod in pods))

    def _heard(self, pod: Pod[Flight]) -> int:
        """By how much a report changes the bound."""
        before, engine = self._bounds.of(pod.name), pod.engine
        own, waiting = len(pod.flights), engine.waiting
        return self._bounds.hear(pod.name, own=own, running=engine.running, waiting=waiting) - before


class _Taking:
    """The pods of one Model by when their next report is due, and what all of them take."""

    __slots__ = ("due", "total")

    def __init__(self, due: deque[tuple[float, Pod[Flight]]], total: int) -> None:
        self.due, self.total = due, total
