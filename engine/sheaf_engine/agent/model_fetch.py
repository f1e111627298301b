"""Fetching a base model into a folder before the engine starts.

The folder is named after the source; it appears by one rename when everything is there, so a folder that exists is
complete. A file:// source is not copied.
"""

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sheaf_engine.agent.errors import AdapterError, Reason
from sheaf_engine.agent.fetch import fetch
from sheaf_engine.agent.fetch_file import resolve_folder
from sheaf_engine.agent.layout import MODEL, MODEL_CONFIG
from sheaf_engine.agent.sources import FileSource, parse_source
from sheaf_engine.agent.transfer import Budget, Outside, disk_error


def fetch_model(source: str, to: Path, outside: Outside, budget: Budget) -> tuple[Path, bool]:
    """The folder that holds the model, and whether it was fetched now; AdapterError says why there is none."""
    parsed = parse_source(source)
    if isinstance(parsed, FileSource):
        return _local(parsed, outside), False
    final = to / folder_name(source)
    try:
        to.mkdir(parents=True, exist_ok=True)
        with _alone(to / f".{final.name}.lock"):
            if final.is_dir():
                return final, False
            folder = to / f".incoming-{final.name}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                fetch(parsed, folder, MODEL, outside, budget)
                shutil.rmtree(folder / ".cache", ignore_errors=True)
                folder.chmod(0o755)
                folder.rename(final)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        disk_error(error, final)
    return final, True


def point(link: Path, folder: Path) -> None:
    """Make `link` lead to the folder, in place of what it led to before; AdapterError where it cannot be made."""
    draft = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        draft.unlink(missing_ok=True)
        draft.symlink_to(folder, target_is_directory=True)
        draft.replace(link)
    except OSError as error:
        disk_error(error, link)


def folder_name(source: str) -> str:
    """A readable and unambiguous folder name for a source."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", source.partition("://")[2]).strip("-.")[-80:]
    return f"{readable}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"


def _local(source: FileSource, outside: Outside) -> Path:
    folder = resolve_folder(source, outside)
    if not (folder / MODEL_CONFIG).is_file():
        raise AdapterError(Reason.FILES_MISSING, f"{source.path} has no {MODEL_CONFIG}; it is not a model's folder")
    return folder


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
