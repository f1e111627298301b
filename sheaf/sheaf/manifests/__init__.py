"""Reading manifests from disk; what they say is decided in `sheaf_crds.manifests`.

    manifests = load([Path("examples")])
    manifests.objects, manifests.problems

A folder is searched through for `*.yaml`, `*.yml` and `*.json`, hidden ones left out; a file is read whatever its name.
"""

import zoneinfo
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

from sheaf_crds.manifests import DOCUMENT, ManifestFile, Manifests, Problem, Surroundings, parse
from sheaf_crds.yaml_tree import MAX_BYTES

SUFFIXES = frozenset((".yaml", ".yml", ".json"))
MAX_FILES = 10_000


def load(paths: Sequence[Path]) -> Manifests:
    """Everything that the files and folders declare, with every problem; a folder's files in order of their names."""
    found = list(islice(dict.fromkeys(manifest_files(paths)), MAX_FILES + 1))
    outcomes = [_read(path) for path in found[:MAX_FILES]]
    problems = [outcome for outcome in outcomes if isinstance(outcome, Problem)]
    if len(found) > MAX_FILES:
        problems.append(_problem(found[-1], f"there are more than {MAX_FILES} files", "name fewer files or folders"))
    parsed = parse((outcome for outcome in outcomes if isinstance(outcome, ManifestFile)), SURROUNDINGS)
    return Manifests(parsed.objects, (*problems, *parsed.problems))


def manifest_files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files that these paths mean; a path that is no folder stands for itself, whether it is there or not."""
    for path in paths:
        below = sorted(file for file in path.rglob("*") if _is_manifest(file, path)) if path.is_dir() else []
        yield from below or (path,)


def _is_manifest(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix in SUFFIXES and not hidden and file.is_file()


def _problem(path: Path, what: str, mend: str) -> Problem:
    return Problem(ascii(str(path))[1:-1], 1, DOCUMENT, what, mend)


def _read(path: Path) -> ManifestFile | Problem:
    """The file, one byte more than may be at most, or why it cannot be read."""
    if path.is_dir():
        return _problem(
            path, "no manifest is in this folder", f"put files there that end in {', '.join(sorted(SUFFIXES))}"
        )
    if path.exists() and not path.is_file():
        return _problem(path, "this is not a regular file", "name a file or a folder")
    try:
        with path.open("rb") as file:
            return ManifestFile(ascii(str(path))[1:-1], file.read(MAX_BYTES + 1))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "the name is not one of a file"
        return _problem(path, f"cannot be read: {why}", "correct the path or its permissions")


def source_problem(path: PurePosixPath) -> str:
    """Why a model or adapter cannot be at that absolute path, or nothing."""
    try:
        return "" if Path(path).is_dir() else f"there is no folder {path}"
    except (OSError, ValueError) as error:
        return f"the folder cannot be read: {getattr(error, 'strerror', None) or 'the path is none'}"


def time_zone_problem(name: str) -> str:
    """Why that is no time zone here, or nothing."""
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, OSError, ValueError):
        return f"there is no time zone {name}"
    return ""


SURROUNDINGS = Surroundings(source_problem, time_zone_problem)
