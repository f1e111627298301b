"""What may be listed: served names in OpenAI's shape, declared objects and pods in Sheaf's own. Pure."""

from typing import Any

from sheaf_gateway.api.keys import Caller
from sheaf_gateway.fleet.snapshot import FleetSnapshot
from sheaf_gateway.fleet.view import Fleet, Pod, Served
from sheaf_gateway.routing.router import Router

OBJECTS = ("models", "adapters", "slos", "autoscalingpolicies", "pods")


def model_list(fleet: Fleet, caller: Caller) -> dict[str, Any]:
    """Every declared name that the caller may use, also those at zero replicas."""
    cards = [model_card(fleet, served) for name, served in fleet.served.items() if caller.may_use(name)]
    return {"object": "list", "data": cards}


def model_card(fleet: Fleet, served: Served) -> dict[str, Any]:
    """One name: OpenAI's fields, and those that vLLM adds (`root`, `parent`, `max_model_len`)."""
    longest = max((pod.max_model_len for pod in fleet.pods_of(served.model)), default=0)
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "sheaf",
        "root": served.name,
        "parent": served.model if served.adapter is not None else None,
        "max_model_len": longest or None,
    }


def objects(kind: str, snapshot: FleetSnapshot, fleet: Fleet, router: Router) -> dict[str, Any]:
    """The declared objects of a kind as on the wire, or the pods with what is really so in them."""
    if kind == "pods":
        live = {pod.name: pod for pods in fleet.pods.values() for pod in pods}
        items = [{**pod.to_wire(), **_live(live[pod.name], router)} for pod in snapshot.pods]
    else:
        declared = {
            "models": snapshot.models,
            "adapters": snapshot.adapters,
            "slos": snapshot.slos,
            "autoscalingpolicies": snapshot.autoscaling_policies,
        }
        items = [item.to_wire() for item in declared[kind]]
    return {"kind": kind, "version": snapshot.version, "items": items}


def _live(pod: Pod, router: Router) -> dict[str, Any]:
    ledger = router.ledgers.get(pod.name)
    return {
        "ready": pod.ready,
        "draining": pod.draining,
        "engineEpoch": pod.epoch,
        "residentAdapters": [{"name": name, "digest": digest} for name, digest in sorted(pod.resident.items())],
        "loadingAdapters": sorted(pod.loading),
        "inFlight": ledger.running if ledger is not None else 0,
        "breaker": ledger.breaker.phase if ledger is not None else "Closed",
        "otherRequests": pod.foreign_running + pod.foreign_waiting,
        "kvUsage": pod.kv_usage,
        "maxModelLen": pod.max_model_len,
    }
