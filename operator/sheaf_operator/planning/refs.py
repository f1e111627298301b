"""What is wrong between objects, and which of it keeps an object from being served.

The judgement itself is `sheaf_crds.judge`, the same that `sheaf validate` prints, object by object, so that judging one
costs nothing for the others. A finding that blocks keeps the object from being served; the others are reported and the
Model is served without what it asked for. Either way the rest of the fleet is not touched by it.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from sheaf_crds import Adapter, AutoscalingPolicy, KubeObject, Model
from sheaf_crds.judge import Reference, Verdict, by_creation, clash, dangling, key_of, references, unfit, unusable


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with an object, and how to mend it."""

    reason: str
    message: str
    blocks: bool = True


def judge_model(
    model: Model,
    twin: Adapter | None,
    policy: AutoscalingPolicy | None,
    *,
    slo: bool,
    unreadable: Collection[str] = (),
) -> Finding | None:
    """The first thing that is wrong with a Model because of the others.

    Args:
        model: the Model.
        twin: the Adapter of the same name, if there is one.
        policy: the AutoscalingPolicy that it refers to, where that exists.
        slo: whether the SLO that it refers to exists.
        unreadable: kinds of what it refers to that exists and cannot be read.
    """
    missing = {"SLO"} if not slo else set()
    missing |= {"AutoscalingPolicy"} if policy is None else set()
    verdict = next(_verdicts_on_model(model, twin, policy, missing, unreadable), None)
    if verdict is None:
        return None
    blocks = verdict.reason == "NameClash"
    message = verdict.message if blocks else f"{verdict.message} ({_meanwhile(verdict)})"
    return Finding(verdict.reason, message, blocks)


def _meanwhile(verdict: Verdict) -> str:
    gone = verdict.reason in ("AutoscalingPolicyNotFound", "AutoscalingPolicyInvalid")
    return "until then its number of replicas stays" if gone else "until then it is served without"


def judge_adapter(adapter: Adapter, twin: Model | None, model: Model | None) -> Finding | None:
    """The first thing that is wrong with an Adapter because of the Model of its name and the Model that it is for."""
    verdict = next(_verdicts_on_adapter(adapter, twin, model), None)
    return Finding(verdict.reason, verdict.message) if verdict else None


def _verdicts_on_model(
    model: Model,
    twin: Adapter | None,
    policy: AutoscalingPolicy | None,
    missing: set[str],
    unreadable: Collection[str],
) -> Iterator[Verdict]:
    if twin is not None and _older(twin, model):
        yield clash(model, twin)
    lost = [reference for reference in references(model) if reference.kind in missing]
    yield from (_unread(model, one) if one.kind in unreadable else dangling(model, one) for one in lost)
    if policy is not None:
        yield from unfit(model, policy)


def _unread(model: Model, reference: Reference) -> Verdict:
    field, kind, name = reference
    what, mend = f"{kind} {name} cannot be read", "its own Ready condition says why and how to mend it"
    return Verdict(key_of(model), ("spec", field, "name"), f"{kind}Invalid", what, mend)


def _verdicts_on_adapter(adapter: Adapter, twin: Model | None, model: Model | None) -> Iterator[Verdict]:
    if twin is not None and not _older(adapter, twin):
        yield clash(adapter, twin)
    if model is None:
        yield from (dangling(adapter, reference) for reference in references(adapter))
    else:
        yield from unusable(adapter, model)


def _older(item: KubeObject, other: KubeObject) -> bool:
    return by_creation(item) < by_creation(other)
