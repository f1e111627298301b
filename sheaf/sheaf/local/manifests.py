"""Manifest files: which there are, what they declare, and what is wrong with them."""

import zoneinfo
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from sheaf_crds import KubeObject
from sheaf_crds.manifests import ManifestFile, Surroundings, findings, parse, to_object
from sheaf_crds.yaml_tree import YamlProblem, documents

SUFFIXES = (".yaml", ".yml", ".json")
MOST_FILES = 10_000
READ_LIMIT = 4 * 2**20


class NoManifestsError(Exception):
    """The paths hold no manifests; says which."""


@dataclass(frozen=True, slots=True)
class FileContent:
    """The objects of one manifest file that are right by themselves; `broken` where something else stands in it too."""

    objects: tuple[KubeObject, ...] = ()
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """What all files say, and a line for everything that is wrong with them."""

    files: Mapping[Path, FileContent]
    problems: tuple[str, ...] = ()


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The manifest files at the paths: files as they are named, folders with everything below, hidden ones left out."""
    found = {file for path in paths for file in (_below(path) if path.is_dir() else [path])}
    return sorted(found)[:MOST_FILES]


def require_files(paths: Sequence[Path]) -> list[Path]:
    """The manifest files at the paths; NoManifestsError where a path is missing or holds none."""
    for path in paths:
        if not path.exists():
            raise NoManifestsError(f"{path}: no such file or folder; name the manifests to serve")
        if not find_files([path]):
            raise NoManifestsError(f"{path}: holds no manifest ({', '.join('*' + suffix for suffix in SUFFIXES)})")
    return find_files(paths)


def read_files(files: Iterable[Path]) -> Reading:
    """What the files declare now; a file that is gone by now is left out."""
    texts: list[tuple[Path, ManifestFile]] = []
    contents: dict[Path, FileContent] = {}
    unreadable: list[str] = []
    for path in files:
        try:
            text = ManifestFile(str(path), _read(path))
        except FileNotFoundError:
            continue
        except OSError as error:
            unreadable.append(f"{path}:1: (document): cannot be read: {error.strerror}; make it readable or remove it")
            contents[path] = FileContent(broken=True)
            continue
        texts.append((path, text))
        contents[path] = _content(text)
    problems = parse((text for _, text in texts), Surroundings(source_problem, time_zone_problem)).problems
    return Reading(contents, (*unreadable, *map(str, problems)))


def source_problem(path: PurePosixPath) -> str:
    """Why a file:// source cannot be served from this machine; empty where it can."""
    return "" if Path(unquote(str(path))).is_dir() else f"there is no folder {path}"


def time_zone_problem(name: str) -> str:
    """Why that is no time zone; empty where it is one."""
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return f"there is no time zone {name!r}"
    return ""


def _below(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    return [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _read(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(READ_LIMIT)


def _content(file: ManifestFile) -> FileContent:
    objects: list[KubeObject] = []
    broken = False
    try:
        for node in documents(file.content):
            tree = node.plain()
            wrong = bool(findings(tree))
            broken = broken or wrong
            if isinstance(tree, dict) and not wrong:
                objects.append(to_object(tree))
    except YamlProblem:
        broken = True
    return FileContent(tuple(objects), broken)
