"""Reading the fleet file, once or whenever it changes; the last good snapshot stays in force when it cannot be
read."""

import asyncio
from pathlib import Path

import orjson
import structlog

from sheaf_gateway.fleet import metrics
from sheaf_gateway.fleet.snapshot import MAX_BYTES, FleetSnapshot, read_snapshot
from sheaf_gateway.fleet.store import FleetStore
from sheaf_gateway.fleet.watch import contents, read

log = structlog.get_logger(__name__)

_MAX_PROBLEMS_LOGGED = 10


async def follow(path: Path, store: FleetStore) -> None:
    """Feed every readable version of the file to the store, until cancelled."""
    async for found in contents(path, MAX_BYTES):
        await _take(path, found, store)


async def load(path: Path, store: FleetStore) -> bool:
    """Feed the file to the store if it is there and can be read; whether it was."""
    found = await asyncio.to_thread(read, path, MAX_BYTES)
    if isinstance(found, FileNotFoundError):
        log.info("no_fleet_snapshot", path=str(path))
        return False
    return await _take(path, found, store)


async def _take(path: Path, found: bytes | OSError, store: FleetStore) -> bool:
    try:
        snapshot, problems = await asyncio.to_thread(_parse, found)
    except (OSError, ValueError, TypeError) as error:
        metrics.SNAPSHOT_REFUSED.inc()
        kept = store.snapshot.version if store.snapshot is not None else None
        log.warning("fleet_snapshot_refused", path=str(path), reason=str(error), kept_version=kept)
        return False
    metrics.SNAPSHOT_PROBLEMS.set(len(problems))
    for problem in problems[:_MAX_PROBLEMS_LOGGED]:
        log.warning("fleet_part_left_out", path=str(path), reason=problem)
    store.apply_snapshot(snapshot)
    return True


def _parse(found: bytes | OSError) -> tuple[FleetSnapshot, tuple[str, ...]]:
    if isinstance(found, OSError):
        raise found
    return read_snapshot(orjson.loads(found))
