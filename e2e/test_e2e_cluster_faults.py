"""Faults happen as they do in the field, and can be taken back."""

import time

import pytest
from cluster import kwok, spot
from cluster.faults import ready
from cluster.images import BASE
from cluster.kubectl import condition
from cluster.spot import NOTICES

pytestmark = pytest.mark.timeout(300, func_only=True)  # the cluster may be built first

WORK = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(600)"


def pod(name: str, *, node: str = "", probe: bool = False, **fields: object) -> dict:
    alive = {"exec": {"command": ["true"]}, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 2}
    main = {"name": "main", "image": BASE, "imagePullPolicy": "Never", "command": ["python3", "-c", WORK], **fields}
    if probe:
        main["readinessProbe"] = alive
    chosen = {"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}
    spec = {"terminationGracePeriodSeconds": 3, "containers": [main], **chosen}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def last_end(found: dict) -> dict:
    status = found["status"]["containerStatuses"][0]
    return status["lastState"].get("terminated") or status["state"].get("terminated") or {}


@pytest.fixture
def running(kubectl):
    """One pod, Ready."""
    kubectl.apply(pod("work", probe=True))
    kubectl.wait_pod_ready("work")
    return kubectl


def test_a_killed_process_is_a_crash(running, faults):
    faults.crash(running.namespace, "work", "main")
    crashed = running.wait("pod", "work", "restarted", last_end)
    assert (last_end(crashed)["exitCode"], last_end(crashed)["reason"]) == (137, "Error")


def test_a_container_without_memory_is_oom_killed(running, faults):
    faults.exhaust_memory(running.namespace, "work", "main")
    killed = running.wait("pod", "work", "restarted", last_end)
    assert last_end(killed)["reason"] == "OOMKilled"


def test_a_hung_container_stands_still_until_it_goes_on(running, faults):
    state = ("exec", "work", "--", "sed", "s/.*) \\(.\\).*/\\1/", "/proc/1/stat")
    faults.hang(running.namespace, "work", "main")
    assert running(*state) == "T\n"
    faults.resume(running.namespace, "work", "main")
    assert running(*state) == "S\n"


def test_an_image_that_nobody_has_cannot_be_pulled(kubectl, faults):
    kubectl.apply(pod("work", imagePullPolicy="IfNotPresent"))
    kubectl.wait_pod_ready("work")
    faults.unpullable(kubectl.namespace, "work", "main")

    def refused(found):
        waiting = found["status"]["containerStatuses"][0]["state"].get("waiting", {})
        return waiting.get("reason") in {"ErrImagePull", "ImagePullBackOff"}

    kubectl.wait("pod", "work", "cannot be pulled", refused)


def test_a_partitioned_node_is_not_ready_its_pods_run_on_and_it_heals(kubectl, faults, cluster):
    patient = [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}]
    far = pod("far", node="node-b")
    kubectl.apply({**far, "spec": {**far["spec"], "tolerations": patient}})
    before = kubectl.wait_pod_ready("far")
    faults.partition("node-b")
    cluster.kubectl.wait("node", "node-b", "not ready", lambda node: condition(node, "Ready") == "Unknown")
    faults.rejoin("node-b")
    cluster.kubectl.wait("node", "node-b", "Ready", ready)
    after = kubectl.wait_pod_ready("far")
    assert after["status"]["containerStatuses"] == before["status"]["containerStatuses"]


def test_a_lost_node_loses_its_pods_and_comes_back_empty(kubectl, faults, cluster):
    kubectl.apply(pod("doomed", node="node-c"))
    kubectl.wait_pod_ready("doomed")
    faults.lose("node-c")
    cluster.kubectl.wait("node", "node-c", "not ready", lambda node: condition(node, "Ready") == "Unknown")
    kubectl.wait("pod", "doomed", "evicted", lambda pod: pod["metadata"].get("deletionTimestamp"))
    faults.restart("node-c")
    kubectl.wait("pod", "doomed", "gone", lambda pod: pod is None)
    kubectl.apply(pod("reborn", node="node-c"))
    kubectl.wait_pod_ready("reborn")


def test_the_api_server_goes_and_comes_while_pods_run_on(running, faults):
    before = running.get("pod", "work")["status"]["containerStatuses"]
    faults.stop_api()
    with pytest.raises(Exception, match="refused"):
        running.get("pod", "work")
    faults.start_api()
    assert running.wait_pod_ready("work")["status"]["containerStatuses"] == before


def test_a_drain_evicts_and_an_uncordon_takes_pods_again(kubectl, faults):
    kubectl.apply(pod("guest", node="node-a"))
    kubectl.wait_pod_ready("guest")
    faults.drain("node-a")
    assert kubectl.get("pod", "guest") is None
    kubectl.apply(pod("guest", node="node-a"))
    kubectl.wait("pod", "guest", "unschedulable", lambda p: condition(p, "PodScheduled") == "False")
    faults.uncordon("node-a")
    kubectl.wait_pod_ready("guest")


def test_without_capacity_nothing_new_runs(running, faults):
    faults.no_capacity(running.namespace)
    with pytest.raises(Exception, match="exceeded quota"):
        running.apply(pod("late"))
    running.delete("resourcequota", "sheaf-test-no-capacity")
    running.apply(pod("late"))
    running.wait("pod", "late", "unschedulable", lambda p: condition(p, "PodScheduled") == "False")
    faults.capacity(running.namespace)
    running.wait_pod_ready("late")


@pytest.mark.parametrize("kind", ["aws", "karpenter", "gke-maintenance", "aks", "autoscaler"])
def test_a_clouds_notice_shows_on_the_node_and_goes(kind, cluster, faults):
    before = cluster.kubectl.get("node", "node-b")
    for name, notice in NOTICES.items():
        if not name.startswith(kind):
            continue
        faults.notify("node-b", name)
        shown = cluster.kubectl.get("node", "node-b")
        taints = {(taint["key"], taint["effect"]) for taint in shown["spec"].get("taints", ())}
        assert {(key, effect) for key, _, effect in notice.taints} <= taints
        assert [condition(shown, wanted.type) for wanted in notice.conditions] == ["True"] * len(notice.conditions)
        assert shown["spec"].get("unschedulable", False) == notice.cordon
        spot.clear(cluster.kubectl, shown)
    after = cluster.kubectl.get("node", "node-b")
    assert after["spec"].get("taints") == before["spec"].get("taints")
    assert after["metadata"]["labels"] == before["metadata"]["labels"]


def test_a_node_that_shuts_down_says_so(cluster, faults):
    faults.notify("node-b", "gke-spot")
    told = [
        entry for entry in cluster.kubectl.get("node", "node-b")["status"]["conditions"] if entry["type"] == "Ready"
    ]
    assert [(entry["status"], entry["message"]) for entry in told] == [("False", "node is shutting down")]


def test_fake_nodes_run_fake_pods_at_scale(kubectl, cluster):
    kwok.start(cluster)
    try:
        names = kwok.add_nodes(cluster, 20)
        cluster.kubectl.wait_list("nodes", "all Ready", lambda n: sum(map(ready, n)) == len(names), "type=kwok")
        tolerations = [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}]
        spec = {"containers": [{"name": "main", "image": "fake"}], "tolerations": tolerations}
        chosen = {**spec, "nodeSelector": {"type": "kwok"}}
        meta = {"labels": {"app": "fake"}}
        pods = [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"fake-{index}", **meta}, "spec": chosen}
            for index in range(100)
        ]
        begun = time.monotonic()
        kubectl.apply(*pods)
        kubectl.wait_list("pods", "100 run", lambda found: sum(p["status"]["phase"] == "Running" for p in found) == 100)
        assert time.monotonic() - begun < 60
        kubectl.delete("pods", "--all", timeout=120)
    finally:
        kwok.remove(cluster)
