"""Statuses that differ from what is stored, with the events that go with them."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from sheaf_crds import SLO, Adapter, AutoscalingPolicy, AutoscalingPolicyStatus, Model, SLOStatus

from sheaf_operator.planning.actions import Action, AnyStatus, EmitEvent, UpdateStatus
from sheaf_operator.planning.conditions import Verdict, conditions, transition
from sheaf_operator.planning.snapshot import ClusterSnapshot


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


def usage_statuses(snapshot: ClusterSnapshot, now: float) -> list[Action]:
    """Statuses of SLOs and AutoscalingPolicies: how many Models refer to each."""
    specs = [model.spec for model in snapshot.models]
    slos = Counter(spec.slo_ref.name for spec in specs if spec.slo_ref)
    policies = Counter(spec.autoscaling_policy_ref.name for spec in specs if spec.autoscaling_policy_ref)
    return [*_slos(snapshot.slos, slos, now), *_policies(snapshot.policies, policies, now)]


def _slos(slos: Iterable[SLO], used: Counter[str], now: float) -> Iterable[Action]:
    for slo in slos:
        verdict, generation = _usage(used[slo.name]), slo.metadata.generation
        stated = conditions(slo.status, (verdict,), generation, now)
        status = SLOStatus(observed_generation=generation, conditions=stated, models=used[slo.name])
        yield from report(slo, status, verdict)


def _policies(policies: Iterable[AutoscalingPolicy], used: Counter[str], now: float) -> Iterable[Action]:
    for policy in policies:
        verdict, generation = _usage(used[policy.name]), policy.metadata.generation
        stated = conditions(policy.status, (verdict,), generation, now)
        status = AutoscalingPolicyStatus(observed_generation=generation, conditions=stated, models=used[policy.name])
        yield from report(policy, status, verdict)


def _usage(models: int) -> Verdict:
    if models:
        return Verdict("Ready", "True", "Accepted", "Models refer to it")
    return Verdict("Ready", "True", "Unused", "no Model refers to it")
