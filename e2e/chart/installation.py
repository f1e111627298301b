"""A whole installation on the test cluster: images, store of models, engines' environment, values, helm.

Engine pods run the environment of this machine, mounted read-only through PersistentVolumeClaims: a volume of the host's
own would not pass the restricted pod security standard, which the namespace enforces. Models and adapters come from a
store that speaks S3, on the host's address in the cluster's network.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from cluster import images
from cluster.cluster import Cluster
from cluster.kubectl import Kubectl
from moto.server import ThreadedMotoServer
from tiny_models import RECIPE, cache_dir, cached

from chart.helm import CHART, ROOT, Helm, helm_binary

BUCKET = "models"
SITE = Path(sys.prefix) / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
LIBRARIES = ("libnuma.so.1",)  # what vLLM's kernels for CPU need of the system, beside libc


def _libraries(folder: Path) -> None:
    found = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    for line in found.splitlines():
        name, _, path = line.strip().partition(" ")
        if name in LIBRARIES and "x86-64" in path:
            shutil.copy(path.rpartition("=> ")[2], folder / name)
    missing = [name for name in LIBRARIES if not (folder / name).is_file()]
    assert not missing, f"install the Debian package that has {missing}"
    folder.chmod(0o755)


MOUNTED = {
    "python": (Path(sys.base_prefix), "/opt/python"),
    "site": (SITE, "/opt/site"),
    "sheaf": (ROOT, "/opt/src"),
    "libraries": (cache_dir() / f"engine-libraries-{RECIPE}", "/opt/lib"),
}
PYTHON = f"/opt/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
PATHS = ("/opt/site", *(f"/opt/src/{part}" for part in ("crds", "engine", "gateway", "operator", "sheaf")))
AWS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
ENGINE_ENV = {
    "PYTHONPATH": ":".join(PATHS),
    "LD_LIBRARY_PATH": "/opt/python/lib:/opt/lib",
    "PYTHONDONTWRITEBYTECODE": "1",
    "SHEAF_KERNELS": "off",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


@dataclass(frozen=True)
class Installation:
    """One release in one namespace."""

    cluster: Cluster
    kubectl: Kubectl
    helm: Helm
    namespace: str
    release: str = "sheaf"

    @property
    def url(self) -> str:
        """The gateway's Service from outside the cluster: its port on the first node."""
        service = self.kubectl.get("service", f"{self.release}-gateway")
        assert service is not None
        return f"http://{self.cluster.network.node(1)}:{service['spec']['ports'][0]['nodePort']}"

    def install(self, values: Mapping[str, Any]) -> None:
        """`helm upgrade --install --wait`; CRDs of the namespace's neighbours are taken over."""
        options = ["--namespace", self.namespace, "--take-ownership", "--wait", "--timeout", "180s"]
        self.helm("upgrade", "--install", self.release, str(CHART), *options, values=values, timeout=200)

    def uninstall(self) -> None:
        """Remove release, namespace and volumes."""
        self.helm("uninstall", self.release, "--namespace", self.namespace, "--ignore-not-found")
        for kind in ("models", "adapters"):
            self.kubectl("delete", kind, "--all", "--wait=false", check=False)
        self.kubectl.delete("namespace", self.namespace, wait=False)
        self.kubectl.delete("persistentvolume", *(f"{self.namespace}-{name}" for name in MOUNTED), wait=False)


@contextmanager
def installation(cluster: Cluster, namespace: str) -> Iterator[Installation]:
    """A namespace that enforces the restricted standard, with all that an installation needs; removed after."""
    kubectl = cluster.kubectl.within(namespace)
    done = Installation(cluster, kubectl, Helm(helm_binary(), cluster.layout.kubeconfig), namespace)
    cached("engine-libraries", _libraries)
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": label}})
    try:
        kubectl.apply(*_volumes(namespace), _secret())
        yield done
    finally:
        done.uninstall()


@contextmanager
def store(cluster: Cluster, folders: Mapping[str, Path]) -> Iterator[str]:
    """An S3 store that the pods reach, with one prefix for each folder; its URL."""
    server = ThreadedMotoServer(ip_address=cluster.network.host, port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        client = boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        client.create_bucket(Bucket=BUCKET)
        for name, folder in folders.items():
            for file in folder.iterdir():
                client.upload_file(str(file), BUCKET, f"{name}/{file.name}")
        client.close()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def ready_images(cluster: Cluster) -> str:
    """The tag under which this working tree's images lie in every node."""
    built = images.build()
    images.load(cluster.layout, [spec.name for spec in cluster.nodes], built.values())
    return next(iter(built.values())).rpartition(":")[2]


def values(tag: str, s3_url: str) -> dict[str, Any]:
    """Values of the installation: small engines, the mounted environment, the store."""
    small = {"requests": {"cpu": "50m", "memory": "64Mi"}}
    agent = {"repository": "sheaf-engine-agent"}
    return {
        "image": {"registry": "localhost", "tag": tag, "pullPolicy": "Never"},
        "operator": {"resources": small},
        "gateway": {"resources": small, "service": {"type": "NodePort"}},
        "engines": {
            "images": {"engine": agent},
            "python": PYTHON,
            "volumes": [
                {"name": name, "persistentVolumeClaim": {"claimName": name, "readOnly": True}} for name in MOUNTED
            ],
            "engineMounts": [
                {"name": name, "mountPath": place, "readOnly": True} for name, (_, place) in MOUNTED.items()
            ],
            "engineEnv": [{"name": name, "value": value} for name, value in ENGINE_ENV.items()],
            "resources": {"vllmCpu": {"requests": {"cpu": "200m", "memory": "2Gi"}}},
            "s3": {"secret": "aws", "endpointUrl": s3_url, "region": "us-east-1"},
        },
    }


def _volumes(namespace: str) -> Iterator[dict[str, Any]]:
    for name, (folder, _) in MOUNTED.items():
        spec = {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain",
        }
        volume = f"{namespace}-{name}"
        claim = {"namespace": namespace, "name": name}
        yield {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {**spec, "hostPath": {"path": str(folder), "type": "Directory"}, "claimRef": claim},
        }
        yield {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name},
            "spec": {
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": "",
                "volumeName": volume,
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }


def _secret() -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "aws"}, "stringData": AWS}
