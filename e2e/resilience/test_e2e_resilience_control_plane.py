"""The API server away, the operator away, two operators, nothing to do: clients notice nothing, and nobody writes twice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import httpx
import pytest
from cluster import cgroups
from cluster.faults import Faults
from cluster.machines import descendants

from resilience.fleet import Fleet, emulated, restarts, within
from resilience.load import Load
from resilience.writes import Writes, turns

pytestmark = pytest.mark.timeout(400, func_only=True)

# The API server is killed: one that ends politely also takes itself out of its Service, and kube-proxy then needs up to a
# minute more after its return, in which no pod reaches it. The outage is longer than every period of the processes: 25 s
# of a long poll, 10 s of the Lease, 15 s of a node's silence. Afterwards a kubelet takes its time to look for new pods.
KUBELET = 180
OUTAGE = float(os.environ.get("SHEAF_E2E_OUTAGE", "40"))


@pytest.fixture
def subject(sheaf: Fleet) -> Iterator[str]:
    """A Model to change."""
    sheaf.serve("subject", emulated())
    yield "subject"
    sheaf.forget("subject")


def test_no_request_fails_while_the_api_server_is_away_and_what_comes_after_is_acted_on(
    sheaf: Fleet, faults: Faults, subject: str
) -> None:
    gateway = sheaf.kubectl.list("pods", "app.kubernetes.io/name=sheaf-gateway")[0]
    process = main_process(faults, sheaf, gateway["metadata"]["name"], "gateway")
    before = sheaf.engines()
    with Load(sheaf.url, ["good", subject]) as load:
        faults.kill_api()
        time.sleep(OUTAGE)
        load.more()
    assert load.failed == 0, load
    os.kill(process, signal.SIGKILL)
    address = f"http://{gateway['status']['podIP']}:8000"
    within(30, "the gateway is there again", lambda: answers(address), every=0.5)
    with Load(address, ["good", subject]) as cold:
        cold.more()
    assert cold.failed == 0, cold
    faults.start_api()
    returned = time.monotonic()
    with Load(sheaf.url, ["good", subject]) as after:
        sheaf.scale(subject, 2)
        within(30, "acted on", lambda: len(sheaf.pods(subject)) == 2, every=0.25)
        print(f"\n  acted on {time.monotonic() - returned:.1f} s after the return")
        sheaf.settled(subject, KUBELET)
    assert after.failed == 0, after
    assert before.items() <= sheaf.engines().items()


def test_a_dead_operator_is_not_missed_and_repairs_nothing_that_is_whole_when_it_is_back(
    sheaf: Fleet, faults: Faults
) -> None:
    before, writes = sheaf.engines(), Writes(sheaf)
    with Load(sheaf.url, ["good"]) as load:
        for pod in sheaf.kubectl.list("pods", "app.kubernetes.io/name=sheaf-operator"):
            faults.crash(sheaf.namespace, pod["metadata"]["name"], "operator")
        sheaf.deployments("operator", replicas=0)
        time.sleep(15)
        load.more()
        sheaf.deployments("operator", replicas=2)
        names = [pod["metadata"]["name"] for pod in sheaf.kubectl.list("pods", "app.kubernetes.io/name=sheaf-operator")]
        within(30, "one of the new ones leads", lambda: sheaf.leader() in names, every=0.5)
        time.sleep(5)
    assert load.failed == 0, load
    assert sheaf.engines() == before
    assert writes() == []


def test_when_the_leader_dies_another_acts_within_fifteen_seconds_and_they_never_write_by_turns(
    sheaf: Fleet, faults: Faults, subject: str
) -> None:
    first, writes = sheaf.leader(), Writes(sheaf)
    faults.hang(sheaf.namespace, first, "operator")
    sheaf.scale(subject, 2)
    stood_still = within(15, "the other acts", lambda: len(sheaf.pods(subject)) == 2)
    second = sheaf.leader()
    assert second != first
    faults.resume(sheaf.namespace, first, "operator")
    sheaf.settled(subject)
    sheaf.scale(subject, 1)
    sheaf.settled(subject)
    assert turns(writes()) == [second], writes()

    process = main_process(faults, sheaf, second, "operator")
    sheaf.scale(subject, 2)
    within(10, "the leader acts", lambda: len(sheaf.pods(subject)) == 2)
    os.kill(process, signal.SIGKILL)
    sheaf.scale(subject, 3)
    killed = within(15, "another acts", lambda: len(sheaf.pods(subject)) == 3)
    sheaf.settled(subject)
    print(f"\n  acted {stood_still:.1f} s after the leader stood still, {killed:.1f} s after it was killed")
    order = turns(writes())
    assert len(order) == len(set(order)), writes()


def test_nothing_is_written_in_a_minute_in_which_only_requests_come(sheaf: Fleet) -> None:
    sheaf.settled("good")
    time.sleep(5)
    writes = Writes(sheaf)
    with Load(sheaf.url, ["good"]) as load:
        time.sleep(60)
    assert load.failed == 0, load
    assert writes() == []


def answers(url: str) -> bool:
    """Whether a gateway says that it is ready."""
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def main_process(faults: Faults, sheaf: Fleet, pod: str, container: str) -> int:
    """The machine's own number of a container's main process, to be killed when no API server can tell it."""
    members = cgroups.processes(cgroups.of_container(faults._running(sheaf.namespace, pod, container)))
    assert restarts(sheaf.kubectl.get("pod", pod) or {}) >= 0
    below = {child for pid in members for child in descendants(pid)}
    return next(pid for pid in members if pid not in below)
