"""The declared objects and their statuses: what an API server is to a cluster, in memory.

A file that breaks while it is edited keeps what it declared before and does not declare now. An object keeps its UID
as long as it stays declared; its generation grows when its spec changes; its status belongs to the operator.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from sheaf_crds import SLO, Adapter, AutoscalingPolicy, KubeObject, Model
from sheaf_operator.planning import UpdateStatus

from sheaf.local.manifests import FileContent

Key = tuple[str, str]
Declared = Model | Adapter | SLO | AutoscalingPolicy
T = TypeVar("T", bound=KubeObject)


@dataclass
class Store:
    """Objects by kind and name, as the files say and the operator found."""

    files: dict[Path, dict[Key, Declared]] = field(default_factory=dict)
    objects: dict[Key, Declared] = field(default_factory=dict)

    def load(self, contents: Mapping[Path, FileContent], now: float) -> None:
        """Take what the files say now; of an object that is declared twice the first one counts.

        Args:
            contents: every manifest file that there is.
            now: Unix seconds.
        """
        self.files = {file: self._of_file(file, content) for file, content in contents.items()}
        declared: dict[Key, Declared] = {}
        for objects in self.files.values():
            for key, item in objects.items():
                declared.setdefault(key, item)
        self.objects = {key: _merge(self.objects.get(key), item, now) for key, item in declared.items()}

    def of(self, kind: type[T]) -> tuple[T, ...]:
        """All objects of a kind, by name."""
        found = (item for _, item in sorted(self.objects.items(), key=lambda entry: entry[0]))
        return tuple(item for item in found if isinstance(item, kind))

    def update_status(self, action: UpdateStatus) -> bool:
        """Store a status; False where the object is gone or another one by now."""
        item = self.objects.get((action.kind, action.name))
        if item is None or item.metadata.uid != action.uid:
            return False
        self.objects[action.kind, action.name] = item.model_copy(update={"status": action.status})
        return True

    def _of_file(self, file: Path, content: FileContent) -> dict[Key, Declared]:
        kept = self.files.get(file, {}) if content.broken else {}
        found: dict[Key, Declared] = {}
        for item in content.objects:
            found.setdefault((type(item).__name__, item.name), cast("Declared", item))
        return {**kept, **found}


def _merge(before: Declared | None, item: Declared, now: float) -> Declared:
    if before is None:
        created = datetime.fromtimestamp(int(now), UTC)
        return _stamped(item, uid=str(uuid.uuid4()), generation=1, creation_timestamp=created)
    old = before.metadata
    generation = old.generation + int(before.spec != item.spec)
    stamped = _stamped(item, uid=old.uid, generation=generation, creation_timestamp=old.creation_timestamp)
    return stamped.model_copy(update={"status": before.status})


def _stamped(item: Declared, **fields: Any) -> Declared:
    return item.model_copy(update={"metadata": item.metadata.model_copy(update=fields)})
