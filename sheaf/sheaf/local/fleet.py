"""The fleet file: objects and pods as the gateway reads them, replaced at once, only when something changed."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import orjson
from sheaf_crds import SLO, Adapter, AutoscalingPolicy, Model

from sheaf.local.layout import write_private
from sheaf.local.pod import LocalPod
from sheaf.local.store import Store

LISTS = {"models": Model, "adapters": Adapter, "slos": SLO, "autoscalingPolicies": AutoscalingPolicy}


def fleet_content(store: Store, pods: Iterable[LocalPod]) -> dict[str, object]:
    """The content of the fleet file, without its version."""
    objects = {key: [item.to_wire() for item in store.of(kind)] for key, kind in LISTS.items()}
    return {**objects, "pods": [pod_entry(pod) for pod in sorted(pods, key=lambda pod: pod.name)]}


def pod_entry(pod: LocalPod) -> dict[str, object]:
    """One pod as the gateway and `sheaf get pods` see it."""
    facts = pod.facts()
    return {
        "name": pod.name,
        "uid": pod.uid,
        "model": pod.template.model,
        "engineUrl": pod.addresses.engine_url,
        "agentUrl": pod.addresses.agent_url,
        "kvEvents": pod.addresses.engine.kv_events,
        "kvReplay": pod.addresses.engine.kv_replay,
        "ready": facts.ready,
        "draining": facts.draining or pod.terminating,
        "spot": False,
        "zone": "",
        "phase": facts.phase,
        "restarts": facts.restarts,
        "startedAt": pod.created_at,
        "message": f"{facts.reason}: {facts.message}" if facts.reason else facts.message,
    }


class FleetFile:
    """The file, and what was written last. Versions grow from one run of `sheaf up` to the next."""

    def __init__(self, path: Path, first_version: int) -> None:
        self.path, self._version = path, first_version
        self._written: Mapping[str, object] | None = None

    def write(self, store: Store, pods: Sequence[LocalPod]) -> None:
        """Write what is so now; an OSError leaves the last file in place, and the next call tries again."""
        content = fleet_content(store, pods)
        if content == self._written:
            return
        self._version += 1
        write_private(self.path, orjson.dumps({"version": self._version, **content}).decode())
        self._written = content
