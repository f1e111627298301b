"""What the tests need from the system: Linux, root, and some Debian packages, which are installed where they miss."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from .errors import ClusterError, Unsupported
from .shell import run, say

PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "sysctl": "procps",
    "buildah": "buildah",
    "podman": "podman",
    "debootstrap": "debootstrap",
    "redis-server": "redis-server",
}
ELSEWHERE = (
    "start a cluster elsewhere (`kind create cluster --kubeconfig kind.yaml` is enough) and name it: "
    "SHEAF_E2E_KUBECONFIG=$PWD/kind.yaml"
)


def check_machine() -> None:
    """Raises ``Unsupported`` where no installation could help."""
    if sys.platform != "linux":
        raise Unsupported(f"the test cluster needs Linux, and this is {sys.platform}; {ELSEWHERE}")
    if os.geteuid() != 0:
        raise Unsupported(f"the test cluster needs root (namespaces, mounts, cgroups); {ELSEWHERE}")


def missing() -> list[str]:
    """The Debian packages that are not installed."""
    return [package for program, package in PACKAGES.items() if not _is_there(program)]


def _is_there(program: str) -> bool:
    return Path(program).exists() if program.startswith("/") else shutil.which(program) is not None


def ensure() -> None:
    """Install what misses.

    Raises:
        Unsupported: not Linux, or not root.
        ClusterError: this is not Debian or a relative of it, or apt failed.
    """
    check_machine()
    packages = missing()
    if not packages:
        return
    if shutil.which("apt-get") is None:
        raise ClusterError(f"the test cluster needs these programs, and there is no apt-get here: {' '.join(packages)}")
    say(f"installing {' '.join(packages)}")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-q"], env=quiet)
    run(["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages], env=quiet, timeout=1200)
