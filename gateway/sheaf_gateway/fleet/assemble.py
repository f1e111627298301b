"""From what is declared and what each agent says to the view that decisions read: pure."""

from collections.abc import Collection, Container, Iterable, Mapping
from types import MappingProxyType
from typing import TypeVar

import msgspec
from sheaf_crds import Adapter, Model
from sheaf_crds.agent_api import AgentState

from sheaf_gateway.fleet.snapshot import PodSnapshot
from sheaf_gateway.fleet.view import Pod, Promise, Served

T = TypeVar("T")


def pod_view(pod: PodSnapshot, state: AgentState | None, own_running: int) -> Pod:
    """One pod; `own_running` requests of this gateway were in the engine when the agent reported."""
    bare = Pod(
        name=pod.name,
        uid=pod.uid,
        model=pod.model,
        engine_url=pod.engine_url,
        agent_url=pod.agent_url,
        ready=pod.ready and bool(pod.engine_url),
        draining=pod.draining,
        deadline=pod.deadline,
        spot=pod.spot,
        zone=pod.zone,
    )
    return bare if state is None else _reported(bare, state, own_running)


def _reported(pod: Pod, state: AgentState, own_running: int) -> Pod:
    load, goes = state.load, _goes(state)
    return msgspec.structs.replace(
        pod,
        ready=pod.ready and state.engine == "Ready",
        draining=pod.draining or state.draining or goes > 0.0,
        deadline=_first(pod.deadline, state.drain_deadline if state.draining else 0.0, goes),
        continues=state.continues,
        epoch=state.engine_epoch,
        resident=MappingProxyType({a.name: bare_digest(a.digest) for a in state.adapters if a.state == "Resident"}),
        loading=frozenset(a.name for a in state.adapters if a.state == "Loading"),
        foreign_running=max(0, load.running - own_running),
        foreign_waiting=max(0, load.waiting - max(0, own_running - load.running)),
        kv_usage=load.kv_usage,
        max_model_len=state.max_model_len,
    )


def _goes(state: AgentState) -> float:
    """When the machine goes, as its cloud's metadata says: from then on the pod counts as draining, whether or not the
    operator has told it to; 0: it stays, or serves until it is replaced."""
    notice = state.notice
    return 0.0 if notice is None or notice.advisory else notice.deadline


def _first(*deadlines: float) -> float:
    """The earliest of the deadlines that are known; 0: none is."""
    return min((deadline for deadline in deadlines if deadline), default=0.0)


def arranged(pods: Iterable[Pod], suspects: Container[str] = (), held: Collection[str] = ()) -> tuple[Pod, ...]:
    """The pods of one Model by rising name.

    A suspect (its agent does not answer) does not count as ready, unless no other pod is: then the gateway doubts
    its own eyes. Nor does one that is held back, as long as there is another that stays.
    """
    found = tuple(sorted(pods, key=_name))
    ready = [pod.name for pod in found if pod.ready]
    doubted = {name for name in ready if name in suspects}
    left_out = set() if len(doubted) == len(ready) else doubted
    if held and any(
        pod.ready and not pod.draining and pod.name not in left_out and pod.name not in held for pod in found
    ):
        left_out = left_out.union(held)
    if not left_out:
        return found
    return tuple(msgspec.structs.replace(pod, ready=False) if pod.name in left_out else pod for pod in found)


def renamed(served: Mapping[str, Served], changed: Mapping[str, Served | None]) -> Mapping[str, Served]:
    """The names with some of them changed (None: gone), by rising name; the same object where nothing differs."""
    news = {name: entry for name, entry in changed.items() if served.get(name) != entry}
    if not news:
        return served
    merged = thawed(served)
    for name, entry in news.items():
        if entry is None:
            del merged[name]
        else:
            merged[name] = entry
    if any(name not in served for name in news):
        merged = {name: merged[name] for name in sorted(merged)}
    return MappingProxyType(merged)


def thawed(mapping: Mapping[str, T]) -> dict[str, T]:
    """A copy to change; of a read-only view of a dict as quick as of the dict."""
    return mapping.copy() if isinstance(mapping, MappingProxyType) else dict(mapping)


def served_model(model: Model, promised: Promise) -> Served:
    """What callers get under a Model's name."""
    return Served(
        name=model.name,
        model=model.name,
        task=model.spec.task,
        replicas=model.spec.replicas,
        created=_created(model),
        promise=promised,
    )


def served_adapter(adapter: Adapter, base: Served) -> Served:
    """What callers get under the name of an Adapter of a served Model."""
    return Served(
        name=adapter.name,
        model=base.model,
        adapter=adapter.name,
        digest=bare_digest(adapter.spec.digest or ""),
        task=base.task,
        replicas=base.replicas,
        created=_created(adapter),
        promise=base.promise,
    )


def bare_digest(digest: str) -> str:
    """A digest without its `sha256:`."""
    return digest.removeprefix("sha256:")


def _created(declared: Model | Adapter) -> int:
    stamp = declared.metadata.creation_timestamp
    return int(stamp.timestamp()) if stamp is not None else 0


def _name(pod: Pod) -> str:
    return pod.name
