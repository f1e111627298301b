"""What the operators wrote, from the API server's audit log: when, who, what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from chart import audit

from resilience.fleet import Fleet

VERBS = frozenset({"create", "update", "patch", "delete", "deletecollection"})
POD = "authentication.kubernetes.io/pod-name"


@dataclass(frozen=True)
class Write:
    """One write. `at`: Unix seconds when the API server got it; `pod`: who wrote; `code`: the answer."""

    at: float
    pod: str
    verb: str
    resource: str
    name: str
    code: int


@dataclass
class Writes:
    """The operators' writes from now on, renewals of their Lease aside."""

    fleet: Fleet

    def __post_init__(self) -> None:
        self._log = self.fleet.cluster.layout.audit_log
        self._begin = self._log.stat().st_size

    def __call__(self) -> list[Write]:
        return sorted(self._read(), key=lambda write: write.at)

    def _read(self) -> Iterator[Write]:
        for event in audit.requests(self._log, f"{self.fleet.namespace}:sheaf-operator", self._begin):
            reference = event.get("objectRef", {})
            if event["verb"] in VERBS and reference.get("resource") != "leases":
                yield Write(
                    datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp(),
                    event["user"].get("extra", {}).get(POD, ["?"])[0],
                    event["verb"],
                    reference.get("resource", "") + (f"/{part}" if (part := reference.get("subresource")) else ""),
                    reference.get("name", ""),
                    event.get("responseStatus", {}).get("code", 0),
                )


def turns(writes: Sequence[Write]) -> list[str]:
    """Who wrote, in order, each run of writes of one pod once: nobody twice where writers never interleave."""
    return [pod for pod, _ in groupby(writes, key=lambda write: write.pod)]
