"""From a snapshot and what each agent says to the view that decisions read: pure."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import msgspec
from sheaf_crds import SLO, Adapter, Model
from sheaf_crds.agent_api import AgentState

from sheaf_gateway.fleet.snapshot import FleetSnapshot, PodSnapshot
from sheaf_gateway.fleet.view import Fleet, Pod, Promise, Rate, Served

_NO_PROMISE = Promise()


def served_names(snapshot: FleetSnapshot) -> Mapping[str, Served]:
    """Every name that callers may use. Where a Model and an Adapter clash, the Model keeps the name."""
    promises = {slo.name: promise(slo) for slo in snapshot.slos}
    models = {model.name: model for model in snapshot.models}
    names = {a.name: _adapter(a, models[a.spec.model_ref.name], promises) for a in _attached(snapshot, models)}
    names.update((name, _model(model, promises)) for name, model in models.items())
    return MappingProxyType(dict(sorted(names.items())))


def pod_view(pod: PodSnapshot, state: AgentState | None, own_running: int) -> Pod:
    """One pod; `own_running` requests of this gateway were in the engine when the agent reported."""
    bare = Pod(
        name=pod.name,
        uid=pod.uid,
        model=pod.model,
        engine_url=pod.engine_url,
        agent_url=pod.agent_url,
        ready=pod.ready,
        draining=pod.draining,
        spot=pod.spot,
        zone=pod.zone,
    )
    return bare if state is None else _reported(bare, state, own_running)


def _reported(pod: Pod, state: AgentState, own_running: int) -> Pod:
    load = state.load
    return msgspec.structs.replace(
        pod,
        ready=pod.ready and state.engine == "Ready",
        draining=pod.draining or state.draining,
        epoch=state.engine_epoch,
        resident=MappingProxyType({a.name: bare_digest(a.digest) for a in state.adapters if a.state == "Resident"}),
        loading=frozenset(a.name for a in state.adapters if a.state == "Loading"),
        foreign_running=max(0, load.running - own_running),
        foreign_waiting=max(0, load.waiting - max(0, own_running - load.running)),
        kv_usage=load.kv_usage,
        max_model_len=state.max_model_len,
    )


def grouped(version: int, served: Mapping[str, Served], pods: Iterable[Pod]) -> Fleet:
    """The view of these names and pods."""
    by_model: dict[str, list[Pod]] = {}
    for pod in sorted(pods, key=lambda pod: pod.name):
        by_model.setdefault(pod.model, []).append(pod)
    found = {model: tuple(pods) for model, pods in by_model.items()}
    ready = {model: sum(pod.ready for pod in pods) for model, pods in found.items()}
    return Fleet(version=version, served=served, pods=MappingProxyType(found), ready=MappingProxyType(ready))


def promise(slo: SLO) -> Promise:
    """What admission reads of an SLO object."""
    spec = slo.spec
    limits = Rate(
        requests_per_minute=spec.limits.requests_per_minute,
        tokens_per_minute=spec.limits.tokens_per_minute,
        max_concurrent=spec.limits.max_concurrent,
    )
    return Promise(
        name=slo.name,
        interactive=spec.class_ == "Interactive",
        max_queue=spec.queue.max_requests,
        max_wait=spec.queue.max_wait,
        limits=limits,
    )


def bare_digest(digest: str) -> str:
    """A digest without its `sha256:`."""
    return digest.removeprefix("sha256:")


def _attached(snapshot: FleetSnapshot, models: Mapping[str, Model]) -> Iterable[Adapter]:
    return (adapter for adapter in snapshot.adapters if adapter.spec.model_ref.name in models)


def _promise_of(model: Model, promises: Mapping[str, Promise]) -> Promise:
    ref = model.spec.slo_ref
    return promises.get(ref.name, _NO_PROMISE) if ref is not None else _NO_PROMISE


def _model(model: Model, promises: Mapping[str, Promise]) -> Served:
    return Served(
        name=model.name,
        model=model.name,
        task=model.spec.task,
        replicas=model.spec.replicas,
        created=_created(model),
        promise=_promise_of(model, promises),
    )


def _adapter(adapter: Adapter, model: Model, promises: Mapping[str, Promise]) -> Served:
    return Served(
        name=adapter.name,
        model=model.name,
        adapter=adapter.name,
        digest=bare_digest(adapter.spec.digest or ""),
        task=model.spec.task,
        replicas=model.spec.replicas,
        created=_created(adapter),
        promise=_promise_of(model, promises),
    )


def _created(declared: Model | Adapter) -> int:
    stamp = declared.metadata.creation_timestamp
    return int(stamp.timestamp()) if stamp is not None else 0
