"""The demo's manifests: templates beside this file with `${NAME}` where this machine's paths and digests go."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from string import Template
from urllib.parse import quote

from sheaf_crds.digest import directory_digest

from sheaf.demo.recipe import DemoError, key_of

TEMPLATES_DIR = Path(__file__).with_name("templates")


def render(templates: Path, sources: Mapping[str, Path], adapters: Mapping[str, Path]) -> dict[str, str]:
    """Manifest text by file name. `${PIRATE}` is the folder of the adapter pirate, `${PIRATE_DIGEST}` its digest."""
    values = {name: quote(str(path)) for name, path in sources.items()}
    for name, folder in adapters.items():
        values[name.upper()] = quote(str(folder))
        values[f"{name.upper()}_DIGEST"] = directory_digest(folder)
    found = {path.name: fill(path, values) for path in sorted(templates.glob("*.yaml"))}
    if not found:
        raise DemoError(f"{templates} holds no manifests")
    return found


def fill(path: Path, values: Mapping[str, str]) -> str:
    """One template with every placeholder filled in."""
    try:
        return Template(path.read_text(encoding="utf-8")).substitute(values)
    except (KeyError, ValueError) as error:
        known = ", ".join(sorted(values))
        raise DemoError(f"{path}: bad placeholder {error}; known are {known}") from error


def write(parent: Path, manifests: Mapping[str, str]) -> Path:
    """A folder of exactly these files, under a name that follows from them. What was edited there is put back."""
    folder = parent / key_of(dict(manifests))
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in manifests:
            path.unlink()
    for name, text in manifests.items():
        write_file(folder / name, text)
    return folder


def write_file(path: Path, text: str) -> None:
    """Replace a file at once."""
    handle, draft = tempfile.mkstemp(prefix=".", dir=path.parent.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(draft).chmod(0o644)
    Path(draft).replace(path)
