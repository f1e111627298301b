"""Nodes go, with a notice of each cloud's own and without: replaced in time, told in words, unnoticed by clients."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from cluster import spot
from cluster.faults import Faults
from cluster.kubectl import Object

from resilience.fleet import Fleet, emulated, node_of, uids, within
from resilience.load import Load

pytestmark = pytest.mark.timeout(300, func_only=True)

SPOT_NODES = ("node-b", "node-c")
STREAMS = {"tokens": 60, "clients": 4}
NOTICES = [name for name, notice in spot.NOTICES.items() if notice.leaves]


@pytest.fixture(scope="module")
def tenant(sheaf: Fleet) -> Iterator[str]:
    """A Model on spot nodes alone, whose answers take half a second."""
    slow = emulated("--profile=h100-8b", spot={"policy": "Required"}, replicas=1)
    sheaf.serve("tenant", slow)
    yield "tenant"
    sheaf.forget("tenant")


@pytest.mark.parametrize("notice", NOTICES)
def test_a_pod_under_notice_is_replaced_before_anyone_notices(
    sheaf: Fleet, faults: Faults, tenant: str, notice: str
) -> None:
    sheaf.settled(tenant)
    (old,) = sheaf.pods(tenant)
    with Load(sheaf.url, [tenant], **STREAMS) as load:
        faults.notify(node_of(old), notice)
        took = within(5, "a replacement", lambda: uids(sheaf.pods(tenant)) - uids([old]))
        print(f"\n  {notice}: replacement made after {took:.1f} s")
        there = staying if notice == "gke-spot" else uids
        sheaf.kubectl.wait_list(
            "pods", "the old one gone", lambda pods: not uids([old]) & there(pods), f"sheaf.dev/model={tenant}"
        )
        load.more(10)
    assert load.failed == 0, load
    (new,) = sheaf.pods(tenant)
    assert node_of(new) != node_of(old)
    told = [event["note"] for event in sheaf.kubectl.list("events.events.k8s.io") if about(event, tenant)]
    assert any(old["metadata"]["name"] in note for note in told), told
    sheaf.settled(tenant)


def test_a_node_that_is_lost_without_notice_is_replaced_and_answers_go_on(
    sheaf: Fleet, faults: Faults, tenant: str
) -> None:
    sheaf.scale(tenant, 2)
    sheaf.settled(tenant)
    assert {node_of(pod) for pod in sheaf.pods(tenant)} == set(SPOT_NODES)
    lost = next(pod for pod in sheaf.pods(tenant) if node_of(pod) == "node-b")
    with Load(sheaf.url, [tenant], patience=30, **STREAMS) as load:
        faults.lose("node-b")
        began, failed = time.monotonic(), load.failed
        sheaf.says("model", tenant, "Ready", "False", timeout=40)
        within(40, "a replacement", lambda: len(uids(sheaf.pods(tenant)) - uids([lost])) == 2)
        print(f"\n  replacement {time.monotonic() - began:.0f} s after the loss")
        sheaf.says("model", tenant, "Ready", "True", timeout=60)
        failed = load.failed
        load.more(20)
        assert load.failed == failed, load
    assert load.failed <= STREAMS["clients"], load


def staying(pods: list[Object]) -> set[str]:
    """The pods that are not being deleted: on a node without a kubelet none is gone before the node is."""
    return uids([pod for pod in pods if "deletionTimestamp" not in pod["metadata"]])


def about(event: dict[str, dict[str, str]], model: str) -> bool:
    """Whether an Event is about that Model."""
    return event.get("regarding", {}).get("kind") == "Model" and event["regarding"]["name"] == model
