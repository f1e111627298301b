"""Conditions after KEP-1623: written only when something changed, lastTransitionTime only when the status did."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from sheaf_crds import Condition, Status

Truth = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is so of one aspect of an object, and why; `alarming` where people should look at it."""

    type: str
    status: Truth
    reason: str
    message: str = ""
    alarming: bool = False


def conditions(old: Status, verdicts: Sequence[Verdict], generation: int, now: float) -> tuple[Condition, ...]:
    """The conditions to store: equal to the old ones where nothing changed.

    Args:
        old: the status as stored.
        verdicts: what is so now, one for each condition type.
        generation: metadata.generation that was judged.
        now: Unix seconds, cut to whole seconds as Kubernetes stores them.
    """
    return tuple(_condition(old.condition(verdict.type), verdict, generation, now) for verdict in verdicts)


def transition(old: Status, verdict: Verdict) -> bool:
    """Whether status or reason differ from what is stored: worth an event."""
    before = old.condition(verdict.type)
    return before is None or (before.status, before.reason) != (verdict.status, verdict.reason)


def _condition(before: Condition | None, verdict: Verdict, generation: int, now: float) -> Condition:
    kept = before is not None and before.status == verdict.status and before.last_transition_time is not None
    return Condition(
        type=verdict.type,
        status=verdict.status,
        reason=verdict.reason,
        message=verdict.message[:32768],
        observed_generation=generation,
        last_transition_time=before.last_transition_time if before and kept else datetime.fromtimestamp(int(now), UTC),
    )
