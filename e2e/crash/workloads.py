"""What users and clouds do to a fleet while the operator dies: a state to begin with, and steps that change it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweep import Stage

DIGEST = "sha256:" + "a" * 64

Objects = list[dict[str, Any]]


def an_object(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "sheaf.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def model(replicas: int, *args: str) -> dict[str, Any]:
    engine = {"name": "emulator", "args": list(args)}
    lora = {"slots": 2}
    return an_object(
        "Model", "m", source="hf://org/name", engine=engine, replicas=replicas, lora=lora, drainTimeout="3s"
    )


def adapter(name: str, **spec: Any) -> dict[str, Any]:
    return an_object("Adapter", name, modelRef={"name": "m"}, source=f"s3://bucket/{name}", **spec)


@dataclass(frozen=True)
class Workload:
    """`begin` is there and served before the operator may die; `change` is what it may die in."""

    name: str
    begin: Objects
    change: Callable[[Stage], Awaitable[None]]


def applying(*steps: Objects) -> Callable[[Stage], Awaitable[None]]:
    async def change(stage: Stage) -> None:
        for index, objects in enumerate(steps):
            if index:
                await asyncio.sleep(0.6)
            await stage.apply(*objects)

    return change


def deleting(kind: str, name: str) -> Callable[[Stage], Awaitable[None]]:
    async def change(stage: Stage) -> None:
        await stage.delete(kind, name)

    return change


async def _spot_notice(stage: Stage) -> None:
    pod = min(pod["metadata"]["name"] for pod in stage.kubelet.pods)
    ready = {"type": "Ready", "status": "True"}
    going = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": "shutdown"}
    await stage.kubelet.patch_status(pod, {"conditions": [ready, going]})


async def _delete_while_starting(stage: Stage) -> None:
    stage.kubelet.hold = True
    await stage.apply(model(2), adapter("a"))
    await stage.until(lambda: len(stage.kubelet.pods) == 2 or stage.operator_died())
    await stage.delete("Model", "m")
    stage.kubelet.hold = False


SERVING = [model(2), adapter("a", replicas=2)]

WORKLOADS = [
    Workload(
        "create",
        [],
        applying(
            [an_object("SLO", "chat"), an_object("AutoscalingPolicy", "steady", maxReplicas=1), *SERVING, adapter("b")]
        ),
    ),
    Workload("scale-up", [model(1), adapter("a")], applying([model(3)])),
    Workload("scale-down", [model(3), adapter("a")], applying([model(1)])),
    Workload("template-change", SERVING, applying([model(2, "--max-model-len=2048")])),
    Workload("adapter-add", SERVING, applying([adapter("b", replicas=2)])),
    Workload("adapter-change", SERVING, applying([adapter("a", replicas=2, digest=DIGEST)])),
    Workload("adapter-remove", SERVING, deleting("Adapter", "a")),
    Workload("spot-notice", SERVING, _spot_notice),
    Workload("delete-while-starting", [], _delete_while_starting),
    Workload("there-and-back", SERVING, applying([model(2, "--max-model-len=2048")], [model(2)])),
]
