"""The cache of checked adapters: `ROOT/NAME/SHA256HEX/` with the two files, and `ROOT/NAME/SHA256HEX.json` about
them.

An entry appears by one rename after it was digested and inspected; half downloads live under `ROOT/.incoming` and
never survive. What is in use is held by a shared file lock, so that several agents may share one cache: the least
recently used entries that nobody holds go first when the bound in bytes is reached.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from pydantic import ValidationError
from sheaf_crds.agent_api import CatalogEntry
from sheaf_crds.base import ApiType, Digest, Name
from sheaf_crds.digest import directory_digest

from sheaf_engine.agent.errors import AdapterError, Reason
from sheaf_engine.agent.layout import CONFIG, WEIGHTS
from sheaf_engine.agent.replacing import replace_file
from sheaf_engine.agent.transfer import disk_error

INCOMING = ".incoming"


class Origin(ApiType):
    """What is kept beside a cached adapter."""

    name: Name
    source: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A cached adapter: the folder that the engine is given, and what it holds."""

    path: Path
    digest: str
    size: int


class Store:
    """The cache under one folder, bounded in bytes."""

    def __init__(self, root: Path, limit: int) -> None:
        self.root = root.resolve()
        self.limit = limit
        self._lock = Lock()
        self._held: dict[Path, int] = {}
        try:
            (self.root / INCOMING).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            disk_error(error, self.root)
        self._sweep()

    def path_of(self, name: str, digest: str) -> Path:
        """The folder of an adapter with that digest."""
        return self.root / name / digest.removeprefix("sha256:")

    def owns(self, path: Path) -> bool:
        """Whether a path that the engine names is one of this cache's entries."""
        return path.is_absolute() and path.parent.parent == self.root and path.parent.name != INCOMING

    @contextmanager
    def incoming(self, name: str) -> Iterator[Path]:
        """A fresh folder for one download; it is gone afterwards, whatever happened."""
        folder = self._fresh(name)
        lock = _locked(folder, fcntl.LOCK_SH)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _unlock(lock)

    def _fresh(self, name: str) -> Path:
        try:
            return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.root / INCOMING))
        except OSError as error:
            disk_error(error, self.root / INCOMING)

    def find(self, entry: CatalogEntry) -> Entry | None:
        """The newest cached adapter that the declaration fits: by digest where one is declared, otherwise by source."""
        fitting = [
            origin
            for origin in self._origins(entry.name)
            if (origin.digest == entry.digest if entry.digest else origin.source == entry.source)
        ]
        paths = [(self.path_of(o.name, o.digest), o) for o in fitting]
        there = [(_used(path), path, origin) for path, origin in paths if path.is_dir()]
        if not there:
            return None
        _, path, origin = max(there, key=lambda item: item[0])
        return Entry(path, origin.digest, origin.size)

    def sound(self, entry: Entry) -> bool:
        """Whether the files still are what their digest says; an entry that is not is removed."""
        with suppress(OSError):
            if directory_digest(entry.path) == entry.digest:
                return True
        self._evict(entry.path)
        return False

    def install(self, entry: CatalogEntry, folder: Path, digest: str) -> Entry:
        """Move a checked download to its place, making room for it; AdapterError(DiskFull) where there is none."""
        size = sum((folder / name).stat().st_size for name in (CONFIG, WEIGHTS))
        final = self.path_of(entry.name, digest)
        try:
            with self._lock:
                self._make_room(0 if final.is_dir() else size)
                final.parent.mkdir(exist_ok=True)
                origin = Origin(name=entry.name, source=entry.source, digest=digest, size=size)
                replace_file(final.with_suffix(".json"), origin.model_dump_json(by_alias=True).encode())
                _move(folder, final)
        except OSError as error:
            disk_error(error, final)
        return Entry(final, digest, size)

    def hold(self, path: Path) -> bool:
        """Keep an entry from being evicted, by this agent and by others; False where it is not there any more."""
        if path in self._held:
            return path.is_dir()
        lock = _locked(path.with_suffix(".json"), fcntl.LOCK_SH)
        if lock is None or not path.is_dir():
            _unlock(lock)
            return False
        self._held[path] = lock
        with suppress(OSError):
            os.utime(path.with_suffix(".json"))
        return True

    def release(self, path: Path) -> None:
        """Let an entry be evicted again."""
        _unlock(self._held.pop(path, None))

    def close(self) -> None:
        """Release everything."""
        for path in tuple(self._held):
            self.release(path)

    def used(self) -> int:
        """Bytes of all entries."""
        return sum(origin.size for origin in self._origins("*"))

    def _origins(self, name: str) -> Iterator[Origin]:
        for file in self.root.glob(f"{name}/*.json"):
            try:
                yield Origin.model_validate_json(file.read_bytes())
            except (OSError, ValidationError):
                continue

    def _make_room(self, size: int) -> None:
        if size > self.limit:
            raise AdapterError(
                Reason.SIZE_LIMIT_EXCEEDED, f"the adapter has {size} bytes, the whole cache may hold {self.limit}"
            )
        paths = [(self.path_of(origin.name, origin.digest), origin.size) for origin in self._origins("*")]
        free = self.limit - sum(one for _, one in paths)
        for path, one in sorted(paths, key=lambda item: _used(item[0])):
            if free >= size:
                return
            free += one if self._evict(path) else 0
        if free < size:
            raise AdapterError(
                Reason.DISK_FULL,
                f"the adapter cache of {self.limit} bytes is full of adapters in use; raise cacheLimit",
            )

    def _evict(self, path: Path) -> bool:
        lock = _locked(path.with_suffix(".json"), fcntl.LOCK_EX)
        if lock is None:
            return False
        with suppress(OSError):
            path.with_suffix(".json").unlink()
        shutil.rmtree(path, ignore_errors=True)
        _unlock(lock)
        return True

    def _sweep(self) -> None:
        for folder in (self.root / INCOMING).iterdir():
            lock = _locked(folder, fcntl.LOCK_EX)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                _unlock(lock)


def _used(path: Path) -> float:
    try:
        return path.with_suffix(".json").stat().st_mtime
    except OSError:
        return 0.0


def _move(folder: Path, final: Path) -> None:
    if final.is_dir():
        return
    fresh = folder / "checked"
    fresh.mkdir()
    for name in (CONFIG, WEIGHTS):
        (folder / name).rename(fresh / name)
    try:
        fresh.rename(final)
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
            raise


def _locked(path: Path, kind: int) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    if os.fstat(descriptor).st_nlink == 0:
        os.close(descriptor)
        return None
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
