"""A small typed kubectl for tests: apply, read as JSON, wait with a bound and a message that shows what was there."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ClusterError
from .shell import run

Object = dict[str, Any]
SHOWN = 2000


@dataclass(frozen=True)
class Kubectl:
    """kubectl for one cluster, and one namespace where ``namespace`` is given.

    Every method raises ``ClusterError`` with kubectl's own words where kubectl fails.
    """

    kubeconfig: Path
    program: Path
    namespace: str = ""

    def within(self, namespace: str) -> Kubectl:
        """The same kubectl in another namespace."""
        return Kubectl(self.kubeconfig, self.program, namespace)

    @property
    def command(self) -> list[str]:
        """The words that every call begins with."""
        scope = ["--namespace", self.namespace] if self.namespace else []
        return [str(self.program), "--kubeconfig", str(self.kubeconfig), *scope]

    def __call__(self, *words: str | Path, stdin: str | None = None, timeout: float = 60, check: bool = True) -> str:
        return run([*self.command, *words], stdin=stdin, timeout=timeout, check=check)

    def popen(self, *words: str) -> subprocess.Popen[str]:
        """A kubectl that goes on running (logs -f, port-forward, get -w); the caller ends it."""
        pipe = subprocess.PIPE
        return subprocess.Popen([*self.command, *words], stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)

    def apply(self, *objects: Mapping[str, Any], server_side: bool = True) -> None:
        """Apply objects as a user would."""
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self("apply", *(["--server-side"] if server_side else []), "-f", "-", stdin=document)

    def get(self, kind: str, name: str) -> Object | None:
        """One object, or none."""
        text = self("get", kind, name, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else None

    def list(self, kind: str, selector: str = "", *, everywhere: bool = False) -> list[Object]:
        """All objects of a kind (in the namespace, or ``everywhere``) that the label selector takes."""
        words = ["get", kind, "-o", "json", *(["-l", selector] if selector else []), *(["-A"] if everywhere else [])]
        items: list[Object] = json.loads(self(*words))["items"]
        return items

    def delete(self, kind: str, *names: str, wait: bool = True, timeout: float = 60) -> None:
        """Delete objects, also those that are gone already."""
        self("delete", kind, *names, "--ignore-not-found", f"--wait={str(wait).lower()}", timeout=timeout)

    def patch(self, kind: str, name: str, change: Mapping[str, Any], *, subresource: str = "") -> None:
        """A merge patch."""
        part = [f"--subresource={subresource}"] if subresource else []
        self("patch", kind, name, "--type=merge", *part, "-p", json.dumps(change))

    def strategic(self, kind: str, name: str, change: Mapping[str, Any]) -> None:
        """A strategic merge patch: lists merge by their keys."""
        self("patch", kind, name, "--type=strategic", "-p", json.dumps(change))

    def wait(
        self, kind: str, name: str, what: str, until: Callable[[Object | None], Any], timeout: float = 60
    ) -> Object | None:
        """The object as soon as ``until`` is true of it (it gets none where there is no object).

        Raises:
            ClusterError: not within ``timeout`` seconds; the message says what was wanted and what was there.
        """
        seen: Object | None = None

        def look() -> bool:
            nonlocal seen
            seen = self.get(kind, name)
            return bool(until(seen))

        self._until(look, timeout, lambda: f"{kind}/{name}: {what}: {_shown(seen)}")
        return seen

    def wait_list(
        self,
        kind: str,
        what: str,
        until: Callable[[Sequence[Object]], Any],
        selector: str = "",
        timeout: float = 60,
    ) -> Sequence[Object]:
        """All objects of a kind as soon as ``until`` is true of the list; raises as ``wait`` does."""
        seen: Sequence[Object] = ()

        def look() -> bool:
            nonlocal seen
            seen = self.list(kind, selector)
            return bool(until(seen))

        self._until(look, timeout, lambda: f"{kind} {selector}: {what}: {_shown_list(seen)}")
        return seen

    def wait_pod_ready(self, name: str, timeout: float = 60) -> Object:
        """The pod, once it is Ready."""
        pod = self.wait("pod", name, "Ready", lambda pod: pod and condition(pod, "Ready") == "True", timeout)
        assert pod is not None
        return pod

    @staticmethod
    def _until(look: Callable[[], bool], timeout: float, message: Callable[[], str]) -> None:
        deadline = time.monotonic() + timeout
        while not look():
            if time.monotonic() > deadline:
                raise ClusterError(f"not within {timeout:g} s: {message()}")
            time.sleep(0.25)


def condition(thing: Mapping[str, Any], kind: str) -> str | None:
    """The status of a condition: ``True``, ``False``, ``Unknown``, or none."""
    for entry in thing.get("status", {}).get("conditions", ()):
        if entry["type"] == kind:
            return str(entry["status"])
    return None


def _shown(thing: Object | None) -> str:
    if thing is None:
        return "there is no such object"
    return json.dumps({"spec": thing.get("spec"), "status": thing.get("status")}, separators=(",", ":"))[-SHOWN:]


def _shown_list(things: Sequence[Object]) -> str:
    lines = [
        f"{thing['metadata']['name']} {json.dumps(thing.get('status'), separators=(',', ':'))}" for thing in things
    ]
    return ("\n  ".join(["", *lines]) or "none")[:SHOWN]
