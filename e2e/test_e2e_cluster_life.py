"""A cluster starts beside another one, ends without a trace, and ends with the process that owns it."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import cluster_fixture
import pytest
from cluster import cli
from cluster.cluster import CONTROL_PLANE, Cluster
from cluster.errors import ClusterError
from cluster.machines import gone, started

pytestmark = pytest.mark.timeout(300, func_only=True)  # the cluster may be built first


@pytest.fixture
def small(cluster, tmp_path):
    """A second cluster, the control plane only; ended whatever happens."""
    if cluster.external is not None:
        pytest.skip("this machine's own cluster is what is tested: unset SHEAF_E2E_KUBECONFIG")
    small = Cluster(tmp_path / "s", owned=True)
    yield small
    small.down()


def traces(cluster: Cluster) -> dict[str, object]:
    """Everything of a cluster that the host can see."""
    state = str(cluster.state)
    processes = [
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if _mentions(folder / "cmdline", state) and int(folder.name) != os.getpid()
    ]
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if state in line]
    links = [str(link) for link in Path("/sys/class/net").glob(cluster.layout.host_link)]
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{cluster.layout.cgroup}")]
    return {"processes": processes, "mounts": mounts, "links": links, "cgroups": groups}


def _mentions(file: Path, word: str) -> bool:
    try:
        return word in file.read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False


NOTHING: dict[str, object] = {"processes": [], "mounts": [], "links": [], "cgroups": []}


def test_a_second_cluster_lives_beside_the_first_and_ends_without_a_trace(small, cluster):
    small.up(())
    assert small.kubectl("get", "--raw", "/readyz") == "ok"
    assert small.network != cluster.network
    assert traces(small)["processes"]
    small.down()
    assert traces(small) == NOTHING
    assert cluster.kubectl("get", "--raw", "/readyz") == "ok"
    small.down()  # and once more, which does nothing


def test_up_again_leaves_a_running_cluster_alone(small):
    small.up(())
    pid = small.machine(CONTROL_PLANE).pid
    small.up(())
    assert small.machine(CONTROL_PLANE).pid == pid


def test_up_cleans_what_a_crash_left(small):
    small.up(())
    pid = small.machine(CONTROL_PLANE).pid
    os.kill(pid, signal.SIGKILL)
    small.up(())
    assert small.kubectl("get", "--raw", "/readyz") == "ok"
    assert small.machine(CONTROL_PLANE).pid != pid


def test_an_owned_cluster_ends_when_its_owner_is_killed(small):
    code = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from cluster.cluster import Cluster
        Cluster(Path({str(small.state)!r}), owned=True).up(())
        print("up", flush=True)
        time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        pid = small.machine(CONTROL_PLANE).pid
        owner.kill()
    deadline = time.monotonic() + 10
    while not gone(pid) or traces(small)["processes"] or traces(small)["links"]:
        assert time.monotonic() < deadline, traces(small)
        time.sleep(0.1)


def test_a_daemon_that_dies_is_started_again(small):
    small.up(())
    machine = small.machine(CONTROL_PLANE)
    before = machine.ask({})["kube-scheduler"]
    machine.inside(["kill", "-9", str(before)], namespaces=["--pid", "--mount"])
    deadline = time.monotonic() + 10
    while machine.ask({})["kube-scheduler"] in {before, None}:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_state_folder_with_too_long_a_path_is_refused(tmp_path):
    with pytest.raises(ClusterError, match="too long a path"):
        Cluster(tmp_path / ("x" * 100))


def test_asking_for_what_does_not_run_says_how_to_start_it(tmp_path, capsys):
    assert cli.main(["kubeconfig", "--state", str(tmp_path)]) == 1
    assert "`python e2e/cluster up` starts one" in capsys.readouterr().err


def test_without_root_one_line_says_so_and_points_at_kind(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("SHEAF_E2E_KUBECONFIG", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.main(["up", "--state", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs root" in line
    assert "kind create cluster" in line
    assert "SHEAF_E2E_KUBECONFIG=" in line


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_where_no_cluster_can_run_tests_skip_but_never_in_ci(monkeypatch, tmp_path, ci, outcome):
    monkeypatch.delenv("SHEAF_E2E_KUBECONFIG", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="needs root"):
        cluster_fixture.start(Cluster(tmp_path))


def test_a_process_that_never_was_has_not_started():
    assert started(2**22 + 1) is None
