"""An API server for `helm template --dry-run=server`: it answers what the chart asks of a cluster while it is rendered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

Object = dict[str, Any]


@contextmanager
def asked(folder: Path, namespace: str, deployments: Sequence[Object]) -> Iterator[Path]:
    """A kubeconfig, written into the folder, of a cluster that holds these Deployments and nothing else."""
    answers = {
        "/api/v1": _resources("v1", "secrets", "Secret"),
        "/apis/apps/v1": _resources("apps/v1", "deployments", "Deployment"),
        f"/apis/apps/v1/namespaces/{namespace}/deployments": _listed(deployments),
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(answers)) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield _kubeconfig(folder, server.server_port)
        finally:
            server.shutdown()
            thread.join()


def operator_of(release: str, namespace: str, replicas: int = 2) -> Object:
    """The Deployment of a release's operator, as far as others look at it."""
    labels = {"app.kubernetes.io/name": "sheaf-operator", "app.kubernetes.io/instance": release}
    metadata = {"name": f"{release}-operator", "namespace": namespace, "labels": labels}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {"replicas": replicas}}


def _resources(version: str, plural: str, kind: str) -> Object:
    one = {"name": plural, "namespaced": True, "kind": kind, "verbs": ["get", "list"]}
    return {"kind": "APIResourceList", "groupVersion": version, "resources": [one]}


def _listed(deployments: Sequence[Object]) -> Object:
    return {"kind": "DeploymentList", "apiVersion": "apps/v1", "metadata": {}, "items": list(deployments)}


def _kubeconfig(folder: Path, port: int) -> Path:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "one", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "one", "user": {}}],
        "contexts": [{"name": "one", "context": {"cluster": "one", "user": "one"}}],
        "current-context": "one",
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(content))
    return path


def _handler(answers: Mapping[str, Object]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            text = json.dumps(
                found or {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
            ).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the standard library
            """Nothing: a test reads what Helm says."""

    return Handler
