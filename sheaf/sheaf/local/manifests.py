"""Manifest files: which there are, what they declare, and what is wrong with them, file by file."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import yaml
from pydantic import ValidationError
from sheaf_crds import KINDS

from sheaf.local.store import Declared, FileContent

SUFFIXES = (".yaml", ".yml", ".json")
MOST_FILES = 10_000
LARGEST_FILE = 2**20


class NoManifestsError(Exception):
    """The paths hold no manifests; says which."""


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The manifest files at the paths: files as they are named, folders with everything below, hidden ones left out."""
    found = {file for path in paths for file in ([path] if not path.is_dir() else _below(path))}
    return sorted(found)[:MOST_FILES]


def require_files(paths: Sequence[Path]) -> list[Path]:
    """The manifest files at the paths; NoManifestsError where a path is missing or holds none."""
    for path in paths:
        if not path.exists():
            raise NoManifestsError(f"{path}: no such file or folder; name the manifests to serve")
        if not find_files([path]):
            raise NoManifestsError(f"{path}: holds no manifest ({', '.join('*' + suffix for suffix in SUFFIXES)})")
    return find_files(paths)


def read_files(files: Iterable[Path]) -> dict[Path, FileContent]:
    """What each file declares; a file that is gone by now is left out."""
    contents = {file: _read(file) for file in files}
    return {file: content for file, content in contents.items() if content is not None}


def _below(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    return [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _read(file: Path) -> FileContent | None:
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        return FileContent(problems=(f"{file}: cannot be read: {error.strerror}",), broken=True)
    return _parse(file, data)


def _parse(file: Path, data: bytes) -> FileContent:
    try:
        documents = [document for document in yaml.safe_load_all(data) if document is not None]
        return FileContent(tuple(_object(document) for document in documents))
    except (yaml.YAMLError, ValidationError, ValueError) as error:
        return FileContent(problems=(f"{file}: {' '.join(str(error).split())}",), broken=True)


def _object(document: object) -> Declared:
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    return cast("Declared", KINDS[kind].model_validate(document))
