"""What one decision leaves for the next, and the part of it that a Model's status keeps over a restart."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from sheaf_crds.model import ModelAutoscaling, ScalingDecision

from sheaf_operator.planning.autoscaling.correction import Correction
from sheaf_operator.planning.autoscaling.facts import Reason
from sheaf_operator.planning.autoscaling.history import History
from sheaf_operator.planning.autoscaling.lengths import Lengths
from sheaf_operator.planning.autoscaling.season import Season
from sheaf_operator.planning.autoscaling.steady import Wishes

KEPT = 10
LONGEST_MESSAGE = 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """One Model's.

    Attributes:
        replicas: the number decided last; None: none was.
        changed_at: when it was decided, Unix seconds.
        calm_since: since when as many replicas as wanted serve.
        idle_since: since when nothing is asked; None: something is.
        busy_at: when something was seen to be asked last.
        cold_start_s: seconds from a pod's creation until it serves, as pods showed; None: none did.
        decisions: the last changes of the number, the latest first.
    """

    replicas: int | None = None
    changed_at: float = 0.0
    history: History = field(default_factory=History)
    wishes: Wishes = field(default_factory=Wishes)
    season: Season = field(default_factory=Season)
    correction: Correction = field(default_factory=Correction)
    lengths: Lengths = field(default_factory=Lengths)
    calm_since: float = 0.0
    idle_since: float | None = None
    busy_at: float = 0.0
    cold_start_s: float | None = None
    decisions: tuple[ScalingDecision, ...] = ()

    def decided(self, replicas: int, reasons: tuple[Reason, ...], before: int, now: float) -> "Memory":
        """The memory after a number was decided; `before` is what there was."""
        if self.replicas == replicas:
            return self
        entry = ScalingDecision(
            at=moment(now),
            before=before,
            after=replicas,
            reason=reasons[0].word,
            message="; ".join(reason.text for reason in reasons)[:LONGEST_MESSAGE],
        )
        entries = (entry, *self.decisions)[:KEPT] if replicas != before else self.decisions
        return replace(self, replicas=replicas, changed_at=now, decisions=entries)


def moment(now: float) -> datetime:
    """Unix seconds as an API time, to the second."""
    return datetime.fromtimestamp(int(now), UTC)


def recorded(memory: Memory, policy: str, *, keeps_season: bool) -> ModelAutoscaling:
    """What the Model's status says; the same until the number changes, but for what a restart must not forget.

    Args:
        memory: of the Model.
        policy: name of its AutoscalingPolicy.
        keeps_season: whether hours of the week count.
    """
    return ModelAutoscaling(
        policy=policy,
        desired_replicas=memory.replicas or 0,
        cold_start=None if memory.cold_start_s is None else float(round(memory.cold_start_s / 5.0) * 5),
        season=memory.season.rates if keeps_season else (),
        decisions=memory.decisions,
    )


def remembered(record: ModelAutoscaling | None) -> Memory:
    """The memory that a status holds."""
    if record is None:
        return Memory()
    last = record.decisions[0].at.timestamp() if record.decisions else 0.0
    return Memory(
        replicas=record.desired_replicas,
        changed_at=last,
        season=Season(record.season),
        cold_start_s=record.cold_start,
        decisions=record.decisions,
    )


@dataclass(frozen=True, slots=True)
class Decision:
    """So many replicas, why, what to remember, and when to decide again at the latest (Unix seconds)."""

    replicas: int
    reasons: tuple[Reason, ...]
    memory: Memory
    wake_at: float
