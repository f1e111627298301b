"""One notice on its whole way: a metadata service answers, the agent reads it, operator and gateway hear of it by the
calls that they make anyway, the plan has a replacement and the gateway's view has a deadline."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "engine" / "tests"))

from engine_agent_helpers import FakeEngine, RunningAgent, agent_running, engine_running
from engine_metadata_server import Azure, ComputeEngine, Ec2, metadata_running
from sheaf_crds import Model
from sheaf_crds.agent_api import AgentState
from sheaf_engine.agent.config import NoticesConfig
from sheaf_gateway.fleet.agents import AGENT_LIMITS, AgentClient
from sheaf_gateway.fleet.residency import Residency
from sheaf_gateway.fleet.snapshot import PodSnapshot
from sheaf_gateway.fleet.store import FleetStore
from sheaf_gateway.proxy.upstream import Pool
from sheaf_operator.cluster.agent_calls import AgentCalls
from sheaf_operator.cluster.kubernetes.agents import AgentPool
from sheaf_operator.planning import ClusterSnapshot, CreatePod, DrainPod, plan
from sheaf_operator.planning.manifest import PodSettings, pod_facts, pod_manifest
from sheaf_operator.planning.template import pod_template

PROMISED = 5.0
SPEC = {"source": "hf://org/base", "engine": {"name": "emulator"}, "spot": {"policy": "Required"}}
MODEL = Model.model_validate({"metadata": {"name": "base", "uid": "u"}, "spec": SPEC})


def settings(service: Ec2 | ComputeEngine | Azure) -> PodSettings:
    """As the chart would write them."""
    cloud = {Ec2: "aws", ComputeEngine: "gcp", Azure: "azure"}[type(service)]
    notices = {"cloud": cloud, "endpoint": service.url}
    images = {"agent": "agent", "engine": "engine"}
    return PodSettings.model_validate({"images": images, "agentTokenSecret": "token", "notices": notices})


def made(service: Ec2 | ComputeEngine | Azure) -> dict[str, Any]:
    """The Pod that the operator makes of the Model for spot, ready."""
    pod = pod_manifest("base-0", pod_template(MODEL, spot=True), settings(service))
    pod["metadata"]["uid"] = "pod-uid"
    pod["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    return pod


@asynccontextmanager
async def operator_hearing(agent: RunningAgent, folder: Path) -> AsyncIterator[list[tuple[float, AgentState]]]:
    """What the operator hears of the agent, and when."""
    heard: list[tuple[float, AgentState]] = []
    async with AgentCalls(folder / "token") as calls:
        pool = AgentPool(calls, lambda _uid, _name, state: heard.append((time.monotonic(), state)) if state else None)
        pool.follow("pod-uid", "base-0", agent.url)
        yield heard
        await pool.close()


@asynccontextmanager
async def gateway_view(agent: RunningAgent, folder: Path) -> AsyncIterator[FleetStore]:
    """The gateway's fleet with that pod in it."""
    pool, store = Pool(AGENT_LIMITS), FleetStore()
    residency = Residency(store, AgentClient(pool, folder / "token"))
    facts = {"name": "base-0", "uid": "pod-uid", "model": "base", "engineUrl": "http://127.0.0.1:9", "ready": True}
    pod = PodSnapshot.model_validate({**facts, "agentUrl": agent.url})
    store.apply({("models", "base"): MODEL, ("pods", "base-0"): pod})
    yield store
    await residency.stop()
    await pool.close()


def strike(service: Ec2 | ComputeEngine | Azure) -> None:
    if isinstance(service, Ec2):
        service.interrupt(110)
    elif isinstance(service, ComputeEngine):
        service.set("preempted", "TRUE")
    else:
        service.schedule("Preempt", 30)


@pytest.mark.parametrize("kind", [Ec2, ComputeEngine, Azure])
async def test_a_notice_reaches_the_plan_and_the_gateway_within_five_seconds(tmp_path: Path, kind: Any) -> None:
    async with (
        metadata_running(service := kind()),
        engine_running(FakeEngine()) as engine,
        agent_running(tmp_path, engine, notices=_agent_config(service)) as agent,
        operator_hearing(agent, tmp_path) as heard,
        gateway_view(agent, tmp_path) as store,
    ):
        await agent.put()
        await agent.until(lambda state: state["engine"] == "Ready", 10)
        await _until(lambda: heard and store.fleet.pods_of("base")[0].ready and len(service.asked) >= 2)
        assert not store.fleet.pods_of("base")[0].draining
        began = time.monotonic()
        strike(service)
        await _until(lambda: store.fleet.pods_of("base")[0].draining)
        seen = time.monotonic() - began
        await _until(lambda: heard[-1][1].notice is not None)
        facts = pod_facts(made(service), None, heard[-1][1], time.time())
        actions = plan(ClusterSnapshot(models=(MODEL,), pods=(facts,)), time.time()).actions
        asked = heard[-1][0] - began
    assert [type(action) for action in actions if isinstance(action, (CreatePod, DrainPod))] == [DrainPod, CreatePod]
    assert 0 < store.fleet.pods_of("base")[0].deadline - time.time() < 120
    assert max(seen, asked) < PROMISED


def _agent_config(service: Any) -> dict[str, Any]:
    """The part that the pod's own annotation holds."""
    annotation = made(service)["metadata"]["annotations"]["sheaf.dev/agent-config"]
    found = json.loads(annotation)["notices"]
    NoticesConfig.model_validate(found)
    return dict(found)


async def _until(holds: Any) -> None:
    async with asyncio.timeout(15):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
