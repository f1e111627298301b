"""One installation with emulated engines, and what the tests ask of it.

Operator and gateways run on the on-demand node, as on a platform pool, so that what happens to the spot nodes happens to
engines alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx
from chart.installation import Installation, installation, ready_images
from cluster.cluster import Cluster
from cluster.errors import ClusterError
from cluster.kubectl import Kubectl

API_VERSION = "sheaf.dev/v1alpha1"
PLATFORM = {"kubernetes.io/hostname": "node-a"}
SMALL = {"requests": {"cpu": "20m", "memory": "64Mi"}}
OPERATOR = "app.kubernetes.io/component=operator"
GATEWAY = "app.kubernetes.io/component=gateway"
Object = dict[str, Any]


def manifest(kind: str, name: str, spec: Mapping[str, Any]) -> Object:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": dict(spec)}


def emulated(*args: str, **spec: Any) -> Object:
    """A Model's spec: an emulator as fast as its process goes, unless the arguments say otherwise."""
    engine = {"name": "emulator", "args": list(args) or ["--profile=instant"]}
    return {"source": "hf://org/tiny", "engine": engine, "drainTimeout": "5s", "lora": {"slots": 2}, **spec}


def values(tag: str) -> Object:
    """Values of the installation."""
    part = {"resources": SMALL, "nodeSelector": PLATFORM}
    kinds = ("emulator", "agent", "fetch", "vllm", "vllmCpu")
    return {
        "image": {"registry": "localhost", "tag": tag, "pullPolicy": "Never"},
        "operator": part,
        "gateway": {**part, "service": {"type": "NodePort"}},
        "engines": {
            "images": {"engine": {"repository": "sheaf-engine-agent"}},
            "resources": dict.fromkeys(kinds, SMALL),
        },
    }


@dataclass(frozen=True)
class Fleet:
    """A running installation."""

    installed: Installation
    values: Object

    @property
    def cluster(self) -> Cluster:
        return self.installed.cluster

    @property
    def kubectl(self) -> Kubectl:
        return self.installed.kubectl

    @property
    def namespace(self) -> str:
        return self.installed.namespace

    @cached_property
    def url(self) -> str:
        """The gateways' Service, as the host reaches it."""
        return self.installed.url

    def serve(self, name: str, spec: Mapping[str, Any], timeout: float = 90) -> None:
        """Declare a Model and wait until all its replicas serve."""
        self.kubectl.apply(manifest("Model", name, spec))
        self.settled(name, timeout)

    def settled(self, name: str, timeout: float = 90) -> Object:
        """The Model, once it is ready and nothing is left to do."""
        try:
            found = self.kubectl.wait("model", name, "ready and at rest", at_rest, timeout)
        except ClusterError as error:
            raise ClusterError("\n".join([str(error), *map(engine_story, self.pods(name))])) from error
        assert found is not None
        return found

    def forget(self, *names: str) -> None:
        """Delete Models and wait for the end of their pods."""
        self.kubectl.delete("model", *names)
        for name in names:
            self.kubectl.wait_list("pods", "gone", lambda pods: not pods, f"sheaf.dev/model={name}", 60)

    def pods(self, model: str) -> list[Object]:
        """The pods of a Model that are there to stay."""
        found = self.kubectl.list("pods", f"sheaf.dev/model={model}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def engines(self) -> dict[str, tuple[str, int]]:
        """Each engine pod's UID and restarts, by name."""
        found = self.kubectl.list("pods", "app.kubernetes.io/name=sheaf-engine")
        return {pod["metadata"]["name"]: (pod["metadata"]["uid"], restarts(pod)) for pod in found}

    def says(self, kind: str, name: str, condition: str, status: str, *reasons: str, timeout: float = 60) -> str:
        """The message of a condition, once it has that status and one of the reasons."""

        def said(thing: Object | None) -> bool:
            found = condition_of(thing, condition)
            return found.get("status") == status and (not reasons or found.get("reason") in reasons)

        what = f"{condition}={status} for {' or '.join(reasons) or 'any reason'}"
        return str(condition_of(self.kubectl.wait(kind, name, what, said, timeout), condition)["message"])

    def ask(self, model: str, timeout: float = 30) -> str:
        """The text of one answer."""
        body = {"model": model, "prompt": "hello", "max_tokens": 4, "temperature": 0}
        answer = httpx.post(f"{self.url}/v1/completions", json=body, timeout=timeout)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    def scale(self, model: str, replicas: int) -> None:
        """`kubectl scale`."""
        self.kubectl("scale", f"model/{model}", f"--replicas={replicas}")

    def deployments(self, *parts: str, replicas: int | None = None, timeout: float = 90) -> None:
        """Scale parts of the installation, where a number is given, and wait until they are as wanted."""
        for part in parts:
            name = f"deployment/sheaf-{part}"
            if replicas is not None:
                self.kubectl("scale", name, f"--replicas={replicas}")
            self.kubectl("rollout", "status", name, f"--timeout={timeout:g}s", timeout=timeout + 10)

    def leader(self) -> str:
        """The pod that holds the operator's Lease."""
        lease = self.kubectl.get("lease", "sheaf-operator")
        return str((lease or {}).get("spec", {}).get("holderIdentity", "")).partition("_")[0]


def condition_of(thing: Object | None, kind: str) -> Object:
    """A condition of an object; empty where it has none, or it was said of an earlier generation."""
    generation = (thing or {}).get("metadata", {}).get("generation")
    every = (thing or {}).get("status", {}).get("conditions", ())
    return next((one for one in every if one["type"] == kind and one.get("observedGeneration") == generation), {})


def at_rest(model: Object | None) -> bool:
    """Whether a Model is ready and nothing is left to do."""
    progressing = condition_of(model, "Progressing")
    return condition_of(model, "Ready").get("status") == "True" and progressing.get("status") == "False"


def engine_story(pod: Object) -> str:
    """Why an engine is not ready, in one line: whether the kubelet backs off or the engine starts slowly."""
    status = pod.get("status", {})
    engine = next((one for one in status.get("containerStatuses", ()) if one["name"] == "engine"), {})
    state = {word: facts for word, facts in engine.get("state", {}).items() if facts is not None}
    ended = engine.get("lastState", {}).get("terminated") or {}
    said = {one["type"]: one["status"] for one in status.get("conditions", ())}
    return (
        f"pod {pod['metadata']['name']}: engine restartCount={engine.get('restartCount')} state={state} "
        f"lastState.reason={ended.get('reason')} lastState.finishedAt={ended.get('finishedAt')} conditions={said}"
    )


def restarts(pod: Object) -> int:
    """Restarts of all containers of a pod."""
    status = pod.get("status", {})
    every = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
    return sum(entry.get("restartCount", 0) for entry in every)


def node_of(pod: Object) -> str:
    """The node that a pod runs on."""
    return str(pod["spec"].get("nodeName", ""))


def within(seconds: float, what: str, holds: Callable[[], Any], every: float = 0.1) -> float:
    """Seconds until `holds()` was true."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, f"{what}: not within {seconds:g} s"
        time.sleep(every)
    return time.monotonic() - began


def uids(pods: Sequence[Object]) -> set[str]:
    """The UIDs of objects."""
    return {pod["metadata"]["uid"] for pod in pods}


@contextmanager
def fleet(cluster: Cluster, namespace: str, chosen: Object | None = None) -> Iterator[Fleet]:
    """The chart installed, with values of the caller's if there are any; removed after.

    SHEAF_E2E_TAG names images that the nodes hold already.
    """
    chosen = chosen or values(os.environ.get("SHEAF_E2E_TAG") or ready_images(cluster))
    with installation(cluster, namespace) as installed:
        installed.install(chosen)
        yield Fleet(installed, chosen)
