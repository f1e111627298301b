"""Statuses that differ from what is stored, with the events that go with them."""

from typing import Literal

from sheaf_crds import SLO, Adapter, AutoscalingPolicy, AutoscalingPolicyStatus, Model, SLOStatus

from sheaf_operator.planning.actions import Action, AnyStatus, EmitEvent, UpdateStatus
from sheaf_operator.planning.conditions import Verdict, conditions, transition


def report(item: Model | Adapter | SLO | AutoscalingPolicy, status: AnyStatus, ready: Verdict) -> list[Action]:
    """The status write and the event that the object needs; none where it says so already."""
    if status == item.status:
        return []
    uid = item.metadata.uid
    reason = f"Ready={ready.status}: {ready.reason}"
    actions: list[Action] = [UpdateStatus(item.kind, item.name, uid, status, reason)]
    if transition(item.status, ready):
        tone: Literal["Normal", "Warning"] = "Warning" if ready.alarming else "Normal"
        actions.append(EmitEvent(item.kind, item.name, uid, tone, ready.reason, ready.message))
    return actions


def slo_status(slo: SLO, models: int, now: float) -> list[Action]:
    """What is said of an SLO: how many Models refer to it."""
    verdict, generation = _usage(models), slo.metadata.generation
    stated = conditions(slo.status, (verdict,), generation, now)
    return report(slo, SLOStatus(observed_generation=generation, conditions=stated, models=models), verdict)


def policy_status(policy: AutoscalingPolicy, models: int, now: float) -> list[Action]:
    """What is said of an AutoscalingPolicy: how many Models refer to it."""
    verdict, generation = _usage(models), policy.metadata.generation
    stated = conditions(policy.status, (verdict,), generation, now)
    status = AutoscalingPolicyStatus(observed_generation=generation, conditions=stated, models=models)
    return report(policy, status, verdict)


def _usage(models: int) -> Verdict:
    if models:
        return Verdict("Ready", "True", "Accepted", "Models refer to it")
    return Verdict("Ready", "True", "Unused", "no Model refers to it")
