"""Holds the Lease: looks, writes, and knows at every moment whether this process may act. Decisions: handlers.lease."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from sheaf_operator.cluster.kubernetes.client import ApiServer
from sheaf_operator.cluster.kubernetes.errors import ApiError
from sheaf_operator.cluster.kubernetes.notes import stamp
from sheaf_operator.cluster.kubernetes.resources import LEASES, Raw
from sheaf_operator.cluster.protocol import ClusterError
from sheaf_operator.handlers.lease import (
    DURATION,
    RETRY,
    Record,
    Standing,
    Wish,
    holds,
    released,
    seen,
    wish,
    written,
)

CALL_TIMEOUT = 3.0
REPEAT = 60.0
FORBIDDEN = 403
GONE = {401, 403, 404}  # an uninstallation removes account, Role and namespace while the operator still ends

_log = structlog.get_logger("sheaf.operator.lease")


@dataclass
class LeaseKeeper:
    """One candidate. `ticks`: monotonic, `clock`: Unix seconds; `moved` is called when its right to act changes."""

    api: ApiServer
    name: str
    identity: str
    ticks: Callable[[], float]
    clock: Callable[[], float]
    moved: Callable[[], None]
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self._standing = Standing(self.identity)
        self._held = False
        self._trouble = ""
        self._told_at = 0.0
        self._forbidden = ""
        self._leader = Gauge("sheaf_operator_leader", "1 where this process may act.", registry=self.registry)
        self._renewals = Counter("sheaf_operator_lease_writes", "Lease writes.", ["result"], registry=self.registry)

    def holds(self) -> bool:
        """Whether this process may act now."""
        return holds(self._standing, self.ticks())

    @property
    def forbidden(self) -> str:
        """Why this process can never act until its permissions change; empty where they do."""
        return self._forbidden

    async def run(self) -> None:
        """Compete and hold until cancelled."""
        while True:
            pause = await self._step()
            self._tell()
            await asyncio.sleep(pause)

    async def release(self) -> None:
        """Act no more, and let the next one begin at once."""
        record, held = self._standing.record, self.holds()
        self._standing = released(self._standing)
        self._tell()
        if not held or record is None:
            return
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                await self._write(record, holder="", duration=1.0)
            _log.info("released the Lease", lease=self.name)
        except (ClusterError, TimeoutError) as error:
            gone = isinstance(error, ApiError) and error.status in GONE
            tell = _log.debug if gone else _log.warning
            tell("the Lease is not released; the next operator waits for its end", error=str(error))

    async def _step(self) -> float:
        try:
            wanted = wish(self._standing, self.ticks())
            if wanted.do == "wait":
                if not self.holds():
                    await self._look()
                    wanted = wish(self._standing, self.ticks())
            elif wanted.do == "create" or not self.holds():
                await self._look()
                wanted = wish(self._standing, self.ticks())
            return await self._do(wanted)
        except (ClusterError, TimeoutError) as error:
            self._complain(error)
            return RETRY

    async def _do(self, wanted: Wish) -> float:
        if wanted.do == "wait":
            self._forbidden = ""
            return max(0.0, wanted.seconds)
        asked_at = self.ticks()
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                record = await self._claim()
        except ApiError as error:
            self._renewals.labels("refused").inc()
            if error.status == 409:
                await self._look()
                return 0.0
            raise
        self._renewals.labels("done").inc()
        self._standing = written(self._standing, record, asked_at)
        self._trouble = self._forbidden = ""
        return max(0.0, wish(self._standing, self.ticks()).seconds)

    async def _claim(self) -> Record:
        before = self._standing.record
        if before is None:
            return _record(await self.api.create(LEASES, self._body(Record("", "", ""), self.identity, DURATION)))
        return await self._write(before, holder=self.identity, duration=DURATION)

    async def _write(self, before: Record, *, holder: str, duration: float) -> Record:
        return _record(await self.api.replace(LEASES, self.name, self._body(before, holder, duration)))

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                found: Record | None = _record(await self.api.get(LEASES, self.name))
        except ApiError as error:
            if error.status != 404:
                raise
            found = None
        self._standing = seen(self._standing, found, self.ticks())

    def _body(self, before: Record, holder: str, duration: float) -> Raw:
        now = stamp(self.clock())
        stays = before.holder == holder
        meta = {"name": self.name, "namespace": self.api.namespace}
        if before.version:
            meta["resourceVersion"] = before.version
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": meta,
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": int(duration),
                "renewTime": now,
                "acquireTime": before.acquired if stays and before.acquired else now,
                "leaseTransitions": before.transitions + (0 if stays or not holder else 1),
            },
        }

    def _complain(self, error: BaseException) -> None:
        text = str(error) or type(error).__name__
        self._renewals.labels("failed").inc()
        if isinstance(error, ApiError) and error.status == FORBIDDEN:
            self._forbidden = text = _mend(self.name, text)
        if text != self._trouble or self.ticks() >= self._told_at + REPEAT:
            self._trouble, self._told_at = text, self.ticks()
            _log.warning("the Lease cannot be looked at or written", lease=self.name, error=text)

    def _tell(self) -> None:
        held = self.holds()
        self._leader.set(held)
        if held == self._held:
            return
        self._held = held
        holder = self._standing.record.holder if self._standing.record else ""
        _log.info("leads" if held else "does not lead", lease=self.name, identity=self.identity, holder=holder)
        self.moved()


def _mend(name: str, said: str) -> str:
    return (
        f"this operator may not use the Lease {name}, so it does not act: let its Role get and update the lease {name} "
        f"(coordination.k8s.io) and create leases ({said})"
    )


def _record(raw: Raw) -> Record:
    spec = raw.get("spec") or {}
    return Record(
        holder=str(spec.get("holderIdentity") or ""),
        renewed=str(spec.get("renewTime") or ""),
        version=str(raw["metadata"].get("resourceVersion") or ""),
        duration=float(spec.get("leaseDurationSeconds") or 0.0),
        transitions=int(spec.get("leaseTransitions") or 0),
        acquired=str(spec.get("acquireTime") or ""),
    )
