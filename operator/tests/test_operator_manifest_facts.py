"""Facts: what Pods and Nodes, as an API server shows them, mean; and that no JSON makes reading them fail."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_manifests import make_settings, template
from sheaf_crds.agent_api import AgentState
from sheaf_operator.planning import PodFacts
from sheaf_operator.planning.manifest import NodeFacts, node_facts, pod_facts, pod_manifest
from sheaf_operator.planning.manifest.troubles import last_words, shorten
from sheaf_operator.planning.snapshot import Notice

CREATED = "2026-11-21T12:00:00Z"
NOON = 1795262400.0
NODE = NodeFacts("node-a", zone="zone-a", ready=True)


def running(**more: Any) -> dict[str, Any]:
    return {"ready": True, "restartCount": 0, "state": {"running": {"startedAt": CREATED}}, **more}


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {"ready": False, "restartCount": 0, "state": {"waiting": {"reason": reason, "message": message}}, **more}


def ended(code: int, reason: str = "Error", message: str = "", **more: Any) -> dict[str, Any]:
    done = {"exitCode": code, "reason": reason, "message": message, "finishedAt": "2026-11-21T12:05:00Z"}
    return {"ready": False, "restartCount": 0, "state": {"terminated": done}, **more}


def crashing(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    last = ended(code, reason, message)["state"]
    return waiting("CrashLoopBackOff", "back-off 40s", restartCount=3, lastState=last)


def pod(
    *, ready: bool = False, phase: str = "Pending", node: str = "node-a", **statuses: dict[str, Any]
) -> dict[str, Any]:
    """A Pod as the API server shows it, with statuses by container (`fetch`, `agent`, `engine`)."""
    names = {"fetch": "fetch-model"}
    shown = [{"name": names.get(name, name), "image": "img", **status} for name, status in statuses.items()]
    made = pod_manifest("m-0", template(), make_settings(resources={"vllmCpu": {"limits": {"memory": "2Gi"}}}))
    made["metadata"] |= {"uid": "u1", "creationTimestamp": CREATED}
    made["spec"] |= {"nodeName": node} if node else {}
    made["status"] = {
        "phase": phase,
        "initContainerStatuses": [one for one in shown if one["name"] != "engine"],
        "containerStatuses": [one for one in shown if one["name"] == "engine"],
        "conditions": [
            {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": "2026-11-21T12:06:00Z"},
            {"type": "PodScheduled", "status": "True" if node else "False", "lastTransitionTime": CREATED},
        ],
    }
    return made


def facts(shown: dict[str, Any], node: NodeFacts | None = NODE, now: float = NOON + 10) -> PodFacts:
    return pod_facts(shown, node, None, now)


def test_a_ready_pod():
    agent = AgentState(model="m")
    found = pod_facts(pod(ready=True, agent=running(), engine=running(restartCount=2)), NODE, agent, NOON)
    assert (found.name, found.uid, found.model, found.owner_uid) == ("m-0", "u1", "m", "uid-m")
    assert found.template_hash == template().hash
    assert (found.phase, found.ready, found.reason, found.message) == ("Ready", True, "", "")
    assert (found.created_at, found.restarts, found.ended_at) == (NOON, 2, 0.0)
    assert (found.node, found.zone, found.spot, found.agent, found.notice) == ("node-a", "zone-a", False, agent, None)


@pytest.mark.parametrize(
    ("shown", "phase"),
    [
        (pod(node=""), "Pending"),
        (pod(fetch=running(ready=False)), "Pending"),
        (pod(fetch=ended(0, "Completed", ready=True), agent=running(), engine=running(ready=False)), "Starting"),
        (pod(agent=running(), engine=crashing(1)), "Starting"),
        (pod(phase="Failed"), "Failed"),
        (pod(phase="Succeeded"), "Failed"),
    ],
)
def test_phases(shown: dict[str, Any], phase: str):
    assert facts(shown).phase == phase


def test_a_pod_that_is_being_deleted_is_terminating_whatever_else_it_is():
    shown = pod(ready=True, agent=running(), engine=running())
    shown["metadata"]["deletionTimestamp"] = CREATED
    assert (facts(shown).phase, facts(shown).ready) == ("Terminating", False)


def test_a_start_that_goes_well_is_no_trouble():
    shown = pod(fetch=ended(0, "Completed", ready=True), agent=running(), engine=running(ready=False))
    assert (facts(shown).reason, facts(shown).message) == ("", "")


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"])
def test_an_image_that_cannot_be_pulled(reason: str):
    found = facts(pod(agent=running(), engine=waiting(reason, 'failed to pull "x":\n not found')))
    assert found.reason == reason
    assert found.message.startswith('image example.org/vllm:1: failed to pull "x": not found; correct the image')


def test_a_secret_that_is_missing():
    found = facts(
        pod(agent=waiting("CreateContainerConfigError", 'secret "hub" not found'), engine=waiting("PodInitializing"))
    )
    assert found.reason == "CreateContainerConfigError"
    assert found.message.startswith('container agent: secret "hub" not found; create what is missing')


def test_a_kubelet_that_says_no_more_than_the_reason():
    assert "container agent: RunContainerError;" in facts(pod(agent=waiting("RunContainerError"))).message


def test_too_little_memory_names_the_limit_and_the_mend():
    for status in (crashing(137, "OOMKilled"), ended(137, "OOMKilled")):
        found = facts(pod(agent=running(), engine=status))
        assert found.reason == "OOMKilled"
        assert (
            "container engine needed more memory than it may use (its limit is 2Gi); raise the engine's"
            in found.message
        )
    assert "raise the agent's" in facts(pod(agent=crashing(137, "OOMKilled"))).message


def test_restarts_of_the_engine_are_counted_apart():
    found = facts(pod(fetch=ended(0, "Completed", restartCount=2), agent=running(restartCount=1), engine=crashing(1)))
    assert (found.restarts, found.engine_restarts) == (6, 3)


@pytest.mark.parametrize(
    ("statuses", "backs_off"),
    [
        ({"agent": running(), "engine": crashing(137, "OOMKilled")}, True),
        ({"agent": running(), "engine": crashing(1)}, True),
        ({"agent": running(), "engine": running(ready=False, restartCount=1, lastState=ended(137)["state"])}, False),
        ({"agent": running(), "engine": ended(137, "OOMKilled")}, False),
        ({"agent": crashing(1), "engine": running()}, False),
        ({}, False),
    ],
)
def test_back_off_is_the_engines_whatever_it_ended_of(statuses: dict[str, Any], backs_off: bool):
    assert facts(pod(**statuses)).backs_off is backs_off


def test_whether_an_engine_without_memory_waits_or_starts_is_told_apart():
    again = running(ready=False, restartCount=1, lastState=ended(137, "OOMKilled")["state"])
    pause = "; it is started again after a pause (the kubelet's back-off)"
    assert facts(pod(agent=running(), engine=crashing(137, "OOMKilled"))).message.endswith(pause)
    assert pause not in facts(pod(agent=running(), engine=again)).message
    assert pause not in facts(pod(agent=running(), engine=ended(137, "OOMKilled"))).message


def test_too_little_memory_is_still_told_while_the_engine_starts_again():
    again = running(ready=False, restartCount=1, lastState=ended(137, "OOMKilled")["state"])
    assert facts(pod(agent=running(), engine=again)).reason == "OOMKilled"


def test_a_crash_loop_tells_the_last_error():
    log = "INFO starting\nTraceback (most recent call last):\nValueError: no such dtype\nRuntimeError: x, see root cause above\n"
    found = facts(pod(agent=running(), engine=crashing(1, message=log)))
    assert found.reason == "CrashLoopBackOff"
    assert found.message == "container engine ended with status 1: ValueError: no such dtype"
    assert found.restarts == 3


def test_an_engine_that_ends_well_again_and_again_is_in_trouble_too():
    found = facts(pod(agent=running(), engine=crashing(0, "Completed")))
    assert (found.reason, found.message) == (
        "CrashLoopBackOff",
        "container engine ended with status 0; its log says more",
    )


def test_what_a_killed_engine_said_last_is_not_why_unless_it_is_an_error():
    assert facts(pod(agent=running(), engine=ended(137, message="INFO it listens"))).message.endswith(
        "its log says more"
    )
    assert facts(pod(agent=running(), engine=ended(134, message="RuntimeError: bad"))).message.endswith(
        ": RuntimeError: bad"
    )


def test_an_end_without_words_points_to_the_log():
    found = facts(pod(agent=running(), engine=ended(139)))
    assert found.reason == "EngineEnded"
    assert "signal 11" in found.message
    assert found.message.endswith("its log says more")


@pytest.mark.parametrize(
    "status",
    [ended(1, message="error: hf://a/b does not exist\n"), crashing(1, message="error: hf://a/b does not exist\n")],
)
def test_a_model_that_cannot_be_fetched_tells_the_agents_line(status: dict[str, Any]):
    found = facts(pod(fetch=status, agent=waiting("PodInitializing"), engine=waiting("PodInitializing")))
    assert (found.reason, found.message) == ("FetchFailed", "the model cannot be fetched: hf://a/b does not exist")
    assert found.phase == "Pending"


def test_a_fetch_without_words():
    assert facts(pod(fetch=ended(2))).message == "the model cannot be fetched: status 2"


def test_no_node_takes_the_pod():
    shown = pod(node="")
    said = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    tried = " no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful."
    shown["status"]["conditions"][1] |= {"reason": "Unschedulable", "message": said + tried}
    found = facts(shown, None)
    assert (found.phase, found.reason) == ("Pending", "Unschedulable")
    assert found.message == f"{said[:-1]}; add nodes, lower the requests, or correct accelerators, spot or nodeSelector"


def test_a_pod_that_nobody_looked_at_yet_is_no_trouble():
    shown = pod(node="")
    shown["status"]["conditions"] = []
    assert facts(shown, None).reason == ""


def test_a_refusal_without_words_is_told_as_well():
    assert facts(pod(node=""), None).message.startswith("no node takes the pod; ")


def test_an_evicted_pod():
    shown = pod(phase="Failed")
    shown["status"] |= {"reason": "Evicted", "message": "The node was low on resource: memory. "}
    found = facts(shown)
    assert (found.phase, found.reason) == ("Failed", "Evicted")
    assert found.message.startswith("The node was low on resource: memory.; give the pod")
    assert found.ended_at == NOON + 360


def test_a_pod_that_ended_by_itself():
    found = facts(pod(phase="Failed", agent=running(), engine=ended(1, message="boom")))
    assert (found.reason, found.message) == ("EngineEnded", "container engine ended with status 1: boom")
    assert (facts(pod(phase="Succeeded")).reason, facts(pod(phase="Succeeded")).message) == (
        "PodEnded",
        "the pod has ended",
    )


def test_containers_that_are_not_created_for_long_have_a_hint_and_others_do_not():
    shown = pod(agent=waiting("ContainerCreating"), engine=waiting("PodInitializing"))
    assert facts(shown, now=NOON + 30).reason == ""
    assert facts(shown, now=NOON + 61).reason == "ContainerCreating"
    assert "kubectl describe pod m-0" in facts(shown, now=NOON + 61).message
    assert facts(pod(agent=running(), engine=waiting("ContainerCreating")), now=NOON + 61).reason == ""
    assert facts(pod(), now=NOON + 61).reason == ""


def test_a_node_that_is_lost():
    lost = NodeFacts("node-a", ready=False)
    shown = pod(agent=running(), engine=running())
    assert facts(shown, lost).reason == "NodeNotReady"
    assert facts(shown, None).reason == ""
    shown["metadata"]["deletionTimestamp"] = CREATED
    assert facts(shown, lost).reason == "NodeNotReady"
    assert (facts(shown, None).reason, facts(shown, None).message) == ("NodeGone", "node node-a is gone")


@pytest.mark.parametrize("gate", ["True", "False"])
def test_a_pod_of_a_silent_node_serves_while_its_agent_says_so(gate: str):
    shown = pod(phase="Running", agent=running(), engine=running())
    shown["spec"]["readinessGates"] = [{"conditionType": "example.com/registered"}]
    shown["status"]["conditions"] += [
        {"type": "ContainersReady", "status": "True"},
        {"type": "example.com/registered", "status": gate},
    ]
    lost = NodeFacts("node-a", ready=False)
    assert pod_facts(shown, lost, AgentState(model="m", engine="Ready"), NOON).ready is (gate == "True")
    assert not pod_facts(shown, lost, AgentState(model="m", engine="Starting"), NOON).ready
    assert pod_facts(shown, lost, None, NOON).reason == "NodeNotReady"


def test_a_disruption_of_the_pod_is_a_notice():
    shown = pod(ready=True)
    told = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "evicted"}
    shown["status"]["conditions"].append(told)
    assert facts(shown).notice == Notice("kubernetes", "EvictionByEvictionAPI", "evicted", None)
    shown["status"]["conditions"][-1] = {"type": "DisruptionTarget", "status": "True"}
    assert facts(shown).notice == Notice("kubernetes", "Disruption", "the pod has to go", None)
    shown["status"]["conditions"][-1]["status"] = "False"
    assert facts(shown).notice is None


def test_a_notice_of_the_node_is_one_of_its_pods():
    notice = Notice("aws", "SpotInterruption")
    assert facts(pod(), NodeFacts("node-a", ready=True, notice=notice)).notice == notice


def test_spot_is_what_was_asked_for_or_what_the_node_is():
    shown = pod()
    assert facts(shown, NodeFacts("node-a", ready=True, spot=True)).spot
    shown["metadata"]["annotations"]["sheaf.dev/spot"] = "true"
    assert facts(shown, None).spot


def test_last_words_are_one_short_clean_line():
    assert last_words("\x1b[31merror: a  b\x1b[0m\n\n") == "a b"
    assert last_words("") == ""
    assert last_words("RuntimeError: it failed. See root cause above.") == ""
    assert len(last_words("x" * 5000)) == 600
    assert shorten("short") == "short"


SCRAPS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "True", "False", CREATED, "OOMKilled", "engine", "2026-13-01"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["metadata", "spec", "status", "conditions", "type", "status", "name", "state", "lastState",
                         "waiting", "terminated", "reason", "containerStatuses", "initContainerStatuses", "taints", "key",
                         "labels", "annotations", "ownerReferences", "exitCode", "nodeName", "phase", "resources"]),
        inner, max_size=6),
    max_leaves=30,
)  # fmt: skip


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(["metadata", "spec", "status"]), SCRAPS))
def test_no_json_makes_reading_facts_fail(shown: dict[str, Any]):
    assert node_facts(shown, {}).name is not None
    found = facts(shown)
    assert bool(found.reason) == bool(found.message)


@pytest.mark.parametrize("told", ["yesterday", "", None, 7, "2026-13-01T00:00:00Z"])
def test_a_time_that_is_none_counts_as_unknown(told: object):
    shown = pod()
    shown["metadata"]["creationTimestamp"] = told
    assert facts(shown).created_at == 0.0


def test_a_pod_is_scheduled_when_it_has_a_node():
    assert facts(pod(engine=running())).scheduled_at == NOON
    assert facts(pod(node="")).scheduled_at == 0.0


@pytest.mark.parametrize(("written", "limit"), [(None, 900.0), ("61.5", 61.5), ("soon", 0.0), ("-1", 0.0), (7, 0.0)])
def test_the_time_that_an_engine_may_take_is_what_the_pod_was_made_with(written: Any, limit: float):
    shown = pod(engine=running())
    if written is not None:
        shown["metadata"]["annotations"]["sheaf.dev/startup-seconds"] = written
    assert facts(shown).startup_limit == limit
