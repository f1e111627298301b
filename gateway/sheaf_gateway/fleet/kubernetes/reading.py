"""From raw API objects to the gateway's own values: pure.

What the gateway does not need is dropped before anything is held. Unknown fields, those of a newer schema, are
ignored: an old gateway keeps serving while the rest is upgraded.
"""

from collections.abc import Mapping
from datetime import datetime
from ipaddress import ip_address
from typing import Any, NamedTuple

from pydantic import ValidationError
from sheaf_crds.reading import read_known

from sheaf_gateway.fleet.snapshot import KINDS, Item, Kind, PodSnapshot, first_problem

MODEL_LABEL = "sheaf.dev/model"
SPOT_ANNOTATION = "sheaf.dev/spot"
ZONE_LABEL = "topology.kubernetes.io/zone"
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_PORTS = {"engine": 8000, "agent": 8001, "kv-events": 5557, "kv-replay": 5558}
_MAX_MESSAGE = 1024

Raw = Mapping[str, Any]


class Identity(NamedTuple):
    """Which object, and which version of it; the version is opaque."""

    name: str
    uid: str
    version: str


class UnreadableError(Exception):
    """An object that cannot be used; the message names the field."""


def identity(raw: object) -> Identity:
    """Name, UID and resource version of an object.

    Raises:
        UnreadableError: It has no name.
    """
    metadata = raw.get("metadata") if isinstance(raw, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(name, str) or not name:
        raise UnreadableError("metadata.name: there is none")
    return Identity(name, str(metadata.get("uid", "")), str(metadata.get("resourceVersion", "")))


def read(kind: Kind, raw: Raw) -> Item:
    """The object as the gateway holds it.

    Raises:
        UnreadableError: It does not fit the schema.
    """
    try:
        return _pod(raw) if kind == "pods" else _declared(kind, raw)
    except ValidationError as error:
        raise UnreadableError(first_problem(error)) from None
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise UnreadableError(f"object: {error}") from None


def _declared(kind: Kind, raw: Raw) -> Item:
    return read_known(KINDS[kind], _without_last_applied(raw))


def _without_last_applied(raw: Raw) -> dict[str, Any]:
    metadata = raw["metadata"]
    annotations = metadata.get("annotations") or {}
    kept = {name: text for name, text in annotations.items() if name != _LAST_APPLIED}
    return {**raw, "metadata": {**metadata, "annotations": kept, "managedFields": None}}


def _pod(raw: Raw) -> PodSnapshot:
    metadata, status = raw["metadata"], raw.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    terminating = metadata.get("deletionTimestamp") is not None
    declared_ready = _is_true(conditions.get("Ready"))
    ready = status.get("phase") == "Running" and (declared_ready or _was_ready(raw, conditions))
    return PodSnapshot.model_validate(
        {
            "name": metadata["name"],
            "uid": metadata.get("uid") or "",
            "model": labels.get(MODEL_LABEL),
            **_addresses(raw, status.get("podIP") or ""),
            "ready": ready,
            "unheard": ready and not declared_ready,
            "draining": terminating or _is_true(conditions.get("DisruptionTarget")),
            "deadline": _unix(metadata.get("deletionTimestamp")),
            "spot": annotations.get(SPOT_ANNOTATION) == "true",
            "zone": labels.get(ZONE_LABEL) or "",
            "phase": _phase(status, containers, ready=ready, terminating=terminating),
            "restarts": sum(c.get("restartCount") or 0 for c in containers),
            "started_at": status.get("startTime"),
            "message": _message(status, conditions, containers)[:_MAX_MESSAGE],
        }
    )


def _was_ready(raw: Raw, conditions: Mapping[str, Raw]) -> bool:
    """Whether the kubelet's last word was that the pod is ready: of a silent node Kubernetes takes back Ready alone."""
    gates = [gate["conditionType"] for gate in (raw.get("spec") or {}).get("readinessGates") or ()]
    return all(_is_true(conditions.get(name)) for name in ("ContainersReady", *gates))


def _addresses(raw: Raw, ip: str) -> dict[str, str]:
    """URLs from the pod's address and its named ports. Nothing where it has no address."""
    if not ip:
        return {"engine_url": ""}
    address = ip_address(str(ip))
    host = f"[{address}]" if address.version == 6 else str(address)
    ports = {**_PORTS, **_named_ports(raw)}
    return {
        "engine_url": f"http://{host}:{ports['engine']}",
        "agent_url": f"http://{host}:{ports['agent']}",
        "kv_events": f"tcp://{host}:{ports['kv-events']}",
        "kv_replay": f"tcp://{host}:{ports['kv-replay']}",
    }


def _named_ports(raw: Raw) -> dict[str, int]:
    spec = raw.get("spec") or {}
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    found = [port for container in containers for port in container.get("ports") or ()]
    return {port["name"]: port["containerPort"] for port in found if port.get("name") in _PORTS}


def _phase(status: Raw, containers: list[Raw], *, ready: bool, terminating: bool) -> str:
    if terminating:
        return "Terminating"
    if status.get("phase") in ("Failed", "Succeeded"):
        return "Failed"
    if ready:
        return "Ready"
    started = any("running" in (c.get("state") or {}) or c.get("restartCount") for c in containers)
    return "Starting" if started else "Pending"


def _message(status: Raw, conditions: Mapping[str, Raw], containers: list[Raw]) -> str:
    """Why the pod is not ready, in the words of Kubernetes; empty where nothing is wrong."""
    if status.get("reason"):
        return _sentence(status)
    for name in ("DisruptionTarget", "PodScheduled"):
        if (found := conditions.get(name)) is not None and _is_true(found) == (name == "DisruptionTarget"):
            return _sentence(found)
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return f"{container.get('name')}: {_sentence(waiting)}"
    return ""


def _sentence(said: Raw) -> str:
    parts = (said.get("reason"), said.get("message"))
    return ": ".join(str(part) for part in parts if part)


def _unix(stamp: str | None) -> float:
    """A pod that is deleted is killed at its deletionTimestamp: the API server has added the grace period to it."""
    return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0


def _is_true(condition: Raw | None) -> bool:
    return condition is not None and condition.get("status") == "True"
