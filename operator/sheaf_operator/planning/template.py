"""What a pod of a Model runs, and how such pods are named.

Timeouts are no part of the template: a change of them must restart no engine that serves. A pod carries those that it
was made with.
"""

import hashlib
import json
from collections.abc import Iterable

from sheaf_crds import Model

from sheaf_operator.planning.actions import PodTemplate

HASH_LENGTH = 8
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
