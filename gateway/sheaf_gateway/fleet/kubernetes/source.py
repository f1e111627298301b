"""The fleet from the API server: five reflectors into one store, bursts gathered, broken objects left out and named.

The store is first told when every kind that serving needs was listed, so that nobody meets half a fleet. After that
(or from the start, where a persisted snapshot is in force) each change is worked in as it comes. While the API server
is away, everything stays as it was.
"""

import asyncio
import contextlib
from random import Random

import structlog

from sheaf_gateway.fleet import metrics
from sheaf_gateway.fleet.kubernetes.client import ApiError, KubeApi
from sheaf_gateway.fleet.kubernetes.reading import Identity, Raw, UnreadableError, identity, read
from sheaf_gateway.fleet.kubernetes.reflector import Reflector, Resource, Rules
from sheaf_gateway.fleet.kubernetes.watchboard import WatchBoard
from sheaf_gateway.fleet.memory import spare_collector
from sheaf_gateway.fleet.snapshot import KINDS, Item, Key, Kind
from sheaf_gateway.fleet.store import FleetStore

log = structlog.get_logger(__name__)

POD_SELECTOR = "app.kubernetes.io/name=sheaf-engine"
COALESCE_S = 0.02
_NEEDED: frozenset[Kind] = frozenset({"models", "adapters", "slos", "pods"})
_MAX_PROBLEMS = 10_000


def resources(namespace: str) -> tuple[Resource, ...]:
    """What a gateway reads of its namespace."""
    group = f"/apis/sheaf.dev/v1alpha1/namespaces/{namespace}"
    declared = tuple(Resource(kind, f"{group}/{kind.lower()}") for kind in KINDS if kind != "pods")
    return (*declared, Resource("pods", f"/api/v1/namespaces/{namespace}/pods", POD_SELECTOR))


class KubernetesSource:
    """Feeds a store until cancelled; a `reflector.Sink`."""

    def __init__(self, api: KubeApi, store: FleetStore, *, seed: int, rules: Rules | None = None) -> None:
        self._store = store
        self._rules = rules or Rules()
        self.board = WatchBoard(api.namespace)
        self._reflectors = [
            Reflector(resource, api, self, self._rules, Random(f"{seed}/{resource.kind}"))  # noqa: S311
            for resource in resources(api.namespace)
        ]
        self._versions: dict[Key, Identity] = {}
        self._problems: dict[Key, str] = {}
        self._listed: set[Kind] = set()
        self._pending: dict[Key, Item | None] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Follow every kind."""
        try:
            async with asyncio.TaskGroup() as group:
                for reflector in self._reflectors:
                    group.create_task(reflector.run())
        finally:
            if self._timer is not None:
                self._timer.cancel()

    # What reflectors tell.

    def changed(self, kind: Kind, raw: Raw) -> None:
        """See `reflector.Sink`."""
        with contextlib.suppress(UnreadableError):
            this = identity(raw)
            key = (kind, this.name)
            before = self._versions.get(key)
            if before == this:
                return
            if before is None and len(self._versions) >= self._rules.max_objects:
                self._leave_out(key, f"there are more than {self._rules.max_objects} objects")
                return
            self._versions[key] = this
            self._take(key, this, raw)

    def gone(self, kind: Kind, raw: Raw) -> None:
        """See `reflector.Sink`."""
        with contextlib.suppress(UnreadableError):
            self._forget((kind, identity(raw).name))

    def listed(self, kind: Kind, names: frozenset[str]) -> None:
        """See `reflector.Sink`."""
        held = set(self._store.declared.items[kind])
        held |= {name for of, name in (*self._versions, *self._pending, *self._problems) if of == kind}
        for name in held - names:
            self._forget((kind, name))
        self._listed.add(kind)
        self._schedule()
        log.info("fleet_listed", kind=kind, objects=len(names))

    def watching(self, kind: Kind) -> None:
        """See `reflector.Sink`."""
        self.board.watching(kind)

    def away(self, kind: Kind, error: ApiError) -> None:
        """See `reflector.Sink`."""
        self.board.failed(kind, error)

    # Working it in.

    def _take(self, key: Key, this: Identity, raw: Raw) -> None:
        try:
            item = read(key[0], raw)
        except UnreadableError as problem:
            self._leave_out(key, str(problem))
            if self._held_uid(key) != this.uid:
                self._change(key, None)
            return
        if self._problems.pop(key, None) is not None:
            self._count_problems(key[0])
        self._change(key, item)

    def _held_uid(self, key: Key) -> str:
        """UID of the good version in force; empty where there is none."""
        item = self._pending[key] if key in self._pending else self._store.declared.get(*key)
        if item is None:
            return ""
        return getattr(item, "uid", "") or getattr(getattr(item, "metadata", None), "uid", "")

    def _leave_out(self, key: Key, problem: str) -> None:
        if self._problems.get(key) == problem or len(self._problems) >= _MAX_PROBLEMS:
            return
        self._problems[key] = problem
        self._count_problems(key[0])
        log.warning("fleet_part_left_out", kind=key[0], name=key[1], reason=problem, kept="its last good version")

    def _forget(self, key: Key) -> None:
        self._versions.pop(key, None)
        if self._problems.pop(key, None) is not None:
            self._count_problems(key[0])
        self._change(key, None)

    def _count_problems(self, kind: Kind) -> None:
        metrics.OBJECTS_LEFT_OUT.labels(kind).set(sum(of == kind for of, _ in self._problems))

    def _change(self, key: Key, item: Item | None) -> None:
        self._pending[key] = item
        self._schedule()

    def _schedule(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(COALESCE_S, self._flush)

    def _flush(self) -> None:
        self._timer = None
        whole = self._listed >= _NEEDED or self._store.known
        first = not self._store.known
        if whole and (self._pending or first):
            pending, self._pending = self._pending, {}
            self._store.apply(pending)
        if whole and first:
            spare_collector()
