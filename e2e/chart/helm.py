"""Real helm: the cluster's pinned binary, or the one on the PATH; rendered charts as plain objects."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cluster.binaries import binary, ensure
from cluster.errors import ClusterError

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/sheaf"
KUBE_VERSION = "1.36.3"
Object = dict[str, Any]


class HelmError(Exception):
    """Helm refused; the message is what it printed."""


def helm_binary() -> Path:
    """The pinned helm, built where it is missing and can be; otherwise the one on the PATH.

    Raises:
        ClusterError: there is none, and none can be built.
    """
    try:
        return binary("helm")
    except ClusterError:
        if found := shutil.which("helm"):
            return Path(found)
    ensure()
    return binary("helm")


@dataclass(frozen=True)
class Helm:
    """Helm, of a cluster where a kubeconfig is given."""

    path: Path
    kubeconfig: Path | None = None

    def __call__(self, *arguments: str, values: Mapping[str, Any] | None = None, timeout: float = 120.0) -> str:
        """Run it; its standard output.

        Raises:
            HelmError: it ended with another status than 0.
        """
        command = [str(self.path), *arguments]
        if self.kubeconfig is not None:
            command += ["--kubeconfig", str(self.kubeconfig)]
        if values is not None:
            command += ["--values", "-"]
        done = subprocess.run(
            command, input=json.dumps(values or {}), capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode != 0:
            raise HelmError(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def template(
        self,
        values: Mapping[str, Any] | None = None,
        *,
        release: str = "sheaf",
        namespace: str = "serving",
        options: Sequence[str] = (),
    ) -> list[Object]:
        """The chart rendered without a cluster, as objects.

        Raises:
            HelmError: values or chart are refused.
        """
        text = self(
            "template",
            release,
            str(CHART),
            "--namespace",
            namespace,
            "--kube-version",
            KUBE_VERSION,
            *options,
            values=values or {},
        )
        return [document for document in yaml.safe_load_all(text) if document]

    def notes(self, values: Mapping[str, Any]) -> str:
        """What an installation prints, without a cluster."""
        text = self("install", "sheaf", str(CHART), "--dry-run=client", "--namespace", "serving", values=values)
        return text.partition("NOTES:")[2]


def named(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name."""
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} {kind}s named {name} among {names(objects, kind)}"
    return found[0]


def names(objects: Sequence[Object], kind: str) -> list[str]:
    """Names of all objects of a kind."""
    return [item["metadata"]["name"] for item in objects if item["kind"] == kind]


def pod_specs(objects: Sequence[Object]) -> dict[str, Object]:
    """The spec of every pod that the objects make, by kind and name."""
    specs = {}
    for item in objects:
        label = f"{item['kind']}/{item['metadata']['name']}"
        if item["kind"] == "Pod":
            specs[label] = item["spec"]
        elif "template" in item.get("spec", {}):
            specs[label] = item["spec"]["template"]["spec"]
    return specs
