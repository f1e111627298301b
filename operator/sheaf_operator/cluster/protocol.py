"""The one protocol between the operator and the place where pods run: Kubernetes, local processes, or a simulation.

An implementation keeps a `FleetIndex` of what it observes and tells which keys of it may be planned otherwise than
before. It reads its own writes: what `act` did is in the index when `act` returns. Where that cannot be (a lagging
watch), the actions themselves are safe to repeat: pods are created by a name that follows from what is there, deleted
by UID, and statuses and catalogs are compared by content.
"""

from typing import Protocol

from sheaf_operator.planning import Action, Plan
from sheaf_operator.planning.index import FleetIndex, Key


class ClusterError(Exception):
    """An action failed for a reason that a person can read; it is tried again after `retry_after` seconds or more.

    `passing`: the reason lies in the moment, not in what was asked for.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0, passing: bool = False) -> None:
        super().__init__(message)
        self.retry_after, self.passing = retry_after, passing


class Cluster(Protocol):
    """Where pods run and objects are declared."""

    @property
    def index(self) -> FleetIndex:
        """Everything observed, kept up to date between two awaits."""
        ...

    async def changed(self, timeout: float) -> frozenset[Key]:  # noqa: ASYNC109 - the wait is the call
        """The keys that changed since the last call; waits for a change so many seconds, then returns none.

        The first call that returns keys returns all of them, and not before the view is complete.
        """
        ...

    def plan(self, key: Key, now: float) -> Plan:
        """What to do for one key at `now` (Unix seconds): `plan_key`, and what only this cluster knows."""
        ...

    async def act(self, action: Action) -> None:
        """Carry one action out; done already is done. Raises ClusterError where it failed."""
        ...
