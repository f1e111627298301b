"""The last known fleet on disk, so that a gateway can start while the API server is away.

Written in the shape of `FleetSnapshot`, at most every second, and less often where writing takes long; replaced at
once, so that a reader finds the old file or the new one; by way of a file of this process alone, for a worker may take
over from one that still writes. Only what changed is serialised again.
"""

import asyncio
import os
import time
from pathlib import Path

import structlog

from sheaf_gateway.fleet import metrics
from sheaf_gateway.fleet.snapshot import KINDS, Key, Kind
from sheaf_gateway.fleet.store import Change, FleetStore

log = structlog.get_logger(__name__)

INTERVAL_S = 1.0
_MAX_SHARE = 0.05
_BREATHE_EVERY = 64


class SnapshotFile:
    """Writes the store's declared objects and pods whenever they change."""

    def __init__(self, path: Path, store: FleetStore) -> None:
        self._path = path
        self._store = store
        self._parts: dict[Kind, dict[str, bytes]] = {kind: {} for kind in KINDS}
        self._dirty: set[Key] = {(kind, name) for kind in KINDS for name in store.declared.items[kind]}
        self._news = asyncio.Event()
        self._failing = False
        self._writing: asyncio.Future[None] | None = None
        store.watch(self._note)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._news.wait()
            started = time.monotonic()
            await self.write()
            took = time.monotonic() - started
            await asyncio.sleep(max(INTERVAL_S, took / _MAX_SHARE))

    async def write(self) -> None:
        """Write now if there is anything new. A disk that refuses is told of once and tried again."""
        if self._writing is not None:
            await asyncio.wait({self._writing})
        if not self._news.is_set():
            return
        await self._serialise()
        self._news.clear()
        self._writing = asyncio.ensure_future(asyncio.to_thread(_replace, self._path, self._pieces()))
        try:
            await asyncio.shield(self._writing)
        except OSError as error:
            self._refused(error)
            return
        self._failing = False
        metrics.SNAPSHOT_WRITES.labels("written").inc()
        metrics.SNAPSHOT_WRITTEN.set(time.time())

    def _note(self, change: Change) -> None:
        if change.keys:
            self._dirty |= change.keys
            self._news.set()

    async def _serialise(self) -> None:
        count = 0
        while self._dirty:
            kind, name = self._dirty.pop()
            item = self._store.declared.get(kind, name)
            if item is None:
                self._parts[kind].pop(name, None)
            else:
                self._parts[kind][name] = item.model_dump_json(by_alias=True, exclude_none=True).encode()
            count += 1
            if count % _BREATHE_EVERY == 0:
                await asyncio.sleep(0)

    def _pieces(self) -> list[bytes]:
        pieces = [b'{"version":%d' % self._store.fleet.version]
        for kind, parts in self._parts.items():
            pieces += [b',"%b":[' % kind.encode(), b",".join(parts.values()), b"]"]
        return [*pieces, b"}\n"]

    def _refused(self, error: OSError) -> None:
        metrics.SNAPSHOT_WRITES.labels("failed").inc()
        self._news.set()
        if not self._failing:
            log.warning("fleet_snapshot_not_written", path=str(self._path), reason=error.strerror or str(error))
        self._failing = True


def _replace(path: Path, pieces: list[bytes]) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
