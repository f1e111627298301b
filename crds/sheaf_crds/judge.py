"""What is wrong between objects that are each right by themselves.

No API server can see it, because it judges one object at a time. `sheaf validate` prints it; the operator reports it in
the Ready condition, with `reason` as the reason. References mean objects of the same namespace; served names are shared
by every Model and Adapter that is passed in, so a caller passes what one gateway serves.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from sheaf_crds.adapter import Adapter
from sheaf_crds.autoscaling import AutoscalingPolicy
from sheaf_crds.meta import KubeObject
from sheaf_crds.model import Model
from sheaf_crds.rules import Path
from sheaf_crds.slo import SLO
from sheaf_crds.words import nearest

Key: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Declared:
    """The objects that are judged together."""

    models: Sequence[Model] = ()
    adapters: Sequence[Adapter] = ()
    slos: Sequence[SLO] = ()
    autoscaling_policies: Sequence[AutoscalingPolicy] = ()


class Verdict(NamedTuple):
    """What is wrong with an object because of the others, and how to mend it."""

    key: Key
    path: Path
    reason: str
    what: str
    mend: str

    @property
    def message(self) -> str:
        """One line for people."""
        return f"{self.what}; {self.mend}"


def key_of(item: KubeObject) -> Key:
    """(kind, namespace, name)."""
    return type(item).__name__, item.metadata.namespace, item.metadata.name


def by_creation(item: KubeObject) -> tuple[float, bool, str]:
    """The age of an object: its creation, then Models first, then by namespace; what is not created yet is youngest."""
    created = item.metadata.creation_timestamp
    seconds = created.timestamp() if created else float("inf")
    return seconds, isinstance(item, Adapter), item.metadata.namespace


def clash(item: KubeObject, older: KubeObject) -> Verdict:
    """The younger of two objects with one served name is not served."""
    kind, namespace, _ = key_of(older)
    what = f"the name {item.name} is served by the {kind} of that name in namespace {namespace} already"
    return Verdict(key_of(item), ("metadata", "name"), "NameClash", what, f"rename this {type(item).__name__}")


def served_name_clashes(
    models: Sequence[Model], adapters: Sequence[Adapter], age: Callable[[KubeObject], Any] = by_creation
) -> Iterator[Verdict]:
    """Every Model and Adapter whose served name an older one has already; `age` sorts the oldest first."""
    oldest: dict[str, KubeObject] = {}
    for item in sorted((*models, *adapters), key=age):
        older = oldest.setdefault(item.name, item)
        if older is not item:
            yield clash(item, older)


class Reference(NamedTuple):
    """A field of an object's spec that names another object of its namespace."""

    field: str
    kind: str
    name: str


def references(item: Model | Adapter) -> Iterator[Reference]:
    """The references of an object."""
    if isinstance(item, Adapter):
        yield Reference("modelRef", "Model", item.spec.model_ref.name)
        return
    if item.spec.slo_ref:
        yield Reference("sloRef", "SLO", item.spec.slo_ref.name)
    if item.spec.autoscaling_policy_ref:
        yield Reference("autoscalingPolicyRef", "AutoscalingPolicy", item.spec.autoscaling_policy_ref.name)


def dangling(item: Model | Adapter, reference: Reference, known: Collection[str] = ()) -> Verdict:
    """The reference leads nowhere; `known` are the names that could be meant."""
    field, kind, name = reference
    mend = nearest(name, known) or f"declare that {kind} in the same namespace or correct the name"
    what = f"there is no {kind} named {name}"
    return Verdict(key_of(item), ("spec", field, "name"), f"{kind}NotFound", what, mend)


def dangling_references(declared: Declared, also: Collection[Key] = ()) -> Iterator[Verdict]:
    """Every reference to an object that is neither declared nor among `also` (what exists but could not be read)."""
    targets = (*declared.models, *declared.slos, *declared.autoscaling_policies)
    there: dict[tuple[str, str], dict[str, None]] = {}
    for kind, namespace, name in (*map(key_of, targets), *also):
        there.setdefault((kind, namespace), {})[name] = None
    items: tuple[Model | Adapter, ...] = (*declared.models, *declared.adapters)
    for item in items:
        for reference in references(item):
            known = there.get((reference.kind, item.metadata.namespace), {})
            if reference.name not in known:
                yield dangling(item, reference, known)


def unusable_adapters(declared: Declared) -> Iterator[Verdict]:
    """Every adapter that its Model cannot take."""
    models = {key_of(model): model for model in declared.models}
    for adapter in declared.adapters:
        model = models.get(("Model", adapter.metadata.namespace, adapter.spec.model_ref.name))
        if model is not None:
            yield from unusable(adapter, model)


def unusable(adapter: Adapter, model: Model) -> Iterator[Verdict]:
    """Why the Model cannot take the adapter; nothing where it can."""
    key, ref = key_of(adapter), ("spec", "modelRef", "name")
    lora, rank = model.spec.lora, adapter.spec.rank
    if model.spec.task == "Embed":
        what = f"Model {model.name} embeds and takes no adapters"
        yield Verdict(key, ref, "LoraDisabled", what, "refer to a Model with task Generate")
    elif lora.slots == 0:
        what = f"Model {model.name} has lora.slots 0 and takes no adapters"
        yield Verdict(key, ref, "LoraDisabled", what, f"set lora.slots of {model.name} or refer to another Model")
    elif rank is not None and rank > lora.max_rank:
        what = f"rank {rank} is above {lora.max_rank}, the lora.maxRank of Model {model.name}"
        yield Verdict(
            key, ("spec", "rank"), "RankTooHigh", what, f"raise lora.maxRank of {model.name} or retrain lower"
        )


def unfit_policies(declared: Declared) -> Iterator[Verdict]:
    """Every Model whose AutoscalingPolicy cannot scale it."""
    policies = {key_of(policy): policy for policy in declared.autoscaling_policies}
    for model in declared.models:
        ref = model.spec.autoscaling_policy_ref
        policy = policies.get(("AutoscalingPolicy", model.metadata.namespace, ref.name)) if ref else None
        if policy is not None:
            yield from unfit(model, policy)


def unfit(model: Model, policy: AutoscalingPolicy) -> Iterator[Verdict]:
    """Why the policy cannot scale the Model; nothing where it can."""
    key, ref = key_of(model), ("spec", "autoscalingPolicyRef", "name")
    spec, bounds = model.spec, policy.spec
    if spec.max_replicas is not None and spec.max_replicas < bounds.min_replicas:
        what = f"maxReplicas {spec.max_replicas} is below {bounds.min_replicas}, the minReplicas of {policy.name}"
        yield Verdict(key, ref, "BoundsExclude", what, "raise maxReplicas or refer to another AutoscalingPolicy")
    if spec.min_replicas > bounds.max_replicas:
        what = f"minReplicas {spec.min_replicas} is above {bounds.max_replicas}, the maxReplicas of {policy.name}"
        yield Verdict(key, ref, "BoundsExclude", what, "lower minReplicas or refer to another AutoscalingPolicy")
    if bounds.signal == "SLO" and spec.slo_ref is None:
        what = f"AutoscalingPolicy {policy.name} follows the SLO of its Model, and there is none"
        yield Verdict(key, ref, "SLOMissing", what, "set spec.sloRef.name or choose a policy with another signal")


def judge(
    declared: Declared, also: Collection[Key] = (), age: Callable[[KubeObject], Any] = by_creation
) -> tuple[Verdict, ...]:
    """Everything that is wrong between these objects."""
    return (
        *served_name_clashes(declared.models, declared.adapters, age),
        *dangling_references(declared, also),
        *unusable_adapters(declared),
        *unfit_policies(declared),
    )
