"""Where a pod may run: on which accelerators, on spot or on-demand capacity, spread over zones and nodes.

Spot capacity is known by the label that each cloud or provisioner puts on its nodes. A pod for spot needs one of
them; a pod for on-demand capacity must meet none of them, so on a cluster that has no such labels every node is
on-demand. Several accelerators of a Model are alternatives of one pod as far as its containers are the same with
each; the first is preferred.
"""

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from sheaf_crds.model import Accelerator

from sheaf_operator.planning.actions import PodTemplate
from sheaf_operator.planning.manifest.accelerators import alternatives
from sheaf_operator.planning.manifest.settings import AcceleratorSettings, PodSettings, Toleration

ACCELERATOR_LABEL = "sheaf.dev/accelerator"
MODEL_LABEL = "sheaf.dev/model"
TEMPLATE_LABEL = "sheaf.dev/template"
ZONE_LABEL = "topology.kubernetes.io/zone"
HOST_LABEL = "kubernetes.io/hostname"

# Sources: karpenter.sh well-known labels; EKS managed node groups; GKE Spot VMs, preemptible VMs and provisioning;
# AKS spot node pools; kOps and self-managed AWS groups.
SPOT_LABELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("karpenter.sh/capacity-type", ("spot",)),
    ("eks.amazonaws.com/capacityType", ("SPOT",)),
    ("cloud.google.com/gke-spot", ("true",)),
    ("cloud.google.com/gke-preemptible", ("true",)),
    ("cloud.google.com/gke-provisioning", ("spot", "preemptible")),
    ("kubernetes.azure.com/scalesetpriority", ("spot",)),
    ("node.kubernetes.io/lifecycle", ("spot",)),
)

Expression = dict[str, Any]


def spot_labels(extra: Mapping[str, str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Every label that marks a spot node, with its values."""
    return (*SPOT_LABELS, *((key, (value,)) for key, value in extra.items()))


def pinned(template: PodTemplate, settings: PodSettings, zone: str) -> str:
    """The zone that a pod is bound to: the one asked for, unless the settings choose zones themselves."""
    selectors = [settings.node_selector]
    selectors += [settings.accelerators[one.type].node_selector for one in alternatives(template.spec, settings)]
    return "" if any(ZONE_LABEL in selector for selector in selectors) else zone


def scheduling(template: PodTemplate, settings: PodSettings, zone: str = "") -> dict[str, Any]:
    """The part of a pod's spec that decides where it runs; `zone`: nowhere else, "" where it may be any."""
    choices = alternatives(template.spec, settings)
    fields: dict[str, Any] = {
        "affinity": _affinity(template, choices, settings, zone),
        "topologySpreadConstraints": [_spread(template)],
        "tolerations": _tolerations(template, choices, settings),
        "nodeSelector": settings.node_selector,
        "runtimeClassName": settings.accelerators[choices[0].type].runtime_class if choices else None,
        "priorityClassName": settings.priority_class,
        "schedulerName": settings.scheduler,
    }
    return {name: value for name, value in fields.items() if value}


def _affinity(
    template: PodTemplate, choices: Iterable[Accelerator], settings: PodSettings, zone: str
) -> dict[str, Any]:
    by_type = [_node_labels(one, settings) for one in choices]
    capacity = _spot_terms(settings) if template.spot else [_on_demand(settings)]
    place = [_expression(ZONE_LABEL, "In", (zone,))] if zone else []
    terms = [{"matchExpressions": [*one, *kind, *place]} for one, kind in product(by_type or [[]], capacity)]
    node: dict[str, Any] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    if len(by_type) > 1:
        preferred = [
            {"weight": max(1, 100 // place), "preference": {"matchExpressions": one}}
            for place, one in enumerate(by_type, start=1)
        ]
        node["preferredDuringSchedulingIgnoredDuringExecution"] = preferred
    return {"nodeAffinity": node, "podAntiAffinity": _apart(template)}


def _node_labels(accelerator: Accelerator, settings: PodSettings) -> list[Expression]:
    labels = settings.accelerators[accelerator.type].node_selector or {ACCELERATOR_LABEL: accelerator.type}
    return [_expression(key, "In", (value,)) for key, value in sorted(labels.items())]


def _spot_terms(settings: PodSettings) -> list[list[Expression]]:
    return [[_expression(key, "In", values)] for key, values in spot_labels(settings.spot_labels)]


def _on_demand(settings: PodSettings) -> list[Expression]:
    return [_expression(key, "NotIn", values) for key, values in spot_labels(settings.spot_labels)]


def _expression(key: str, operator: str, values: tuple[str, ...]) -> Expression:
    return {"key": key, "operator": operator, "values": list(values)}


def _apart(template: PodTemplate) -> dict[str, Any]:
    selector = {"matchLabels": {MODEL_LABEL: template.model}}
    term = {"labelSelector": selector, "topologyKey": HOST_LABEL}
    return {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 50, "podAffinityTerm": term}]}


def _spread(template: PodTemplate) -> dict[str, Any]:
    return {
        "maxSkew": 1,
        "topologyKey": ZONE_LABEL,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {MODEL_LABEL: template.model}},
    }


def _tolerations(
    template: PodTemplate, choices: Iterable[Accelerator], settings: PodSettings
) -> list[dict[str, object]]:
    known: list[AcceleratorSettings] = [settings.accelerators[one.type] for one in choices]
    given = [*settings.tolerations, *(one for accelerator in known for one in accelerator.tolerations)]
    given += [Toleration(key=accelerator.resource) for accelerator in known]
    if template.spot:
        given += [Toleration(key=key) for key, _ in spot_labels(settings.spot_labels)]
    unique = {one.model_dump_json(): one for one in given}
    return [one.to_wire() for one in unique.values()]
