"""The API types of Sheaf, group `sheaf.dev/v1alpha1`, and what is generated from them."""

from sheaf_crds.adapter import Adapter, AdapterSpec, AdapterStatus, Placement
from sheaf_crds.autoscaling import AutoscalingPolicy, AutoscalingPolicySpec, AutoscalingPolicyStatus
from sheaf_crds.base import API_VERSION, GROUP, VERSION, ApiType, Ref
from sheaf_crds.meta import Condition, KubeObject, Metadata, Status
from sheaf_crds.model import Model, ModelSpec, ModelStatus
from sheaf_crds.slo import SLO, SLOSpec, SLOStatus

KINDS: dict[str, type[KubeObject]] = {
    "Model": Model,
    "Adapter": Adapter,
    "SLO": SLO,
    "AutoscalingPolicy": AutoscalingPolicy,
}

__all__ = [
    "API_VERSION",
    "GROUP",
    "KINDS",
    "SLO",
    "VERSION",
    "Adapter",
    "AdapterSpec",
    "AdapterStatus",
    "ApiType",
    "AutoscalingPolicy",
    "AutoscalingPolicySpec",
    "AutoscalingPolicyStatus",
    "Condition",
    "KubeObject",
    "Metadata",
    "Model",
    "ModelSpec",
    "ModelStatus",
    "Placement",
    "Ref",
    "SLOSpec",
    "SLOStatus",
    "Status",
]
