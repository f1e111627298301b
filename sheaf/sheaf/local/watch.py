"""Tells when manifest files may have changed: file notifications, and a look every few seconds in case none comes."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import watchfiles
from sheaf_operator.cluster.patience import happens

from sheaf.local.manifests import find_files

LOOK_EVERY = 3.0
DEBOUNCE_MS = 150
STEP_MS = 30

Signature = dict[Path, tuple[int, int, int]]


def signature(paths: Sequence[Path]) -> Signature:
    """What identifies the content of the files at the paths without reading them."""
    found: Signature = {}
    for file in find_files(paths):
        try:
            stat = file.stat()
        except OSError:
            continue
        found[file] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return found


class ManifestWatch:
    """Watches files and folders. Create it before the first reading, so that no change falls between the two."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._seen = signature(paths)
        self._stirred = asyncio.Event()

    async def changed(self) -> None:
        """Return when the files differ from what they were at the last return."""
        with self._notifications():
            while (now := signature(self._paths)) == self._seen:
                await self._stir()
        self._seen = now

    async def _stir(self) -> None:
        self._stirred.clear()
        await happens(self._stirred, LOOK_EVERY)

    @contextmanager
    def _notifications(self) -> Iterator[None]:
        folders = [path for path in self._paths if path.is_dir()]
        parents = {path.absolute().parent for path in self._paths if not path.is_dir()}
        tasks = [
            asyncio.create_task(self._listen(found, deep=deep))
            for found, deep in ((folders, True), ([path for path in parents if path.is_dir()], False))
            if found
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    async def _listen(self, paths: Sequence[Path], *, deep: bool) -> None:
        """Without notifications (no watches left, an odd file system) the regular look must do."""
        stop = asyncio.Event()
        try:
            async for _ in watchfiles.awatch(
                *paths,
                watch_filter=None,
                debounce=DEBOUNCE_MS,
                step=STEP_MS,
                stop_event=stop,
                recursive=deep,
                rust_timeout=1000,
            ):
                self._stirred.set()
        except OSError:
            return
        finally:
            stop.set()
