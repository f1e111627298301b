"""What a pod of a Model runs, how such pods are named, and how many there should be."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from sheaf_crds import AutoscalingPolicy, Model

from sheaf_operator.planning.actions import PodTemplate

HASH_LENGTH = 8
UNBOUNDED = 1_000_000
POD_FIELDS = {"source", "task", "engine", "accelerators", "lora"}


def template_hash(model: Model, settings_digest: str = "", *, spot: bool = False) -> str:
    """Digest of all whose change needs new pods; equal inputs give equal hashes in every process.

    Defaults are left out, so that a field that a later version adds rolls no pods.

    Args:
        model: the Model.
        settings_digest: what the operator itself puts into pods.
        spot: whether the pod is for spot capacity; a pod cannot move between the two.
    """
    fields = model.spec.model_dump(mode="json", by_alias=True, include=POD_FIELDS, exclude_defaults=True)
    content = json.dumps([fields, settings_digest, spot], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:HASH_LENGTH]


def pod_template(model: Model, settings_digest: str = "", *, spot: bool = False) -> PodTemplate:
    """The template of the Model's pods as declared now."""
    digest = template_hash(model, settings_digest, spot=spot)
    return PodTemplate(model.name, model.metadata.uid, digest, model.spec, spot)


def pod_names(template: PodTemplate, taken: Iterable[str], count: int) -> list[str]:
    """Names for so many new pods: the lowest free indices.

    Names are a function of what is there, so that a pass that is repeated, because its outcome was not seen, asks for
    the same names again and meets the pods that it made.
    """
    used = set(taken)
    candidates = (f"{template.model}-{template.hash}-{index}" for index in range(len(used) + count))
    return [name for name in candidates if name not in used][:count]


def model_of_pod(pod_name: str) -> str:
    """The Model that a pod's name belongs to."""
    return re.sub(rf"-[0-9a-f]{{{HASH_LENGTH}}}-[0-9]+$", "", pod_name)


@dataclass(frozen=True, slots=True)
class Desired:
    """How many replicas there should be, and why it is another number than declared ("" where it is not)."""

    replicas: int
    note: str = ""


def desired_replicas(model: Model, policy: AutoscalingPolicy | None) -> Desired:
    """spec.replicas within the bounds of the Model and of its AutoscalingPolicy; the Model's ceiling is the hardest."""
    spec = model.spec
    low, high = _bounds(model, policy)
    if spec.replicas > high:
        return Desired(high, f"replicas {spec.replicas} is held at maxReplicas {high}")
    if spec.replicas < low and not _may_sleep(model, policy):
        return Desired(low, f"replicas {spec.replicas} is raised to minReplicas {low}")
    return Desired(spec.replicas)


def _bounds(model: Model, policy: AutoscalingPolicy | None) -> tuple[int, int]:
    spec = model.spec
    low = max(spec.min_replicas, policy.spec.min_replicas if policy else 0)
    ceilings = (spec.max_replicas, policy.spec.max_replicas if policy else None)
    high = min((ceiling for ceiling in ceilings if ceiling is not None), default=UNBOUNDED)
    return min(low, high), high


def _may_sleep(model: Model, policy: AutoscalingPolicy | None) -> bool:
    sleeps = policy is not None and policy.spec.scale_to_zero is not None
    return sleeps and model.spec.replicas == 0 and model.spec.min_replicas == 0
