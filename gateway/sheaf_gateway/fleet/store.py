"""The one place where the current view of the fleet lives: replaced on news, read by every request.

News are a new snapshot, a new report of an agent, or a request that found an adapter loaded or missing before
the agent said so. Listeners are called after each change, in the event loop.
"""

from collections.abc import Callable, Mapping

import msgspec
from sheaf_crds.agent_api import AgentState

from sheaf_gateway.fleet import metrics
from sheaf_gateway.fleet.assemble import bare_digest, grouped, pod_view, served_names
from sheaf_gateway.fleet.snapshot import FleetSnapshot, PodSnapshot
from sheaf_gateway.fleet.view import Fleet, Pod, Served

Listener = Callable[[Fleet], None]


class FleetStore:
    """Holds the fleet; `own_running` tells how many requests of this gateway are on a pod."""

    def __init__(self, own_running: Callable[[str], int] = lambda _pod: 0) -> None:
        self.fleet = Fleet()
        self.snapshot: FleetSnapshot | None = None
        self.states: dict[str, AgentState] = {}
        self._own_running = own_running
        self._declared: dict[str, PodSnapshot] = {}
        self._pods: dict[str, Pod] = {}
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Call the listener after every change."""
        self._listeners.append(listener)

    def apply_snapshot(self, snapshot: FleetSnapshot) -> None:
        """Take a new snapshot; reports of pods that are still the same are kept."""
        before, self._declared = self._declared, {pod.name: pod for pod in snapshot.pods}
        self.states = {name: state for name, state in self.states.items() if self._same(before.get(name), name)}
        self._pods = {name: self._view(pod, self._pods.get(name)) for name, pod in self._declared.items()}
        self.snapshot = snapshot
        metrics.SNAPSHOT_VERSION.set(snapshot.version)
        self._publish(snapshot.version, served_names(snapshot))

    def apply_state(self, pod: str, state: AgentState) -> None:
        """Take an agent's report; one of a pod that is gone is dropped."""
        declared = self._declared.get(pod)
        if declared is None:
            return
        self.states[pod] = state
        self._pods[pod] = pod_view(declared, state, self._own_running(pod))
        self._publish(self.fleet.version, self.fleet.served)

    def note_resident(self, pod: str, adapter: str, digest: str) -> None:
        """A load that a request asked for ended well, ahead of the agent's next report."""
        found = self._pods.get(pod)
        if found is not None:
            self._replace(found, {**found.resident, adapter: bare_digest(digest)})

    def note_absent(self, pod: str, adapter: str) -> None:
        """The engine does not know an adapter that it was said to hold."""
        found = self._pods.get(pod)
        if found is not None and adapter in found.resident:
            self._replace(found, {name: digest for name, digest in found.resident.items() if name != adapter})

    def _same(self, before: PodSnapshot | None, name: str) -> bool:
        after = self._declared.get(name)
        return before is not None and after is not None and poll_key(before) == poll_key(after)

    def _view(self, declared: PodSnapshot, before: Pod | None) -> Pod:
        fresh = pod_view(declared, self.states.get(declared.name), 0)
        if before is None or declared.name not in self.states:
            return fresh
        return msgspec.structs.replace(
            fresh, foreign_running=before.foreign_running, foreign_waiting=before.foreign_waiting
        )

    def _replace(self, pod: Pod, resident: dict[str, str]) -> None:
        self._pods[pod.name] = msgspec.structs.replace(pod, resident=resident)
        self._publish(self.fleet.version, self.fleet.served)

    def _publish(self, version: int, served: Mapping[str, Served]) -> None:
        self.fleet = grouped(version, served, self._pods.values())
        metrics.AGENTS_KNOWN.set(len(self.states))
        for listener in self._listeners:
            listener(self.fleet)


def poll_key(pod: PodSnapshot) -> tuple[str, str, str]:
    """What makes a pod the same one for its agent's reports."""
    return pod.name, pod.uid, pod.agent_url
