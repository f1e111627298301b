"""What an engine pod is on Kubernetes: manifests out of templates, and facts out of Pods and Nodes. Pure."""

from sheaf_operator.planning.manifest.facts import NodeFacts, node_facts, pod_facts
from sheaf_operator.planning.manifest.pod import pod_manifest
from sheaf_operator.planning.manifest.refusal import ManifestError, Refusal, refusal
from sheaf_operator.planning.manifest.settings import AcceleratorSettings, Images, PodSettings

__all__ = [
    "AcceleratorSettings",
    "Images",
    "ManifestError",
    "NodeFacts",
    "PodSettings",
    "Refusal",
    "node_facts",
    "pod_facts",
    "pod_manifest",
    "refusal",
]
