"""A file that others replace: its bytes at once, and again after every change, however the file system tells of it.

The directory is watched, so that atomic replacement and symbolic links that move (as Kubernetes mounts do)
are seen; where the file system tells nothing, the file is looked at every second.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from watchfiles import awatch

_LOOK_MS = 1000
_STEP_MS = 20
_DEBOUNCE_MS = 200

Signature = tuple[int, int, int]


async def contents(path: Path, max_bytes: int) -> AsyncIterator[bytes | OSError]:
    """The file's bytes now and after each change; an `OSError` where it cannot be read or is larger than
    `max_bytes`."""
    seen, found = await asyncio.to_thread(_read, path, max_bytes, None)
    yield found if found is not None else FileNotFoundError(f"{path} cannot be read")
    async for _ in _ticks(path.parent):
        seen, found = await asyncio.to_thread(_read, path, max_bytes, seen)
        if found is not None:
            yield found


def read(path: Path, max_bytes: int) -> bytes | OSError:
    """The file's bytes, or why they cannot be had."""
    _, found = _read(path, max_bytes, None)
    return found if found is not None else FileNotFoundError(f"{path} cannot be read")


async def _ticks(folder: Path) -> AsyncIterator[None]:
    while True:
        try:
            async for _ in awatch(
                folder,
                step=_STEP_MS,
                debounce=_DEBOUNCE_MS,
                rust_timeout=_LOOK_MS,
                yield_on_timeout=True,
                recursive=False,
            ):
                yield
        except (OSError, RuntimeError):
            await asyncio.sleep(_LOOK_MS / 1000.0)
            yield


def _read(path: Path, max_bytes: int, seen: Signature | None) -> tuple[Signature | None, bytes | OSError | None]:
    try:
        facts = path.stat()
        signature = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
        if signature == seen:
            return seen, None
        if facts.st_size > max_bytes:
            return signature, OSError(f"{path} is larger than {max_bytes} bytes")
        return signature, path.read_bytes()
    except OSError as error:
        return (None, None) if seen == _MISSING else (_MISSING, error)


_MISSING: Signature = (0, 0, 0)
