"""What is wrong between objects: names that clash, references to nothing, adapters that their Model cannot take.

A finding that blocks keeps the object from being served; the others are reported and the object is served without
what it asked for. Either way the rest of the fleet is not touched by it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sheaf_crds import Adapter, KubeObject, Model

from sheaf_operator.planning.engine import takes_adapters
from sheaf_operator.planning.snapshot import ClusterSnapshot


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with an object, and how to mend it."""

    reason: str
    message: str
    blocks: bool = True


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings on Models and Adapters, by name; those without one are well."""

    models: Mapping[str, Finding] = field(default_factory=dict)
    adapters: Mapping[str, Finding] = field(default_factory=dict)

    def serves_model(self, name: str) -> bool:
        """Whether pods of that Model may be made."""
        return name not in self.models or not self.models[name].blocks


def judge(snapshot: ClusterSnapshot) -> Findings:
    """Everything that is wrong between the objects of the snapshot."""
    models = {model.name: model for model in snapshot.models}
    clashes = name_clashes(snapshot.models, snapshot.adapters)
    names = {"SLO": {slo.name for slo in snapshot.slos}, "AutoscalingPolicy": {p.name for p in snapshot.policies}}
    on_models = ((m.name, clashes.get(("Model", m.name)) or _dangling(m, names)) for m in snapshot.models)
    on_adapters = ((a.name, clashes.get(("Adapter", a.name)) or _misfit(a, models)) for a in snapshot.adapters)
    return Findings(
        {name: finding for name, finding in on_models if finding},
        {name: finding for name, finding in on_adapters if finding},
    )


def name_clashes(models: Iterable[Model], adapters: Iterable[Adapter]) -> dict[tuple[str, str], Finding]:
    """By (kind, name), the younger object of each pair of a Model and an Adapter with one served name."""
    by_name = {adapter.name: adapter for adapter in adapters}
    pairs = [(model, by_name[model.name]) for model in models if model.name in by_name]
    return dict(_clash(model, adapter) for model, adapter in pairs)


def _clash(model: Model, adapter: Adapter) -> tuple[tuple[str, str], Finding]:
    model_is_younger = created(adapter) < created(model)
    elder, younger = (adapter, model) if model_is_younger else (model, adapter)
    message = f"the name is already served by {elder.kind} {elder.name}; give this {younger.kind} another name"
    return (younger.kind, younger.name), Finding("NameClash", message)


def created(item: KubeObject) -> float:
    """Unix seconds of the object's creation; never, where it is not known yet."""
    stamp = item.metadata.creation_timestamp
    return stamp.timestamp() if stamp else float("inf")


def _dangling(model: Model, names: Mapping[str, set[str]]) -> Finding | None:
    spec = model.spec
    refs = (("SLO", "sloRef", spec.slo_ref), ("AutoscalingPolicy", "autoscalingPolicyRef", spec.autoscaling_policy_ref))
    missing = [(kind, path, ref.name) for kind, path, ref in refs if ref and ref.name not in names[kind]]
    if not missing:
        return None
    kind, path, name = missing[0]
    message = f"no {kind} is named {name}; create it or change spec.{path}.name (the Model is served without it)"
    return Finding(f"{kind}NotFound", message, blocks=False)


def _misfit(adapter: Adapter, models: Mapping[str, Model]) -> Finding | None:
    model = models.get(adapter.spec.model_ref.name)
    if model is None:
        name = adapter.spec.model_ref.name
        return Finding("ModelNotFound", f"no Model is named {name}; create it or change spec.modelRef.name")
    if not takes_adapters(model.spec):
        what = "embeds" if model.spec.task == "Embed" else "has lora.slots 0"
        return Finding("LoraDisabled", f"Model {model.name} {what} and takes no adapters; refer to another Model")
    if adapter.spec.rank is not None and adapter.spec.rank > model.spec.lora.max_rank:
        message = (
            f"rank {adapter.spec.rank} is above {model.spec.lora.max_rank}, the lora.maxRank of Model {model.name}"
        )
        return Finding("RankTooHigh", f"{message}; raise lora.maxRank or use an adapter of a lower rank")
    return None
