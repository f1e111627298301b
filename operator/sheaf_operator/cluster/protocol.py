"""The one protocol between the operator and the place where pods run: Kubernetes, local processes, or a simulation.

An implementation reads its own writes: what `act` did is in the next `observe`. Where it cannot (a lagging watch),
the actions themselves are safe to repeat: pods are created by a name that follows from the snapshot, deleted by UID,
and statuses and catalogs are compared by content.
"""

from typing import Protocol

from sheaf_operator.planning import Action, ClusterSnapshot


class ClusterError(Exception):
    """An action or observation failed for a reason that a person can read; it is tried again."""


class Cluster(Protocol):
    """Where pods run and objects are declared."""

    async def observe(self) -> ClusterSnapshot:
        """What is declared and what is there; raises ClusterError where that cannot be known now."""
        ...

    async def act(self, action: Action) -> None:
        """Carry one action out; done already is done. Raises ClusterError where it failed."""
        ...

    async def changed(self, timeout: float) -> None:  # noqa: ASYNC109 - the wait is the call
        """Return as soon as what `observe` shows has changed since its last call, or after so many seconds."""
        ...
