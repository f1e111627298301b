"""What a pod of each Model can hold, told to the router whenever the fleet changes: adapter slots as declared, tokens
of KV cache as the agents report them. Of several pods the smallest counts: the router has one figure a pool."""

from sheaf_gateway.fleet.store import Change, FleetStore
from sheaf_gateway.routing.router import Capacity, Router


class Capacities:
    """Keeps `router.capacities` up to date; work in proportion to the Models that a change touches."""

    def __init__(self, store: FleetStore, router: Router) -> None:
        self._store = store
        self._router = router
        store.watch(self._follow)

    def _follow(self, change: Change) -> None:
        declared = {name for kind, name in change.keys if kind == "models"}
        for model in declared | change.models if change.shape or declared else ():
            self._adjust(model)

    def _adjust(self, model: str) -> None:
        pods = self._store.fleet.pods_of(model)
        if not pods:
            self._router.capacities.pop(model, None)
            return
        found = self._store.declared.models.get(model)
        states = (self._store.states.get(pod.name) for pod in pods)
        sizes = [state.kv_tokens for state in states if state is not None and state.kv_tokens]
        slots = found.spec.lora.slots if found is not None else 0
        self._router.capacities[model] = Capacity(slots=slots, kv_tokens=min(sizes, default=0))
