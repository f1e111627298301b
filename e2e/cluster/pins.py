"""Which versions make the cluster, and where their binaries are kept.

Each ``Module`` is one Go module of our own that does nothing but name the packages to build: ``go install PKG@VERSION``
refuses modules that hold replace directives, and Kubernetes' own go.mod replaces its staging modules by folders. A
pinned version fixes the whole module graph (minimal version selection), and Go checks every download against its
checksum database.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

GO = "1.26.0"
KUBERNETES = "v1.36.3"
STAGING = "v0.36.3"
VERSION_PACKAGE = "k8s.io/component-base/version"
KUBERNETES_BINARIES = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "kube-proxy",
)
DNS_PLUGINS = ("cache", "errors", "kubernetes")


@dataclass(frozen=True)
class Module:
    """One Go module: binary name -> package; ``source`` is the text of a main.go of its own, if it needs one."""

    name: str
    path: str
    version: str
    packages: tuple[tuple[str, str], ...]
    ldflags: str = "-s -w"
    source: str = ""

    @property
    def go_mod(self) -> str:
        """The module file before ``go mod tidy`` (and, for Kubernetes, before its replace directives)."""
        tools = "" if self.source else "\n" + "".join(f"tool {package}\n" for _, package in self.packages)
        return f"module sheaf.dev/e2e/{self.name}\n\ngo {GO}\n\nrequire {self.path} {self.version}\n{tools}"

    @property
    def digest(self) -> str:
        """Changes whenever what is built could."""
        inputs = [self.go_mod, self.ldflags, self.source, STAGING]
        return hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:12]


def _kubernetes_flags() -> str:
    major, minor, _ = KUBERNETES[1:].split(".")
    values = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor}
    return "-s -w " + " ".join(f"-X {VERSION_PACKAGE}.{key}={value}" for key, value in values.items())


def _dns_source() -> str:
    imports = "".join(f'\t_ "github.com/coredns/coredns/plugin/{plugin}"\n' for plugin in DNS_PLUGINS)
    return f'package main\n\nimport (\n\t"github.com/coredns/coredns/coremain"\n{imports})\n\nfunc main() {{ coremain.Run() }}\n'


MODULES = (
    Module("etcd", "go.etcd.io/etcd/server/v3", "v3.6.8", (("etcd", "go.etcd.io/etcd/server/v3"),)),
    Module(
        "kubernetes",
        "k8s.io/kubernetes",
        KUBERNETES,
        tuple((name, f"k8s.io/kubernetes/cmd/{name}") for name in KUBERNETES_BINARIES),
        _kubernetes_flags(),
    ),
    Module("helm", "helm.sh/helm/v3", "v3.22.0", (("helm", "helm.sh/helm/v3/cmd/helm"),)),
    Module(
        "coredns",
        "github.com/coredns/coredns",
        "v1.15.0",
        (("coredns", "."),),
        source=_dns_source(),
    ),
    Module("kwok", "sigs.k8s.io/kwok", "v0.8.0", (("kwok", "sigs.k8s.io/kwok/cmd/kwok"),)),
)


def cache_dir() -> Path:
    """Everything that is built once and kept: ``${XDG_CACHE_HOME:-~/.cache}/sheaf/cluster``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sheaf" / "cluster"


def pins_digest() -> str:
    """One name for all pins together."""
    return hashlib.sha256("".join(module.digest for module in MODULES).encode()).hexdigest()[:12]


def bin_dir() -> Path:
    """Where the built binaries of the present pins are found."""
    return cache_dir() / pins_digest() / "bin"
