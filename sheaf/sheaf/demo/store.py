"""A cache of folders that are whole or not there.

A folder is built beside its place and renamed into it. Its inventory (names and sizes) tells on the next run whether
anything was lost since; a folder that is no longer whole is built again. Builders that died leave a folder that names
their process id, which the next run removes.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

INVENTORY = ".inventory.json"
PARTIAL = ".partial-"


def cache_dir() -> Path:
    """Where the demo keeps its assets."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "sheaf" / "demo"


def inventory(folder: Path) -> dict[str, int]:
    """Size in bytes of every file below a folder, by relative name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != INVENTORY)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def is_whole(folder: Path) -> bool:
    """Whether a folder holds everything that it held when it was built."""
    try:
        wanted = json.loads((folder / INVENTORY).read_text(encoding="utf-8"))
        return isinstance(wanted, dict) and all((folder / name).stat().st_size == wanted[name] for name in wanted)
    except (OSError, ValueError):
        return False


def provide(folder: Path, build: Callable[[Path], None]) -> Path:
    """The folder, built by `build(scratch)` unless it is whole already. Of two builders at once, one wins."""
    if is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder.parent)
    scratch = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{os.getpid()}-", dir=folder.parent))
    try:
        build(scratch)
        scratch.chmod(0o755)
        (scratch / INVENTORY).write_text(json.dumps(inventory(scratch)), encoding="utf-8")
        put(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def put(scratch: Path, folder: Path) -> None:
    """Rename a built folder into its place, where a broken one may stand or another builder's whole one."""
    if folder.exists() and not is_whole(folder):
        shutil.rmtree(folder)
    try:
        scratch.rename(folder)
    except OSError:
        if not is_whole(folder):
            raise


def remove_abandoned(parent: Path) -> None:
    """Remove what builders left that are no longer alive."""
    for path in parent.glob(f"{PARTIAL}*"):
        pid = path.name.removeprefix(PARTIAL).split("-", 1)[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)
