"""What is kept of a Pod: all that facts are read from, in a sixth of the memory that the whole takes."""

from collections.abc import Mapping
from typing import Any

from sheaf_operator.planning.manifest.pod import SPOT_ANNOTATION, STARTUP_ANNOTATION, ZONE_ANNOTATION
from sheaf_operator.planning.manifest.wire import items, section

KEPT = (SPOT_ANNOTATION, ZONE_ANNOTATION, STARTUP_ANNOTATION)
_CONTAINERS = ("initContainers", "containers")


def essence(pod: Mapping[str, Any]) -> dict[str, Any]:
    """The Pod (as JSON) without what nothing is decided by; `pod_facts` of it are those of the whole."""
    metadata, spec = section(pod, "metadata"), section(pod, "spec")
    annotations = {name: value for name, value in section(metadata, "annotations").items() if name in KEPT}
    kept = {name: value for name, value in metadata.items() if name not in ("annotations", "managedFields")}
    containers = {kind: [_container(one) for one in items(spec, kind)] for kind in _CONTAINERS}
    return {
        "metadata": {**kept, "annotations": annotations},
        "spec": {"nodeName": spec.get("nodeName"), "readinessGates": spec.get("readinessGates"), **containers},
        "status": section(pod, "status"),
    }


def _container(container: Mapping[str, Any]) -> dict[str, Any]:
    limits = section(container, "resources", "limits")
    return {
        "name": container.get("name"),
        "image": container.get("image"),
        "resources": {"limits": {"memory": limits.get("memory")}},
    }
