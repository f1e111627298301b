"""How many requests the pods of a Model are given at once: adapts each pod's bound to what its agent reports.

Reports are worked in when somebody asks, at most every `_FRESH_S`: a request pays for a look-up, not for the fleet.
"""

from sheaf_crds.agent_api import AgentState

from sheaf_gateway.admission.slots import Bounds
from sheaf_gateway.fleet.store import FleetStore
from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.routing.router import Router

_FRESH_S = 0.05


class Capacity:
    """The bounds of all pods; `ceiling` is the highest."""

    def __init__(self, store: FleetStore, router: Router, ceiling: int) -> None:
        self._store = store
        self._router = router
        self._bounds = Bounds(ceiling)
        self._seen: dict[str, AgentState] = {}
        self._slots: dict[str, tuple[float, int]] = {}

    def slots(self, model: str, now: float) -> int:
        """Requests that the pods of a Model take at once; 0 where none is ready."""
        until, count = self._slots.get(model, (0.0, 0))
        if now < until:
            return count
        pods = self._store.fleet.pods_of(model)
        ready = [pod for pod in pods if pod.ready]
        count = sum(map(self._bound, [pod for pod in ready if not pod.draining] or ready))
        self._slots[model] = now + _FRESH_S, count
        return count

    def bound(self, pod: str) -> int:
        """The bound of a pod that is in force."""
        return self._bounds.of(pod)

    def changed(self) -> None:
        """The fleet's shape is another one: look again, and forget pods that are gone."""
        self._slots.clear()
        alive = {pod.name for pods in self._store.fleet.pods.values() for pod in pods}
        self._bounds.keep(alive)
        self._seen = {name: state for name, state in self._seen.items() if name in alive}

    def _bound(self, pod: Pod) -> int:
        state = self._store.states.get(pod.name)
        if state is None or state is self._seen.get(pod.name):
            return self.bound(pod.name)
        self._seen[pod.name] = state
        ledger, load = self._router.ledgers.get(pod.name), state.load
        own = ledger.running if ledger is not None else 0
        return self._bounds.hear(pod.name, own=own, running=load.running, waiting=load.waiting)
