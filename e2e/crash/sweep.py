"""One run of a workload against a real API server, with an operator that dies once, or never: the state at its end."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dying import KILLED, Orders, start
from pretend import SCHEDULER, TOKEN, Kubelet
from sheaf_operator.cluster.kubernetes.access import load_access
from sheaf_operator.cluster.kubernetes.client import ApiServer
from sheaf_operator.cluster.kubernetes.errors import ApiError
from sheaf_operator.cluster.kubernetes.resources import DECLARED, Resource
from workloads import Workload

NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
PATIENCE = 120.0
STAYS = 3.0
SETTLED = 3.0
LAST_WRITE = 15.0

State = dict[str, Any]


@dataclass
class Run:
    """How a run went."""

    state: State
    writes: list[str]
    died: bool
    most_pods: int


@dataclass
class Stage:
    """A namespace with pretended pods and one operator after the other."""

    api: ApiServer
    kubelet: Kubelet
    kubeconfig: Path
    folder: Path
    process: Any = None
    lives: int = 0
    logs: list[Path] = field(default_factory=list)

    async def apply(self, *objects: dict[str, Any]) -> None:
        for item in objects:
            resource = DECLARED[item["kind"]]
            path = resource.path(self.api.namespace, item["metadata"]["name"])
            query = {"fieldManager": "user", "force": "true"}
            content = "application/apply-patch+yaml"
            await self.api._request("patch", path, resource, item["metadata"]["name"], query, item, content)

    async def delete(self, kind: str, name: str) -> None:
        raw = await self.api.get(DECLARED[kind], name)
        await self.api.delete(DECLARED[kind], name, raw["metadata"]["uid"])

    def operator_died(self) -> bool:
        return self.process is not None and self.process.exitcode is not None

    def operate(self, at: int = 0, when: str = "before") -> None:
        """Start an operator; with the same name in the Lease as the one before, so that it need not wait for its end."""
        self.lives += 1
        config = self.folder / "operator.json"
        pods = {"images": {"agent": "none"}, "agentTokenSecret": "none", "scheduler": SCHEDULER}
        (self.folder / "token").write_text(TOKEN)
        content = {"namespace": self.api.namespace, "identity": "crash", "listen": "127.0.0.1:0", "pods": pods}
        config.write_text(json.dumps(content | {"agentTokenFile": str(self.folder / "token")}))
        log = self.folder / f"writes-{self.lives}"
        self.logs.append(log)
        self.process = start(config, self.kubeconfig, Orders(self.folder / "armed", log, at, when))

    def sees(self) -> bool:
        """Whether the operator that runs now has its first view: only then is the end its own work."""
        log = Path(f"{self.logs[-1]}.log")
        return log.exists() and "the view is complete" in log.read_text()

    async def end_operator(self) -> None:
        """End it as Kubernetes would, and see that it ends well."""
        self.process.terminate()
        await self.until(self.operator_died, seconds=8.0)
        assert self.process.exitcode == 0, f"ended with {self.process.exitcode}: {self.last_words()}"

    async def until(self, holds: Callable[[], bool], seconds: float = PATIENCE) -> None:
        async with asyncio.timeout(seconds):
            while not holds():  # noqa: ASYNC110 - what holds is another process's business
                await asyncio.sleep(0.05)

    def writes(self) -> list[str]:
        log = self.logs[0]
        return [line.partition(" ")[2] for line in log.read_text().splitlines()] if log.exists() else []

    def last_words(self) -> str:
        texts = [Path(f"{log}.log") for log in self.logs]
        return "\n".join(text.read_text()[-3000:] for text in texts if text.exists())

    async def state(self) -> State:
        """What users see, without what may differ from run to run: names, UIDs, times."""
        found: State = {}
        for kind in ("Model", "Adapter", "SLO", "AutoscalingPolicy"):
            items = [raw async for page, _ in self.api.pages(DECLARED[kind]) for raw in page]
            found[kind] = {raw["metadata"]["name"]: _masked(raw) for raw in items}
        uids = {raw["metadata"]["uid"] async for page, _ in self.api.pages(DECLARED["Model"]) for raw in page}
        await self.kubelet.look()
        found["pods"] = sorted(_pod(pod, uids, self.kubelet) for pod in self.kubelet.pods)
        return found

    async def settled(self) -> State:
        """The state that stays for a while."""
        before: State = {}
        same_since, now = 0.0, asyncio.get_running_loop().time
        end = now() + PATIENCE
        while now() < end:
            state = await self.state()
            if state != before or not said(state):
                before, same_since = state, now()
            elif now() - same_since >= SETTLED:
                return state
            await asyncio.sleep(0.2)
        raise AssertionError(f"never at rest: {before}\n{self.last_words()}")

    async def reaches(self, wanted: State) -> None:
        """Wait until the state is this one and stays so."""
        found: State = {}
        reached, now = None, asyncio.get_running_loop().time
        end = now() + PATIENCE
        while now() < end:
            found = await self.state()
            if found != wanted:
                reached = None
            elif reached is None:
                reached = now()
            elif now() - reached >= STAYS:
                return
            await asyncio.sleep(0.2)
        raise AssertionError(f"ends as\n{found}\nand not as\n{wanted}\n{self.last_words()}")


def said(state: State) -> bool:
    """Whether the operator has said something of each object as it is now, and no Model is on its way."""
    objects = [item for kind in DECLARED for item in state[kind].values()]
    moving = [item for item in state["Model"].values() if ("Progressing", "False") not in item["kinds"]]
    return not moving and all(item["current"] and item["conditions"] for item in objects)


def _masked(raw: dict[str, Any]) -> dict[str, Any]:
    status = dict(raw.get("status") or {})
    conditions = [(one["type"], one["status"], one["reason"]) for one in status.pop("conditions", [])]
    placements = sorted((one["state"], one.get("digest", "")) for one in status.pop("placements", []))
    return {
        "spec": raw["spec"],
        "status": status,
        "current": status.pop("observedGeneration", 0) == raw["metadata"]["generation"],
        "conditions": conditions,
        "kinds": [(kind, truth) for kind, truth, _ in conditions],
        "placements": placements,
    }


def _pod(pod: dict[str, Any], owners: set[str], kubelet: Kubelet) -> tuple[Any, ...]:
    meta = pod["metadata"]
    agent = kubelet.agents.get(meta["uid"])
    entries = agent.catalog.adapters if agent else ()
    held = tuple((entry.name, entry.pinned, entry.digest or "") for entry in entries)
    owned = meta["ownerReferences"][0]["uid"] in owners
    draining = agent.state.draining if agent else False
    conditions = (pod.get("status") or {}).get("conditions") or []
    noticed = any(one["type"] == "DisruptionTarget" for one in conditions)
    return (meta["labels"]["sheaf.dev/template"], owned, "deletionTimestamp" in meta, draining, noticed, held)


@asynccontextmanager
async def stage(kubeconfig: Path, folder: Path) -> AsyncIterator[Stage]:
    """A namespace of its own, gone afterwards."""
    namespace = f"crash-{uuid.uuid4().hex[:8]}"
    api = ApiServer(await load_access(str(kubeconfig)), namespace)
    await api.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    kubelet = Kubelet(api)
    work = asyncio.create_task(kubelet.run())
    made = Stage(api, kubelet, kubeconfig, folder)
    try:
        yield made
    finally:
        if made.process is not None and made.process.exitcode is None:
            made.process.kill()
        work.cancel()
        await asyncio.wait({work})
        with suppress(ApiError):
            found = await api.get(NAMESPACES, namespace)
            await api.delete(NAMESPACES, namespace, found["metadata"]["uid"])
        await api.close()


async def run(workload: Workload, kubeconfig: Path, folder: Path, reference: State | None, at: int, when: str) -> Run:
    """Do the workload; where the operator dies, another one takes over.

    Args:
        workload: what happens.
        kubeconfig: of the API server.
        folder: for files of this run.
        reference: the state that it must end in; None: whatever it comes to.
        at: the write at which the operator dies, counted from 1; 0: it does not.
        when: `before` or `after` that write.
    """
    folder.mkdir(parents=True)  # noqa: ASYNC240 - a moment
    async with stage(kubeconfig, folder) as made:
        if workload.begin:
            await made.apply(*workload.begin)
        made.operate(at, when)
        await made.until(made.sees)
        await made.settled()
        (folder / "armed").touch()
        await workload.change(made)
        if at:
            with suppress(TimeoutError):
                await made.until(made.operator_died, seconds=LAST_WRITE)
        died = made.operator_died()
        if died:
            assert made.process.exitcode == KILLED, made.last_words()
            made.operate()
            await made.until(made.sees)
        if reference is None:
            state = await made.settled()
        else:
            state = reference
            await made.reaches(reference)
            assert died or not made.operator_died(), f"it died later than {LAST_WRITE} s after the change"
        await made.end_operator()
        return Run(state, made.writes(), died, max(made.kubelet.most_pods.values(), default=0))
