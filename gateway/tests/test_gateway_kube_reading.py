"""What the gateway reads in raw objects: pods of every condition, and nothing that a user writes makes it fail."""

import contextlib
from typing import get_args

import pytest
from gateway_fixtures import model
from gateway_kube_server import pod
from hypothesis import given
from hypothesis import strategies as st
from sheaf_gateway.fleet.kubernetes.reading import UnreadableError, identity, read
from sheaf_gateway.fleet.snapshot import Kind

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def with_status(**status) -> dict:
    raw = pod("p", "base")
    return {**raw, "status": {**raw["status"], **status}}


def test_a_ready_pod_has_all_its_addresses():
    raw = pod("p", "base", ip="10.1.2.3")
    raw["metadata"] |= {"uid": "u", "annotations": {"sheaf.dev/spot": "true"}}
    raw["metadata"]["labels"]["topology.kubernetes.io/zone"] = "zone-b"
    found = read("pods", raw)
    assert (found.name, found.uid, found.model, found.ready, found.draining) == ("p", "u", "base", True, False)
    assert (found.engine_url, found.agent_url) == ("http://10.1.2.3:8000", "http://10.1.2.3:8001")
    assert (found.kv_events, found.kv_replay) == ("tcp://10.1.2.3:5557", "tcp://10.1.2.3:5558")
    assert (found.spot, found.zone, found.phase, found.message) == (True, "zone-b", "Ready", "")


def test_named_ports_and_six_byte_addresses_are_understood():
    found = read("pods", pod("p", "base", ip="fd00::7", ports={"engine": 18000, "agent": 18001, "metrics": 9}))
    assert (found.engine_url, found.agent_url) == ("http://[fd00::7]:18000", "http://[fd00::7]:18001")


def test_a_pod_that_goes_says_so_and_may_still_be_used_as_a_last_resort():
    raw = pod("p", "base")
    raw["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    found = read("pods", raw)
    assert (found.ready, found.draining, found.phase) == (True, True, "Terminating")
    assert found.deadline == 1767225600.0
    assert read("pods", pod("p", "base")).deadline == 0.0


@pytest.mark.parametrize(
    ("containers", "gates", "ready"),
    [("True", [], True), ("False", [], False), ("True", ["example.com/registered"], False)],
)
def test_a_pod_of_a_silent_node_is_what_it_was_but_unheard(containers, gates, ready):
    conditions = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": containers}]
    raw = with_status(conditions=conditions)
    raw["spec"]["readinessGates"] = [{"conditionType": gate} for gate in gates]
    found = read("pods", raw)
    assert (found.ready, found.unheard) == (ready, ready)


def test_a_disruption_is_a_notice():
    conditions = [
        {"type": "Ready", "status": "True"},
        {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "soon"},
    ]
    found = read("pods", with_status(conditions=conditions))
    assert (found.draining, found.message) == (True, "PreemptionByScheduler: soon")


@pytest.mark.parametrize(
    ("status", "phase", "words"),
    [
        ({"phase": "Pending", "podIP": "", "conditions": [], "containerStatuses": []}, "Pending", ""),
        (
            {"phase": "Pending", "containerStatuses": [], "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}]},
            "Pending", "Unschedulable: no GPU",
        ),
        (
            {"phase": "Pending", "conditions": [], "containerStatuses": [
                {"name": "engine", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]},
            "Pending", "engine: ImagePullBackOff: no such image",
        ),
        (
            {"phase": "Pending", "conditions": [], "containerStatuses": [
                {"name": "engine", "state": {"waiting": {"reason": "PodInitializing"}}}]},
            "Pending", "",
        ),
        (
            {"phase": "Running", "conditions": [], "containerStatuses": [
                {"name": "engine", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]},
            "Starting", "engine: CrashLoopBackOff",
        ),
        ({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}, "Starting", ""),
        ({"phase": "Failed", "conditions": [], "reason": "Evicted", "message": "low on memory"}, "Failed", "Evicted: low on memory"),
        ({"phase": "Unknown", "conditions": [{"type": "Ready", "status": "True"}]}, "Starting", ""),
    ],
)  # fmt: skip
def test_a_pod_that_is_not_ready_says_why(status, phase, words):
    found = read("pods", with_status(**status))
    assert (found.ready, found.phase, found.message) == (False, phase, words)


def test_restarts_of_all_containers_count():
    statuses = [{"name": "engine", "restartCount": 2}, {"name": "x", "restartCount": None}]
    assert (
        read(
            "pods",
            with_status(containerStatuses=statuses, initContainerStatuses=[{"name": "agent", "restartCount": 1}]),
        ).restarts
        == 3
    )


def test_a_pod_without_an_address_has_no_urls():
    found = read("pods", with_status(podIP=None))
    assert (found.engine_url, found.agent_url) == ("", "")


@pytest.mark.parametrize("labels", [{}, {"sheaf.dev/model": ""}, None])
def test_a_pod_of_no_model_is_left_out(labels):
    raw = pod("p", "base")
    raw["metadata"]["labels"] = labels
    with pytest.raises(UnreadableError, match="model"):
        read("pods", raw)


@pytest.mark.parametrize("ip", ["no address", "1.2.3.4/x?", "http://evil", "a@b"])
def test_an_address_that_is_none_is_left_out(ip):
    with pytest.raises(UnreadableError):
        read("pods", pod("p", "base", ip=ip))


def test_messages_are_bounded():
    assert len(read("pods", with_status(reason="x" * 5000)).message) == 1024


@pytest.mark.parametrize("raw", [None, [], {}, {"metadata": 7}, {"metadata": {"name": ""}}, {"metadata": {"name": 7}}])
def test_an_object_without_a_name_is_no_object(raw):
    with pytest.raises(UnreadableError, match=r"metadata\.name"):
        identity(raw)


def test_unknown_fields_at_any_depth_are_ignored_but_not_wrong_values():
    raw = model("m", engine={"name": "vllm", "env": [{"name": "A", "value": "b", "secret": 1}], "x": {}})
    assert read("models", raw).spec.engine.env[0].value == "b"
    with pytest.raises(UnreadableError, match=r"engine\.name"):
        read("models", model("m", engine={"name": "other", "x": 1}))


@given(st.sampled_from(get_args(Kind)), JSON, JSON, JSON)
def test_any_nonsense_is_unreadable_and_nothing_else(kind, spec, status, metadata):
    raw = {**(pod("p", "base") if kind == "pods" else model("m")), "spec": spec, "status": status}
    raw["metadata"] = {**raw["metadata"], "annotations": metadata}
    with contextlib.suppress(UnreadableError):
        assert read(kind, raw).name == raw["metadata"]["name"]
