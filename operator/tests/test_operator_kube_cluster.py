"""The operator against a small API server: it converges, survives its absence, reads what it missed, and rests."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from operator_agent import TOKEN, FakeAgent, fake_agent
from operator_api import NAMESPACE, FakeApi, fake_api
from prometheus_client import CollectorRegistry, generate_latest
from sheaf_operator.cluster.agent_calls import AgentCalls
from sheaf_operator.cluster.kubernetes import agents, cluster, view, watch
from sheaf_operator.cluster.kubernetes.client import ApiServer
from sheaf_operator.cluster.kubernetes.cluster import KubernetesCluster
from sheaf_operator.handlers.reconcile import Reconciler
from sheaf_operator.planning.manifest.settings import PodSettings

SETTINGS = PodSettings.model_validate(
    {"images": {"agent": "agent:test"}, "agentTokenSecret": "agent-token", "spotLabels": {"pool": "cheap"}}
)
MODEL = {"source": "hf://org/name", "engine": {"name": "emulator"}, "replicas": 1, "lora": {"slots": 2}}
ADAPTER = {"modelRef": {"name": "m"}, "source": "s3://bucket/a"}


@dataclass
class Running:
    """An operator without a Lease, and what it works on."""

    api: FakeApi
    agent: FakeAgent
    cluster: KubernetesCluster
    reconciler: Reconciler

    def serve(self, name: str) -> None:
        """What a kubelet does: the pod gets an address and is ready."""
        status = {"phase": "Running", "podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
        self.api.put("Pod", name, status=status)

    def condition(self, kind: str, name: str) -> dict[str, Any]:
        conditions = self.api.get(kind, name).get("status", {}).get("conditions", [])
        return next((one for one in conditions if one["type"] == "Ready"), {})


async def until(holds: Callable[[], Any], seconds: float = 8.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - what holds is somebody else's business, it has no event
            await asyncio.sleep(0.02)


@asynccontextmanager
async def operating(api: FakeApi, agent: FakeAgent, token: Path) -> AsyncIterator[Running]:
    async with AsyncExitStack() as stack:
        registry = CollectorRegistry()
        server = ApiServer(api.configuration(), NAMESPACE, registry)
        stack.push_async_callback(server.close)
        calls = await stack.enter_async_context(AgentCalls(token))
        made = KubernetesCluster(api.configuration(), server, calls, SETTINGS, time.time, lambda: True, "me", registry)
        stack.push_async_callback(made.agents.close)
        reconciler = Reconciler(made, time.time, asyncio.get_running_loop().time, made.complete.is_set)
        for work in (made.run(), reconciler.run()):
            stack.push_async_callback(_end, asyncio.create_task(work))
        yield Running(api, agent, made, reconciler)


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait({task})


@pytest.fixture
async def agent(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeAgent]:
    async with fake_agent() as found:
        monkeypatch.setattr(view, "AGENT_PORT", found.port)
        yield found


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "RELIST_SOON", 0.05)
    monkeypatch.setattr(cluster, "LOOK_FOR_KINDS", 0.05)
    monkeypatch.setattr(cluster, "DELAYS", (0.05,))
    monkeypatch.setattr(watch, "PATIENCE", (0.05,))
    monkeypatch.setattr(agents, "PAUSE", 0.02)


@pytest.fixture
async def running(agent: FakeAgent, token: Path) -> AsyncIterator[Running]:
    async with fake_api() as api, operating(api, agent, token) as found:
        yield found


async def serving(running: Running) -> str:
    """A Model with an adapter that serve; returns the pod's name."""
    running.api.put("Model", "m", spec=MODEL)
    running.api.put("Adapter", "a", spec=ADAPTER)
    await until(lambda: running.api.names("Pod"))
    (name,) = running.api.names("Pod")
    running.serve(name)
    await until(lambda: running.condition("Adapter", "a").get("status") == "True")
    return name


async def test_what_is_declared_comes_to_serve_and_then_nothing_is_written(running: Running) -> None:
    name = await serving(running)
    assert running.condition("Model", "m")["status"] == "True"
    assert [entry.name for entry in running.agent.catalogs[-1].adapters] == ["a"]
    assert running.api.get("Pod", name)["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
    await asyncio.sleep(0.3)
    written = len(running.api.writes)
    await asyncio.sleep(0.7)
    assert running.api.writes[written:] == []


async def test_a_load_that_flutters_writes_nothing(running: Running) -> None:
    await serving(running)
    await asyncio.sleep(0.3)
    written = len(running.api.writes)
    for waiting in range(10):
        running.agent.change(load=running.agent.state.load.model_copy(update={"waiting": waiting}))
        await asyncio.sleep(0.04)
    assert running.api.writes[written:] == []


async def test_a_deleted_model_takes_its_pods_along_after_a_last_look(running: Running) -> None:
    name = await serving(running)
    running.api.remove("Model", "m")
    await until(lambda: running.agent.drains)
    assert ("get", "models", "m") in running.api.calls
    await until(lambda: running.api.names("Pod") == [], seconds=6.0)
    assert ("delete", "pods", name) in running.api.writes


async def test_a_view_that_lost_a_model_harms_no_pod(running: Running) -> None:
    name = await serving(running)
    raw = running.api.get("Model", "m")
    running.cluster.view.drop(cluster.DECLARED["Model"], "m", raw["metadata"]["uid"])
    await asyncio.sleep(0.4)
    assert running.agent.drains == []
    assert running.api.names("Pod") == [name]


async def test_what_happened_while_nobody_watched_is_found(running: Running) -> None:
    await serving(running)
    running.api.remove("Adapter", "a", unseen=True)
    await until(lambda: running.cluster.index.adapter("a") is None)
    await until(lambda: running.agent.catalogs[-1].adapters == ())


async def test_it_goes_on_when_the_api_server_comes_back(running: Running) -> None:
    await serving(running)
    await running.api.stop()
    running.api.put("Model", "late", spec=MODEL | {"replicas": 2})
    await asyncio.sleep(0.5)
    await running.api.start()
    await until(lambda: len(running.api.names("Pod")) == 3)


async def test_an_object_that_cannot_be_read_is_told_so_and_harms_no_other(running: Running) -> None:
    name = await serving(running)
    running.api.put("Model", "m", spec=MODEL | {"replicas": "many", "colour": "red"})
    await until(lambda: running.condition("Model", "m").get("reason") == "Invalid")
    message = running.condition("Model", "m")["message"]
    assert "spec.replicas: input should be a valid integer" in message
    assert "colour" not in message
    running.api.put("Model", "other", spec=MODEL)
    await until(lambda: len(running.api.names("Pod")) == 2)
    assert name in running.api.names("Pod")
    assert running.agent.drains == []
    running.api.put("Model", "m", spec=MODEL)
    await until(lambda: running.condition("Model", "m").get("status") == "True")
    text = generate_latest(running.cluster.registry).decode()
    assert "sheaf_operator_invalid_objects 0.0" in text


async def test_an_adapter_that_cannot_be_read_is_told_so_once(running: Running) -> None:
    await serving(running)
    running.api.put("Adapter", "b", spec={"modelRef": "m"})
    await until(lambda: running.condition("Adapter", "b").get("reason") == "Invalid")
    await asyncio.sleep(0.3)
    assert len([call for call in running.api.writes if call == ("patch", "adapters", "b")]) == 1
    running.api.remove("Adapter", "b")
    await until(lambda: not running.cluster.view.refusals)


async def test_kinds_that_are_not_installed_are_waited_for(agent: FakeAgent, token: Path) -> None:
    async with fake_api() as api:
        api.missing = {"models", "adapters", "slos", "autoscalingpolicies"}
        api.refuse = {("list", plural): (404, {"reason": "NotFound"}, {}) for plural in api.missing}
        async with operating(api, agent, token) as running:
            await asyncio.sleep(0.3)
            assert not running.cluster.complete.is_set()
            assert not any(verb == "watch" for verb, _, _ in api.calls)
            api.missing, api.refuse = set(), {}
            api.put("Model", "m", spec=MODEL)
            await until(lambda: api.names("Pod"))


async def test_nothing_is_done_on_half_a_view(agent: FakeAgent, token: Path) -> None:
    async with fake_api() as api:
        api.put("Model", "m", spec=MODEL)
        api.refuse["list", "pods"] = (403, {"message": 'cannot list resource "pods"'}, {})
        async with operating(api, agent, token) as running:
            await until(lambda: running.cluster.index.model("m"))
            await asyncio.sleep(0.3)
            assert api.writes == []
            api.refuse.clear()
            await until(lambda: api.names("Pod"))


async def test_an_agent_that_is_silent_is_unknown_until_it_answers(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "UNREACHABLE_AFTER", 0.1)
    monkeypatch.setattr(agents, "LONGEST_DELAY", 0.1)
    name = await serving(running)
    running.agent.broken = True
    await until(lambda: running.cluster.index.pod(name).agent is None)
    running.agent.broken = False
    await until(lambda: running.cluster.index.pod(name).agent is not None)
    assert len(running.api.names("Pod")) == 1


async def test_a_node_that_goes_is_a_fact_of_its_pods(running: Running) -> None:
    running.api.put("Node", "n", status={"conditions": [{"type": "Ready", "status": "True"}]})
    name = await serving(running)
    running.api.put("Pod", name, spec=running.api.get("Pod", name)["spec"] | {"nodeName": "n"})
    await until(lambda: running.cluster.index.pod(name).node == "n")
    taints = [{"key": "aws-node-termination-handler/spot-itn", "effect": "NoSchedule"}]
    running.api.put("Node", "n", spec={"taints": taints})
    await until(lambda: running.cluster.index.pod(name).notice)
    await until(lambda: len(running.api.names("Pod")) == 2)


async def test_nodes_are_spot_by_the_labels_of_the_settings_too(running: Running) -> None:
    nodes = running.cluster.view.nodes
    running.api.put("Node", "cheap", metadata={"labels": {"pool": "cheap"}})
    running.api.put("Node", "dear", metadata={"labels": {"pool": "dear"}})
    await until(lambda: len(nodes) == 2)
    assert [name for name, facts in nodes.items() if facts.spot] == ["cheap"]
