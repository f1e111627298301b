"""Every machine has a cgroup of its own, ``/sheaf-TAG/MACHINE``, and sees it as the root of all.

So whatever a node's containers get lies beneath it, and goes with it; and what a node reports as used is its own. Works on
hosts with cgroup v1, v2, or both side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import ClusterError

ROOT = Path("/sys/fs/cgroup")
DAEMONS = "daemons"


def hierarchies() -> list[Path]:
    """Where this host's cgroup hierarchies are mounted."""
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    mounted = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return [Path(fields[1]) for fields in mounted if fields[2] in {"cgroup", "cgroup2"}]


def make(cluster: str, machine: str) -> list[tuple[Path, Path]]:
    """Make the machine's group in every hierarchy; pairs of the group and the mount point that will show it."""
    pairs = []
    for root in hierarchies():
        for group in (root / cluster, root / cluster / machine):
            _delegate(group.parent)
            group.mkdir(exist_ok=True)
            _inherit_cpuset(group)
        pairs.append((root / cluster / machine, root))
    return pairs


def settle(cluster: str, machine: str) -> None:
    """On cgroup v2 only leaves hold processes: move the machine's into one, and pass its controllers on to the others."""
    group = ROOT / cluster / machine
    if not (group / "cgroup.controllers").exists():
        return
    (group / DAEMONS).mkdir(exist_ok=True)
    for pid in (group / "cgroup.procs").read_text().split():
        (group / DAEMONS / "cgroup.procs").write_text(pid)
    _delegate(group)


def remove(cluster: str) -> None:
    """Remove all of a cluster's groups, deepest first.

    Raises:
        OSError: one still holds a process.
    """
    for root in hierarchies():
        top = root / cluster
        groups = [path for path in top.rglob("*") if path.is_dir()]
        for group in [*sorted(groups, key=lambda path: -len(path.parts)), *([top] if top.is_dir() else [])]:
            group.rmdir()


def of_container(identity: str) -> Path:
    """The group that accounts a container's memory.

    Raises:
        ClusterError: there is none.
    """
    memory = next((root for root in hierarchies() if root.name == "memory"), ROOT)
    found = next((path for path in memory.rglob(identity) if path.is_dir()), None)
    if found is None:
        raise ClusterError(f"no cgroup of the container {identity}: it has ended")
    return found


def processes(group: Path) -> Sequence[int]:
    """The process ids in a group, as this host counts."""
    try:
        return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return ()


def squeeze(group: Path) -> None:
    """Lower the memory limit to what is in use (cgroup v1 refuses less), or to nothing (v2 kills at once)."""
    try:
        if (group / "memory.max").exists():
            (group / "memory.max").write_text("4096")
        else:
            (group / "memory.limit_in_bytes").write_text((group / "memory.usage_in_bytes").read_text().strip())
    except OSError:  # it ended already, or what is in use changed meanwhile
        return


def _delegate(group: Path) -> None:
    """On cgroup v2 a group's controllers must be switched on for its children."""
    controllers = group / "cgroup.controllers"
    if controllers.exists() and (names := controllers.read_text().split()):
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in names))


def _inherit_cpuset(group: Path) -> None:
    """On cgroup v1 a new cpuset is empty, and takes no process until it is filled."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        file, above = group / name, group.parent / name
        if file.exists() and not (group / "cgroup.controllers").exists():
            file.write_text(above.read_text().strip())
