"""What was observed: declared objects and pods of one namespace, as plain immutable values.

Times are Unix seconds. A snapshot may be old or incomplete; deciding on it must never do harm that a newer one cannot
mend.
"""

from dataclasses import dataclass
from typing import Literal

from sheaf_crds import SLO, Adapter, AutoscalingPolicy, Model
from sheaf_crds.agent_api import AgentState

Phase = Literal["Pending", "Starting", "Ready", "Failed", "Terminating"]


@dataclass(frozen=True, slots=True)
class PodFacts:
    """One engine pod as the cluster and its agent report it."""

    name: str
    uid: str
    model: str
    owner_uid: str
    template_hash: str
    phase: Phase = "Pending"
    ready: bool = False
    created_at: float = 0.0
    restarts: int = 0
    reason: str = ""
    message: str = ""
    node: str = ""
    zone: str = ""
    spot: bool = False
    agent: AgentState | None = None

    @property
    def draining(self) -> bool:
        """Whether the pod takes no new requests because it has to go."""
        return self.agent is not None and self.agent.draining

    @property
    def live(self) -> bool:
        """Whether the pod is there to stay: neither going nor failed for good."""
        return self.phase not in ("Terminating", "Failed") and not self.draining

    @property
    def serving(self) -> bool:
        """Whether the pod answers requests and stays."""
        return self.live and self.ready


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """Everything that a decision may depend on."""

    models: tuple[Model, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    slos: tuple[SLO, ...] = ()
    policies: tuple[AutoscalingPolicy, ...] = ()
    pods: tuple[PodFacts, ...] = ()
