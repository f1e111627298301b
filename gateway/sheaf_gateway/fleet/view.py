"""What decisions read of the fleet: immutable values, no I/O.

A `Fleet` is replaced, never changed. Declared facts come from the snapshot of whoever owns the pods, facts
about residency and load from each pod's agent, which is the one source of truth of what is resident.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import msgspec

EMPTY: Mapping[str, str] = MappingProxyType({})

Availability = Literal["Ready", "Starting", "Zero"]


class Pod(msgspec.Struct, frozen=True, kw_only=True):
    """One engine with its agent.

    `resident` maps each loaded adapter to the digest of its files; `foreign_running` and `foreign_waiting`
    count the requests in the engine that this gateway did not send; `kv_usage` is a share from 0 to 1;
    `max_model_len` counts tokens (0: unknown); `epoch` grows with every start of the engine and empties its
    caches; `deadline` is when a draining pod goes, in Unix seconds (0: not known); `continues` says that the engine has
    Sheaf's logits processor, which makes continued sampling exact.
    """

    name: str
    uid: str = ""
    model: str
    engine_url: str
    agent_url: str = ""
    ready: bool = True
    draining: bool = False
    deadline: float = 0.0
    continues: bool = False
    spot: bool = False
    zone: str = ""
    epoch: int = 0
    resident: Mapping[str, str] = EMPTY
    loading: frozenset[str] = frozenset()
    foreign_running: int = 0
    foreign_waiting: int = 0
    kv_usage: float = 0.0
    max_model_len: int = 0

    def holds(self, adapter: str | None, digest: str) -> bool:
        """Whether the adapter (None: the base model) is loaded; an empty digest means any version of it.

        A pod without an agent is taken at its engine's word, which is asked when the request gets there.
        """
        if adapter is None or not self.agent_url:
            return True
        found = self.resident.get(adapter)
        return found is not None and (not digest or found == digest)


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one tenant or key; None does not bound. Rates are for a minute."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """What an SLO object says about waiting and limits. `max_wait` is in seconds."""

    name: str = ""
    interactive: bool = True
    max_queue: int = 1024
    max_wait: float = 30.0
    limits: Rate = Rate()


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A name that callers may use: a Model, or an Adapter of one.

    `digest` is the declared one of an adapter, or what its pods report, or empty; `created` is in Unix seconds.
    """

    name: str
    model: str
    adapter: str | None = None
    digest: str = ""
    task: Literal["Generate", "Embed"] = "Generate"
    replicas: int = 1
    created: int = 0
    promise: Promise = Promise()


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """Everything declared, every pod, and the number of ready pods by Model, at one moment."""

    version: int = 0
    served: Mapping[str, Served] = MappingProxyType({})
    pods: Mapping[str, tuple[Pod, ...]] = MappingProxyType({})
    ready: Mapping[str, int] = MappingProxyType({})

    def pods_of(self, model: str) -> tuple[Pod, ...]:
        """Pods of a Model, ready or not, by rising name."""
        return self.pods.get(model, ())

    def digest_of(self, served: Served) -> str:
        """Digest that names the adapter's present content: the declared one, else what its pods report."""
        if served.adapter is None or served.digest:
            return served.digest
        return max((pod.resident.get(served.adapter, "") for pod in self.pods_of(served.model)), default="")

    def availability(self, served: Served) -> Availability:
        """Whether anything could answer now, will soon, or is wanted at all."""
        return availability(served.replicas, self.ready.get(served.model, 0), len(self.pods_of(served.model)))


def availability(declared: int, ready: int, pods: int) -> Availability:
    """The same of a Model that declares so many replicas, of whose pods so many are ready."""
    if ready:
        return "Ready"
    return "Zero" if declared == 0 and not pods else "Starting"
