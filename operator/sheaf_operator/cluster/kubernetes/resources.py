"""The resources that the operator works with, and where the API server keeps them. Pure."""

from dataclasses import dataclass
from typing import Any

from sheaf_crds import GROUP, KINDS, VERSION

MANAGER = "sheaf-operator"
POD_SELECTOR = "app.kubernetes.io/managed-by=sheaf"

Raw = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource of the API; `selector` limits what is looked at (a label selector)."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    selector: str = ""

    @property
    def api(self) -> str:
        """The path of the group and version."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    @property
    def api_version(self) -> str:
        """The apiVersion of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str, name: str = "", part: str = "") -> str:
        """The path of the collection, of an object, or of a subresource of it."""
        scope = f"/namespaces/{namespace}" if self.namespaced else ""
        tail = "".join(f"/{piece}" for piece in (name, part) if piece)
        return f"{self.api}{scope}/{self.plural}{tail}"


DECLARED = {kind: Resource(GROUP, VERSION, item.PLURAL, kind) for kind, item in KINDS.items()}
PODS = Resource("", "v1", "pods", "Pod", selector=POD_SELECTOR)
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
EVENTS = Resource("events.k8s.io", "v1", "events", "Event")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
WATCHED = (*DECLARED.values(), PODS, NODES)


def version_of(raw: Raw) -> int:
    """The resourceVersion as a number: within one resource the greater is the newer; 0 where it is no number."""
    text = (raw.get("metadata") or {}).get("resourceVersion") or ""
    return int(text) if text.isdecimal() else 0
