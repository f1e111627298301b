"""The essence of a Pod: the same facts from a fraction of the memory."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from operator_manifests import make_settings, template
from sheaf_crds.agent_api import AgentState
from sheaf_operator.planning.manifest import NodeFacts, pod_facts, pod_manifest
from sheaf_operator.planning.manifest.essence import essence

CREATED = "2026-11-21T12:00:00Z"
NOW = 1795262410.0
AGENT = AgentState(model="m", engine="Ready")
NODE = NodeFacts("node-a", zone="zone-a", ready=True)
OOM = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": CREATED}}
UNPULLED = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}


def gated() -> dict[str, Any]:
    """A pod of a silent node, which waits for a gate besides."""
    made = pod({"running": {"startedAt": CREATED}})
    made["spec"]["readinessGates"] = [{"conditionType": "example.com/registered"}]
    made["status"]["conditions"].append({"type": "ContainersReady", "status": "True"})
    return made


def pod(state: dict[str, Any], *, spot: bool = False, **metadata: Any) -> dict[str, Any]:
    made = pod_manifest("m-0", template(spot=spot), make_settings(resources={"vllmCpu": {"limits": {"memory": "2Gi"}}}))
    made["metadata"] |= {"uid": "u1", "creationTimestamp": CREATED, "managedFields": [{"manager": "x"}], **metadata}
    made["spec"]["nodeName"] = "node-a"
    shown = {"name": "engine", "ready": False, "restartCount": 1, "state": state}
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": CREATED}
    made["status"] = {"phase": "Running", "containerStatuses": [shown], "conditions": [scheduled]}
    return made


@pytest.mark.parametrize(
    "shown",
    [
        pod(OOM),
        pod(UNPULLED),
        pod({"running": {"startedAt": CREATED}}, spot=True),
        pod(OOM, deletionTimestamp=CREATED),
        gated(),
    ],
)
def test_it_has_the_facts_of_the_whole_in_a_third_of_its_text(shown: dict[str, Any]) -> None:
    kept = essence(shown)
    assert pod_facts(kept, NODE, AGENT, NOW) == pod_facts(shown, NODE, AGENT, NOW)
    assert len(json.dumps(kept)) < len(json.dumps(shown)) / 3


def test_what_is_said_of_memory_names_the_limit() -> None:
    assert "its limit is 2Gi" in pod_facts(essence(pod(OOM)), NODE, None, NOW).message


ANY = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
WORDS = """metadata spec status annotations labels containers resources limits memory name uid nodeName sheaf.dev/spot
containerStatuses conditions phase state terminated reason readinessGates conditionType type"""
NAMES = st.sampled_from(WORDS.split())
JSON = st.recursive(ANY, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4))


@given(metadata=JSON, spec=JSON, status=JSON)
def test_no_json_has_other_facts_than_its_essence(metadata: Any, spec: Any, status: Any) -> None:
    shown = {"metadata": metadata, "spec": spec, "status": status}
    assert pod_facts(essence(shown), NODE, AGENT, NOW) == pod_facts(shown, NODE, AGENT, NOW)
