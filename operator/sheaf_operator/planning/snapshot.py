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
class Notice:
    """A node or a pod says that the pod will go: a spot notice, a drain of the node, maintenance.

    `source` is who says so, `reason` a CamelCase word, `message` for people, `deadline` when the pod is gone at the
    latest (Unix seconds; None: nobody says).
    """

    source: str
    reason: str
    message: str = ""
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class PodFacts:
    """One engine pod as the cluster and its agent report it.

    `template_hash` is the hash of the PodTemplate that it was made from, `ended_at` when it failed for good (Unix
    seconds; 0: it did not, or nobody knows), `startup_limit` the seconds after which its engine is started again while
    it does not answer (0: nobody knows), `scheduled_at` when it found its node (Unix seconds; 0: not yet, or nobody
    knows), `backs_off` whether its engine ended over and over and waits before it is started again,
    `restarts` how often a container was started again, `engine_restarts` how often the engine was.
    """

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
    notice: Notice | None = None
    ended_at: float = 0.0
    startup_limit: float = 0.0
    scheduled_at: float = 0.0
    backs_off: bool = False
    engine_restarts: int = 0

    @property
    def draining(self) -> bool:
        """Whether the pod's agent takes no new requests because the pod has to go."""
        return self.agent is not None and self.agent.draining and not self.agent.drains_until_restart

    @property
    def restarting(self) -> bool:
        """Whether the pod takes no new requests until its engine has started anew."""
        return self.agent is not None and self.agent.drains_until_restart

    @property
    def ended(self) -> bool:
        """Whether the pod is over already: failed for good, or about to disappear."""
        return self.phase in ("Terminating", "Failed")

    @property
    def answers(self) -> bool:
        """Whether the pod answers requests now, be it that it stays or goes."""
        return self.ready and not self.ended and not self.draining and not self.restarting

    @property
    def bides(self) -> bool:
        """Whether the pod serves until it is replaced: under a notice that sets no time."""
        return self.answers and self.notice is not None and self.notice.deadline is None

    @property
    def advice(self) -> str:
        """What the cloud says of a raised risk to lose the pod; empty where it says nothing, or that it goes."""
        told = self.agent.notice if self.agent else None
        return told.message or told.reason if told is not None and told.advisory and self.live else ""

    @property
    def live(self) -> bool:
        """Whether the pod is there to stay: neither over, nor draining, nor under notice."""
        return not self.ended and not self.draining and self.notice is None

    @property
    def serving(self) -> bool:
        """Whether the pod answers requests and stays."""
        return self.live and self.ready and not self.restarting

    @property
    def recovering(self) -> bool:
        """Whether the pod has served and its engine starts anew, and not over and over."""
        served = self.agent is not None and (self.agent.engine_epoch > 0 or self.restarting)
        return served and self.live and not self.serving and not self.backs_off


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """Everything that a decision may depend on.

    `settings_digest` stands for what the operator itself puts into pods (images, volumes): another digest is another
    template.
    """

    models: tuple[Model, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    slos: tuple[SLO, ...] = ()
    policies: tuple[AutoscalingPolicy, ...] = ()
    pods: tuple[PodFacts, ...] = ()
    settings_digest: str = ""
