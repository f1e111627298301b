"""The declared fleet, and the fleet as it is seen: what is not settled yet, and when something was seen."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from client import Api, Feed, Raw

API_VERSION = "sheaf.dev/v1alpha1"
MODEL_LABEL = "sheaf.dev/model"
SLOS = 5
AT_ONCE = 16

Match = Callable[[str, str, Raw], bool]


@dataclass(frozen=True)
class Size:
    """How many of each; pods and Adapters are shared out among the Models as evenly as can be."""

    models: int
    adapters: int
    pods: int

    def part(self, share: float) -> "Size":
        """A fleet of this share of it."""
        return Size(*(max(1, round(number * share)) for number in (self.models, self.adapters, self.pods)))


def objects(size: Size) -> Iterator[Raw]:
    """The declared objects: every Model on the emulator and under one of five SLOs."""
    for index in range(SLOS):
        yield _object("SLO", f"slo-{index}", {"class": "Interactive", "ttft": {"p95": "800ms"}})
    for index in range(size.models):
        replicas = size.pods // size.models + (index < size.pods % size.models)
        yield _object("Model", f"model-{index:04d}", _model(index, replicas))
    for index in range(size.adapters):
        yield _object("Adapter", f"adapter-{index:05d}", _adapter(index, size))


def _object(kind: str, name: str, spec: Raw) -> Raw:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _model(index: int, replicas: int) -> Raw:
    return {
        "source": f"hf://org/model-{index}",
        "engine": {"name": "emulator"},
        "lora": {"slots": 8, "maxRank": 16},
        "replicas": replicas,
        "drainTimeout": "5s",
        "sloRef": {"name": f"slo-{index % SLOS}"},
    }


def _adapter(index: int, size: Size) -> Raw:
    model = f"model-{index % size.models:04d}"
    return {"modelRef": {"name": model}, "source": f"s3://adapters/{index}", "rank": 16, "replicas": 1 + index % 2}


async def declare(api: Api, namespace: str, size: Size) -> None:
    """Create the objects, some at a time."""
    waiting = objects(size)

    async def work() -> None:
        for item in waiting:
            await api.call("POST", collection(namespace, item["kind"]), item)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


def collection(namespace: str, kind: str) -> str:
    """The path of a kind in a namespace."""
    if kind == "Pod":
        return f"/api/v1/namespaces/{namespace}/pods"
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{kind.lower()}s"


@dataclass
class Fleet:
    """One namespace as its watches show it."""

    api: Api
    namespace: str
    size: Size
    things: dict[str, dict[str, Raw]] = field(default_factory=lambda: {"Model": {}, "Adapter": {}, "Pod": {}})
    unsettled: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._moved = asyncio.Event()
        self._awaited: list[tuple[Match, asyncio.Future[float]]] = []

    async def run(self) -> None:
        """Follow until cancelled."""
        feeds = [
            Feed(self.api, collection(self.namespace, kind), self._sink(kind)).run()
            for kind in ("Model", "Adapter", "Pod")
        ]
        await asyncio.gather(*feeds)

    def _sink(self, kind: str) -> Callable[[str, Raw], None]:
        return lambda event, raw: self._seen(kind, event, raw)

    def _seen(self, kind: str, event: str, raw: Raw) -> None:
        now, name = time.perf_counter(), raw["metadata"]["name"]
        self.unsettled.discard((kind, name))
        if event == "DELETED":
            self.things[kind].pop(name, None)
        else:
            self.things[kind][name] = raw if kind != "Pod" else _slim(raw)
            if not settled(kind, raw):
                self.unsettled.add((kind, name))
        for match, future in self._awaited:
            if not future.done() and match(kind, event, raw):
                future.set_result(now)
        self._moved.set()

    def seen(self, match: Match) -> "asyncio.Future[float]":
        """When the first event that matches comes (a reading of perf_counter)."""
        self._awaited = [entry for entry in self._awaited if not entry[1].done()]
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._awaited.append((match, future))
        return future

    def pods_of(self, model: str) -> dict[str, str]:
        """The UIDs of a Model's pods, by name."""
        return {name: pod["uid"] for name, pod in self.things["Pod"].items() if pod["model"] == model}

    @property
    def whole(self) -> bool:
        """Whether all that is declared was seen, and is as declared."""
        return (
            not self.unsettled
            and len(self.things["Model"]) == self.size.models
            and len(self.things["Adapter"]) == self.size.adapters
        )

    async def settle(self, seconds: float) -> None:
        """Return when the fleet is whole; TimeoutError with what is not, after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while not self.whole:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            some = sorted(self.unsettled)[:3]
            shown = [(name, self.things[kind].get(name, {}).get("status")) for kind, name in some]
            raise TimeoutError(f"{len(self.unsettled)} are not settled after {seconds:.0f} s: {shown}") from None


def settled(kind: str, raw: Raw) -> bool:
    """Whether an object's status says that all is as declared; a pod: that it is ready."""
    status = raw.get("status") or {}
    conditions = {entry["type"]: entry["status"] for entry in status.get("conditions") or []}
    if kind == "Pod":
        return conditions.get("Ready") == "True" and "deletionTimestamp" not in raw["metadata"]
    if status.get("observedGeneration") != raw["metadata"]["generation"] or conditions.get("Ready") != "True":
        return False
    if kind == "Model":
        wanted = raw["spec"]["replicas"]
        return status.get("replicas") == wanted == status.get("readyReplicas") and conditions["Progressing"] == "False"
    return bool(status.get("readyReplicas", 0) == status.get("desiredReplicas", 0))


def _slim(pod: Raw) -> dict[str, Any]:
    labels = pod["metadata"].get("labels") or {}
    phase = pod["status"].get("phase")
    return {"model": labels.get(MODEL_LABEL, ""), "uid": pod["metadata"]["uid"], "status": {"phase": phase}}
