"""The cluster of processes: actions are idempotent, what goes wrong is told once, and the end leaves nothing."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from sheaf.local.cluster import LocalCluster
from sheaf.local.fleet import FleetFile
from sheaf.local.journal import Journal
from sheaf.local.layout import Layout
from sheaf.local.pod import Site, root_cause
from sheaf.local.process import Command
from sheaf.local.programs import Programs, folder_here, model_dir_in
from sheaf.local.resources import Lack, Machine
from sheaf.local.store import Store
from sheaf_crds import Model
from sheaf_gateway.fleet.snapshot import read_snapshot
from sheaf_operator.cluster.protocol import ClusterError
from sheaf_operator.planning import CreatePod, DeletePod, DrainPod, EmitEvent, SetCatalog
from sheaf_operator.planning.template import pod_template


class StandIns(Programs):
    """A fetch that fails, and no engine or agent that would ever start."""

    said = "raise SystemExit('error: the hub cannot be reached')"

    def fetch(self, pod: str, spec: object) -> Command:
        return Command((sys.executable, "-I", "-S", "-c", self.said), self.layout.log(pod, "fetch"))


class Full(Machine):
    """A machine without room."""

    def claim(self, pod: str, spec: object, model_dir: Path) -> Lack | None:
        return Lack("InsufficientMemory", "it needs about 9.0 GiB of memory")


@asynccontextmanager
async def local_cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    layout = Layout(tmp_path / "state")
    with layout.open():
        cluster = LocalCluster(Store(), FleetFile(layout.fleet, 0))
        cluster.site = Site(layout, StandIns(layout, {}), Full(gpus=0), Journal(), cluster.poke)
        try:
            yield cluster
        finally:
            await cluster.stop()
        assert cluster.pods == {}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def create(source: str = "hf://org/name", name: str = "m-00000-0") -> CreatePod:
    model = Model.model_validate({"metadata": {"name": "m", "uid": "u"}, "spec": {"source": source}})
    return CreatePod(name, pod_template(model), "1 replicas are wanted, 0 are there")


async def facts_with(cluster: LocalCluster, reason: str):
    for _ in range(200):
        (pod,) = cluster.snapshot().pods
        if pod.reason == reason:
            return pod
        await cluster.changed(0.05)
    raise AssertionError(f"never {reason}: {pod}")


async def test_weights_that_cannot_be_had_are_told_once_and_tried_again(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as cluster:
        await cluster.act(create())
        pod = await facts_with(cluster, "FetchFailed")
        assert (pod.phase, pod.ready) == ("Pending", False)
        assert pod.message == "the model cannot be fetched: the hub cannot be reached"
        assert [str(event)[11:] for event in cluster.site.journal.recent if event.warning] == [
            "pod m-00000-0: the model cannot be fetched: the hub cannot be reached"
        ]


async def test_a_pod_without_room_waits_and_says_for_what(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    async with local_cluster(tmp_path) as cluster:
        await cluster.act(create(f"file://{tmp_path}"))
        pod = await facts_with(cluster, "InsufficientMemory")
        assert pod.message == "it needs about 9.0 GiB of memory"


async def test_creating_twice_makes_one_pod_and_deleting_minds_the_uid(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as cluster:
        await cluster.act(create())
        first = cluster.pods["m-00000-0"]
        await cluster.act(create())
        assert cluster.pods["m-00000-0"] is first
        await cluster.act(DeletePod("m-00000-0", "another", "why"))
        assert not first.terminating
        for _ in range(2):
            await cluster.act(DeletePod("m-00000-0", first.uid, "why"))
        assert first.facts().phase == "Terminating"
        await cluster.stop()
        assert cluster.snapshot().pods == ()


async def test_an_agent_that_does_not_answer_is_an_error_of_that_action_only(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as cluster:
        await cluster.act(create())
        uid = cluster.pods["m-00000-0"].uid
        with pytest.raises(ClusterError, match="does not answer"):
            await cluster.act(DrainPod("m-00000-0", uid, 5.0, "why"))
        await cluster.act(DrainPod("m-00000-0", "another", 5.0, "why"))
        await cluster.act(SetCatalog("gone", uid, None, "why"))


async def test_the_fleet_file_is_what_the_gateway_reads(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as cluster:
        await cluster.act(create())
        cluster.publish()
        fleet = cluster.site.layout.fleet
        snapshot, problems = read_snapshot(orjson.loads(fleet.read_bytes()))
        assert problems == ()
        (pod,) = snapshot.pods
        assert (pod.name, pod.model, pod.ready, pod.draining) == ("m-00000-0", "m", False, False)
        written = fleet.stat().st_mtime_ns
        cluster.publish()
        assert fleet.stat().st_mtime_ns == written


async def test_a_full_disk_is_told_once_and_over_when_it_is(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as cluster:
        cluster.publish()
        fleet = cluster.site.layout.fleet
        before = fleet.read_bytes()
        for _ in range(2):
            (fleet.parent / f".{fleet.name}.{os.getpid()}").symlink_to("/dev/full")
            await cluster.act(create())
            cluster.publish()
        assert fleet.read_bytes() == before
        cluster.publish()
        assert fleet.read_bytes() != before
        said = [event.text for event in cluster.site.journal.recent if event.subject == "fleet file"]
        assert len(said) == 2
        assert "No space left on device" in said[0]
        assert said[1] == "is well again"


async def test_events_are_told_and_what_a_pod_has_said_is_not_repeated(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as cluster:
        await cluster.act(EmitEvent("Model", "m", "u", "Normal", "Serving", "2 of 2 replicas ready"))
        await cluster.act(create())
        await facts_with(cluster, "FetchFailed")
        await cluster.act(EmitEvent("Model", "m", "u", "Warning", "FetchFailed", "0 of 1 replicas ready; p: why"))
        said = [event.text for event in cluster.site.journal.recent if event.subject == "model m"]
        assert said == ["Serving: 2 of 2 replicas ready", "FetchFailed: 0 of 1 replicas ready"]


async def test_a_change_wakes_the_operator_and_time_does_too(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as cluster:
        await cluster.changed(0.0)
        await cluster.changed(0.01)
        asyncio.get_running_loop().call_later(0.01, cluster.poke)
        await asyncio.wait_for(cluster.changed(60.0), 1.0)


def test_a_model_folder_here_is_used_where_it_lies(tmp_path: Path) -> None:
    assert folder_here(f"file://{tmp_path}") is None
    (tmp_path / "config.json").write_text("{}")
    assert folder_here(f"file://{tmp_path}") == str(tmp_path)
    assert folder_here("hf://org/name") is None
    assert model_dir_in(("fetching", "model-dir /a b ")) == "/a b"
    assert model_dir_in(("fetching",)) is None


def test_the_first_cause_in_groups_of_errors_is_told() -> None:
    assert root_cause(ExceptionGroup("many", [ExceptionGroup("inner", [OSError("too many files")])])) == (
        "OSError: too many files"
    )
