"""Statuses that differ from what is stored, with the events that go with them."""

from typing import Literal

from sheaf_crds import SLO, Adapter, AutoscalingPolicy, AutoscalingPolicyStatus, Model, SLOStatus
from sheaf_crds.model import ModelAutoscaling
from sheaf_crds.slo import SLOWindow

from sheaf_operator.planning.actions import Action, AnyStatus, EmitEvent, UpdateStatus
from sheaf_operator.planning.autoscaling.bounds import strange
from sheaf_operator.planning.conditions import Verdict, conditions, transition
from sheaf_operator.planning.words import counted


def report(
    item: Model | Adapter | SLO | AutoscalingPolicy, status: AnyStatus, ready: Verdict, *others: Verdict
) -> list[Action]:
    """The status write and the events that the object needs; none where it says so already.

    An event comes with every transition of Ready, and with one of another condition that people should look at.
    """
    if status == item.status:
        return []
    uid = item.metadata.uid
    reason = f"Ready={ready.status}: {ready.reason}"
    told = [verdict for verdict in (ready, *others) if verdict is ready or verdict.alarming]
    events = [_event(item, verdict) for verdict in told if transition(item.status, verdict)]
    return [UpdateStatus(item.kind, item.name, uid, status, reason), *events]


def _event(item: Model | Adapter | SLO | AutoscalingPolicy, verdict: Verdict) -> EmitEvent:
    tone: Literal["Normal", "Warning"] = "Warning" if verdict.alarming else "Normal"
    return EmitEvent(item.kind, item.name, item.metadata.uid, tone, verdict.reason, verdict.message)


def scaling_events(model: Model, record: ModelAutoscaling | None) -> list[Action]:
    """The event of a change of the number that the status does not tell yet."""
    last = record.decisions[0] if record is not None and record.decisions else None
    told = model.status.autoscaling
    if last is None or (told is not None and told.decisions[:1] == (last,)):
        return []
    word = "ScaledUp" if last.after > last.before else "ScaledDown"
    message = f"{last.before} to {last.after} replicas: {last.reason}: {last.message}"
    return [EmitEvent("Model", model.name, model.metadata.uid, "Normal", word, message)]


def slo_status(slo: SLO, models: int, now: float, windows: tuple[SLOWindow, ...] | None = None) -> list[Action]:
    """What is said of an SLO: how many Models refer to it, and how it was kept (None: as was said before)."""
    verdict, generation = _usage(models), slo.metadata.generation
    stated = conditions(slo.status, (verdict,), generation, now)
    kept = slo.status.windows if windows is None else windows
    status = SLOStatus(observed_generation=generation, conditions=stated, models=models, windows=kept)
    return report(slo, status, verdict)


def policy_status(policy: AutoscalingPolicy, models: int, now: float) -> list[Action]:
    """What is said of an AutoscalingPolicy: how many Models refer to it, or that it cannot be followed as written."""
    verdict, generation = _time_zones(policy) or _usage(models), policy.metadata.generation
    stated = conditions(policy.status, (verdict,), generation, now)
    status = AutoscalingPolicyStatus(observed_generation=generation, conditions=stated, models=models)
    return report(policy, status, verdict)


def _time_zones(policy: AutoscalingPolicy) -> Verdict | None:
    told = [f"{window.time_zone} of window {window.name}" for window in strange(policy.spec)]
    if not told:
        return None
    what = f"there is no time zone {', '.join(told)}, and UTC is taken instead"
    mend = "write the name of an IANA time zone, such as Europe/Berlin"
    return Verdict("Ready", "False", "TimeZoneUnknown", f"{what}; {mend}", alarming=True)


def _usage(models: int) -> Verdict:
    if models:
        told = f"{counted(models, 'Model')} {'refers' if models == 1 else 'refer'} to it"
        return Verdict("Ready", "True", "Accepted", told)
    return Verdict("Ready", "True", "Unused", "no Model refers to it")
