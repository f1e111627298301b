"""What an agent leaves in the folder that belongs to its pod, for the engine's preStop hook and for its own next life.

`drain.py` is the hook and `drain.json` its key; `catalog.json` is the catalog taken last, so that a new start of agent
or engine restores the pod's adapters although nobody is there to send the catalog again.
"""

import json
from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError
from sheaf_crds.agent_api import Catalog

from sheaf_engine.agent.errors import ConfigError
from sheaf_engine.agent.replacing import replace_file

HOOK = "drain.py"
KEY = "drain.json"
CATALOG = "catalog.json"
READABLE = 0o640


def write_hook(folder: Path, *, agent_url: str, engine_url: str, key: str) -> None:
    """Put the hook and its key there; ConfigError where the folder cannot be written."""
    source = files("sheaf_engine.agent").joinpath("drain_hook.py").read_bytes()
    facts = {"agentUrl": agent_url, "engineUrl": engine_url, "key": key}
    try:
        replace_file(folder / KEY, json.dumps(facts).encode(), READABLE)
        replace_file(folder / HOOK, source, READABLE)
    except OSError as error:
        raise ConfigError(f"runDir {folder} cannot be written: {error.strerror}") from error


class Shelf:
    """Keeps the catalog; without a folder it keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._file = folder / CATALOG if folder else None

    def kept(self) -> Catalog | None:
        """The catalog that was kept; None where there is none, or none that can be read."""
        if self._file is None:
            return None
        try:
            return Catalog.model_validate_json(self._file.read_bytes())
        except (OSError, ValidationError):
            return None

    def keep(self, catalog: Catalog) -> None:
        """Keep a catalog in place of the one before; an OSError leaves that one as it was."""
        if self._file is not None:
            replace_file(self._file, catalog.model_dump_json(by_alias=True).encode(), READABLE)
