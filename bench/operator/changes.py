"""One change at a time: how long until the operator's answer to it is seen, and what it costs until all is quiet again.

| change | the answer that is awaited |
|---|---|
| an Adapter's priority is edited | the Adapter's status of the new generation |
| a Model gets one replica more | the new pod |
| a Model gets one replica less | the Model's status of the new generation (the pod drains first) |
| a pod is deleted | the pod that takes its place |

A time runs from before the API call is sent until the answer is seen by a watch.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from client import MERGE, Raw
from fleet import Fleet, Match, collection

SETTLES = 120.0


@dataclass(frozen=True)
class Reactions:
    """The times of one kind of change, seconds."""

    name: str
    times: tuple[float, ...]


Change = Callable[[Fleet, str], Awaitable[float]]


async def edit_adapter(fleet: Fleet, model: str) -> float:
    """Another priority for one Adapter of the Model."""
    name, adapter = next(
        (name, raw) for name, raw in fleet.things["Adapter"].items() if raw["spec"]["modelRef"]["name"] == model
    )
    spec = {"priority": (adapter["spec"].get("priority", 0) + 1) % 100}
    return await _patched(fleet, "Adapter", name, spec, _observed("Adapter", adapter))


async def scale_up(fleet: Fleet, model: str) -> float:
    """One replica more."""
    old, raw = set(fleet.pods_of(model).values()), fleet.things["Model"][model]
    return await _patched(fleet, "Model", model, {"replicas": raw["spec"]["replicas"] + 1}, _new_pod(model, old))


async def scale_down(fleet: Fleet, model: str) -> float:
    """One replica less."""
    raw = fleet.things["Model"][model]
    spec = {"replicas": raw["spec"]["replicas"] - 1}
    return await _patched(fleet, "Model", model, spec, _observed("Model", raw))


async def delete_pod(fleet: Fleet, model: str) -> float:
    """A pod of the Model is gone."""
    old = fleet.pods_of(model)
    seen, began = fleet.seen(_new_pod(model, set(old.values()))), time.perf_counter()
    await fleet.api.call("DELETE", f"{collection(fleet.namespace, 'Pod')}/{min(old)}")
    return await _awaited(seen) - began


CHANGES: dict[str, Change] = {
    "edit an Adapter": edit_adapter,
    "scale a Model up": scale_up,
    "scale a Model down": scale_down,
    "delete a pod": delete_pod,
}


async def react(fleet: Fleet, name: str, count: int, seed: int) -> Reactions:
    """Make a change to so many Models, one after the other, each when the one before has settled."""
    models = sorted(fleet.things["Model"])
    chosen = random.Random(seed).choices(models, k=count)
    times = []
    for model in chosen:
        times.append(await CHANGES[name](fleet, model))
        await fleet.settle(SETTLES)
    return Reactions(name, tuple(times))


async def _patched(fleet: Fleet, kind: str, name: str, spec: Raw, match: Match) -> float:
    seen, began = fleet.seen(match), time.perf_counter()
    await fleet.api.call("PATCH", f"{collection(fleet.namespace, kind)}/{name}", {"spec": spec}, MERGE)
    return await _awaited(seen) - began


async def _awaited(seen: "asyncio.Future[float]") -> float:
    try:
        async with asyncio.timeout(SETTLES):
            return await seen
    except TimeoutError:
        raise TimeoutError(f"the operator did not answer a change within {SETTLES:.0f} s") from None


def _observed(kind: str, before: Raw) -> Match:
    name, generation = before["metadata"]["name"], before["metadata"]["generation"]

    def match(found: str, _: str, raw: Raw) -> bool:
        observed = (raw.get("status") or {}).get("observedGeneration", 0)
        return found == kind and raw["metadata"]["name"] == name and observed > generation

    return match


def _new_pod(model: str, old: set[str]) -> Match:
    def match(kind: str, event: str, raw: Raw) -> bool:
        meta = raw["metadata"]
        return kind == "Pod" and event == "ADDED" and _model_of(meta) == model and meta["uid"] not in old

    return match


def _model_of(meta: Raw) -> str:
    return str((meta.get("labels") or {}).get("sheaf.dev/model", ""))
