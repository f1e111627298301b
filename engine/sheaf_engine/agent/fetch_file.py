"""file:// sources: a folder on this machine, inside one of the allowed roots.

The folder is opened once; its real path is read back from the open descriptor, and files are opened relative to it
without following links, so that nothing can be swapped between the check and the copy. Adapters are copied, so that a
later change of the folder cannot slip into what was checked.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sheaf_engine.agent.errors import AdapterError, Reason
from sheaf_engine.agent.layout import MOST_FILES, Layout, RemoteFile, check_total
from sheaf_engine.agent.sources import FileSource
from sheaf_engine.agent.transfer import CHUNK, Budget, Outside, write


def fetch(source: FileSource, target: Path, layout: Layout, outside: Outside, budget: Budget) -> None:
    """Copy the files of the folder into `target`."""
    with _opened(Path(source.path), outside.file_roots) as folder:
        chosen = layout.choose(_listing(folder, source))
        check_total(chosen, budget.limit)
        for file in chosen:
            write(_read(folder, file.path), target / file.path, budget)


def resolve_folder(source: FileSource, outside: Outside) -> Path:
    """The real path of the folder, if it lies inside an allowed root."""
    with _opened(Path(source.path), outside.file_roots) as folder:
        return _real(folder)


@contextmanager
def _opened(path: Path, roots: tuple[Path, ...]) -> Iterator[int]:
    _check_root(Path(os.path.realpath(path)), path, roots)
    try:
        folder = os.open(os.path.realpath(path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except NotADirectoryError as error:
        raise AdapterError(
            Reason.SOURCE_NOT_FOUND, f"{path} is a file; the source is the folder that holds it"
        ) from error
    except PermissionError as error:
        raise AdapterError(Reason.SOURCE_DENIED, f"{path} may not be read by the agent") from error
    except OSError as error:
        raise AdapterError(Reason.SOURCE_NOT_FOUND, f"{path} cannot be opened: {error.strerror}") from error
    try:
        _check_root(_real(folder), path, roots)
        yield folder
    finally:
        os.close(folder)


def _real(folder: int) -> Path:
    return Path(f"/proc/self/fd/{folder}").readlink()


def _check_root(real: Path, path: Path, roots: tuple[Path, ...]) -> None:
    if not any(real.is_relative_to(os.path.realpath(root)) for root in roots):
        allowed = ", ".join(str(root) for root in roots) or "none"
        raise AdapterError(
            Reason.SOURCE_REFUSED, f"{path} is outside of the folders that file:// sources may use ({allowed})"
        )


def _listing(folder: int, source: FileSource) -> list[RemoteFile]:
    with os.scandir(folder) as entries:
        found = [RemoteFile(entry.name, entry.stat(follow_symlinks=False).st_size) for entry in entries]
    if len(found) > MOST_FILES:
        raise AdapterError(Reason.SOURCE_REFUSED, f"{source.path} has more than {MOST_FILES} entries")
    return found


def _read(folder: int, name: str) -> Iterator[bytes]:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        what = "is a symbolic link; put the real file there" if error.errno == errno.ELOOP else f"{error.strerror}"
        raise AdapterError(Reason.NOT_A_REGULAR_FILE, f"{name}: {what}") from error
    try:
        _check_regular(descriptor, name)
        while chunk := os.read(descriptor, CHUNK):
            yield chunk
    finally:
        os.close(descriptor)


def _check_regular(descriptor: int, name: str) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise AdapterError(Reason.NOT_A_REGULAR_FILE, f"{name} is not a regular file")
