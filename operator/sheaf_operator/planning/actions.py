"""What may be done to a cluster. Every action is idempotent and carries its reason.

Creation is idempotent by name (a pod's name follows from its model, template and index, so a second attempt meets the
first one's pod), removal by UID (a pod of the same name that came later is left alone), status and catalogs by
content.
"""

from dataclasses import dataclass, field
from typing import Literal

from sheaf_crds import AdapterStatus, AutoscalingPolicyStatus, ModelSpec, ModelStatus, SLOStatus
from sheaf_crds.agent_api import Catalog

Kind = Literal["Model", "Adapter", "SLO", "AutoscalingPolicy"]
AnyStatus = ModelStatus | AdapterStatus | SLOStatus | AutoscalingPolicyStatus


@dataclass(frozen=True, slots=True)
class PodTemplate:
    """What a pod of a Model runs; pods with equal `hash` run the same."""

    model: str
    owner_uid: str
    hash: str
    spec: ModelSpec
    spot: bool = False


@dataclass(frozen=True, slots=True)
class CreatePod:
    """Start a pod, unless one of that name is there; `zone`: where it must run, "" where it may be any."""

    name: str
    template: PodTemplate
    reason: str
    zone: str = ""

    @property
    def key(self) -> str:
        """What the action is about; failures back off by it."""
        return f"pod/{self.name}"


@dataclass(frozen=True, slots=True)
class DeletePod:
    """End the pod with that UID, and no other of the same name."""

    name: str
    uid: str
    reason: str

    @property
    def key(self) -> str:
        """What the action is about; failures back off by it."""
        return f"pod/{self.name}"


@dataclass(frozen=True, slots=True)
class DrainPod:
    """Let the pod finish what it runs within so many seconds, and admit nothing new."""

    name: str
    uid: str
    seconds: float
    reason: str

    @property
    def key(self) -> str:
        """What the action is about; failures back off by it."""
        return f"drain/{self.name}"


@dataclass(frozen=True, slots=True)
class SetCatalog:
    """Give the pod's agent the adapters that it may serve, and those that it must keep loaded."""

    pod: str
    uid: str
    catalog: Catalog
    reason: str

    @property
    def key(self) -> str:
        """What the action is about; failures back off by it."""
        return f"catalog/{self.pod}"


@dataclass(frozen=True, slots=True)
class UpdateStatus:
    """Write an object's status; refused where the object is another one by now (UID)."""

    kind: Kind
    name: str
    uid: str
    status: AnyStatus
    reason: str

    @property
    def key(self) -> str:
        """What the action is about; failures back off by it."""
        return f"status/{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True)
class EmitEvent:
    """Tell people what happened to an object."""

    kind: Kind
    name: str
    uid: str
    type: Literal["Normal", "Warning"]
    reason: str
    message: str

    @property
    def key(self) -> str:
        """What the action is about; failures back off by it."""
        return f"event/{self.kind}/{self.name}"


Action = CreatePod | DeletePod | DrainPod | SetCatalog | UpdateStatus | EmitEvent


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, repairs first, and when time alone would change the plan (Unix seconds; None: never)."""

    actions: tuple[Action, ...] = field(default=())
    wake_at: float | None = None
