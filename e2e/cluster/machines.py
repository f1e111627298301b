"""Machines: a process tree in network, mount, process and host name namespaces of its own, led by ``init.py``.

A machine ends when its init does, and takes everything with it: processes, mounts, links, routes. What is left is files
in its folder.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cgroups
from .errors import ClusterError
from .layout import Layout
from .shell import run, until

INIT = Path(__file__).with_name("init.py")
PRIVATE = ("/run", "/var/lib/cni", "/var/log/containers")
KEPT = (("kubelet", "/var/lib/kubelet"),)  # on the machine's disk: what a node that was lost finds again
NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--cgroup", "--fork", "--kill-child", "--mount-proc")
# Joins the groups (as many as the first word says), then becomes the program: a new cgroup namespace begins where its maker is.
JOIN = 'n=$1; shift; while [ "$n" -gt 0 ]; do echo $$ > "$1/cgroup.procs"; shift; n=$((n-1)); done; exec "$@"'
_HELD: dict[int, subprocess.Popen[bytes]] = {}  # what this process started, until it has ended


@dataclass(frozen=True)
class Machine:
    """One machine by name. ``owned``: it dies with the process that starts it."""

    layout: Layout
    name: str
    owned: bool = False

    @property
    def folder(self) -> Path:
        return self.layout.machine(self.name)

    @property
    def _pid_file(self) -> Path:
        return self.folder / "pid"

    def boot(self) -> None:
        """Start the machine with no daemon; returns when its init answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.layout.logs.mkdir(exist_ok=True)
        mounted = [*map(Path, PRIVATE), *(Path(target) for _, target in KEPT)]
        for folder in [*mounted, *(self.folder / name for name, _ in KEPT)]:
            folder.mkdir(parents=True, exist_ok=True)
        self.layout.init_socket(self.name).unlink(missing_ok=True)
        process = self._spawn(cgroups.make(self.layout.cgroup, self.name))
        self._pid_file.write_text(f"{process.pid} {started(process.pid)}\n")
        until(f"the start of {self.name} (see {self._init_log})", lambda: self._answering(process), timeout=30)
        cgroups.settle(self.layout.cgroup, self.name)

    def _spawn(self, groups: Sequence[tuple[Path, Path]]) -> subprocess.Popen[bytes]:
        leash = _leash() if self.owned else -1
        kept = [(self.folder / name, target) for name, target in KEPT]
        binds = [f"{source}:{target}" for source, target in [*groups, *kept]]
        init = [sys.executable, "-I", INIT, self.layout.init_socket(self.name), self.name, leash, *PRIVATE, *binds]
        joining = ["sh", "-c", JOIN, "sh", str(len(groups)), *(str(group) for group, _ in groups)]
        try:
            with self._init_log.open("ab") as log:
                process = subprocess.Popen(
                    [*joining, "unshare", *NAMESPACES, "--", *map(str, init)],
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[leash] if self.owned else [],
                    start_new_session=True,
                )
        finally:
            if self.owned:
                os.close(leash)
        _HELD[process.pid] = process
        return process

    @property
    def _init_log(self) -> Path:
        return self.layout.logs / f"{self.name}.init.log"

    def _answering(self, process: subprocess.Popen[bytes]) -> bool:
        if process.poll() is not None:
            raise ClusterError(f"{self.name} did not start: {self._init_log.read_text()[-500:].strip()}")
        try:
            self.ask({})
        except OSError:
            return False
        return True

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One request to the machine's init.

        Raises:
            OSError: the machine does not run.
            ClusterError: init refused the request.
        """
        with self._connected() as connection:
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer: dict[str, Any] = json.loads(connection.makefile("rb").read())
        if "error" in answer:
            raise ClusterError(f"{self.name}: {answer['error']}")
        return answer

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(10)
        try:
            connection.connect(str(self.layout.init_socket(self.name)))
        except OSError:
            connection.close()
            raise
        return connection

    @property
    def running(self) -> bool:
        """Whether its init answers."""
        try:
            self.ask({})
        except OSError:
            return False
        return True

    @property
    def pid(self) -> int:
        """The init's process id as this host counts: the kernel translates it for whoever connects."""
        with self._connected() as connection:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])

    @property
    def root(self) -> Path:
        """The machine's file system as this host can open it; paths there are short, which sockets need."""
        return Path(f"/proc/{self.pid}/root")

    def start(self, name: str, argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        """Start a daemon, or start it again after ``stop``."""
        log = self.layout.logs / f"{self.name}.{name}.log"
        spec = {"name": name, "argv": [str(word) for word in argv], "env": dict(env or {}), "log": str(log)}
        self.ask({"start": spec})

    def stop(self, name: str, number: int = signal.SIGTERM, timeout: float = 20) -> None:
        """End a daemon for good; after half the time it is killed."""
        self.ask({"stop": name, "signal": int(number)})
        halfway = time.monotonic() + timeout / 2

        def ended() -> bool:
            if self.ask({})[name] is None:
                return True
            if time.monotonic() > halfway:
                self.ask({"stop": name, "signal": int(signal.SIGKILL)})
            return False

        until(f"the end of {name} on {self.name}", ended, timeout=timeout)

    def inside(self, argv: Sequence[str | Path], *, namespaces: Sequence[str] = ("--net",), check: bool = True) -> str:
        """Run a program in some of the machine's namespaces; its standard output."""
        return run(["nsenter", "-t", str(self.pid), *namespaces, "--", *argv], timeout=120, check=check)

    def kill(self) -> None:
        """End the machine at once, as a power cut would, and wait until nothing of it is left."""
        outer = self._recorded()
        if outer is None:
            return
        for init in children(outer):
            _signal(init, signal.SIGKILL)
        try:
            until(f"the end of {self.name}", lambda: gone(outer), timeout=20, every=0.02)
        except ClusterError:
            _signal(outer, signal.SIGKILL)
            until(f"the end of {self.name}", lambda: gone(outer), timeout=10)
        self._pid_file.unlink(missing_ok=True)

    def _recorded(self) -> int | None:
        """The process that holds the machine, if it still is the one that was started."""
        try:
            pid, start = self._pid_file.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid) if started(int(pid)) == int(start) else None


def _leash() -> int:
    """A pipe whose writing end nobody but this process holds, until it ends; returns the reading end."""
    reading, _ = os.pipe()
    return reading


def started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; none when there is no such process, or only its shadow."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def children(pid: int) -> list[int]:
    """The direct children of a process."""
    return [child for child, parent in _parents().items() if parent == pid]


def descendants(pid: int) -> list[int]:
    """All processes below a process, parents first."""
    parents, found = _parents(), [pid]
    for above in found:
        found += [child for child, parent in parents.items() if parent == above]
    return found[1:]


def _parents() -> dict[int, int]:
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            found[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def gone(pid: int) -> bool:
    """Whether a process has ended; our own children are reaped on the way."""
    if (held := _HELD.get(pid)) is not None and held.poll() is not None:
        del _HELD[pid]
    return started(pid) is None


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
