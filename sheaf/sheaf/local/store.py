"""The declared objects and their statuses: what an API server is to a cluster, in memory.

A file that breaks while it is edited keeps what it declared last. An object keeps its UID as long as it stays
declared; its generation grows when its spec changes; its status belongs to the operator.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sheaf_crds import SLO, Adapter, AutoscalingPolicy, KubeObject, Metadata, Model
from sheaf_operator.planning import UpdateStatus

Key = tuple[str, str]
Declared = Model | Adapter | SLO | AutoscalingPolicy
T = TypeVar("T", bound=KubeObject)


@dataclass(frozen=True, slots=True)
class FileContent:
    """What one manifest file declares; `broken` where it could not be read as a whole."""

    objects: tuple[Declared, ...] = ()
    problems: tuple[str, ...] = ()
    broken: bool = False


@dataclass
class Store:
    """Objects by kind and name, as the files say and the operator found."""

    files: dict[Path, tuple[Declared, ...]] = field(default_factory=dict)
    objects: dict[Key, Declared] = field(default_factory=dict)

    def load(self, contents: Mapping[Path, FileContent], now: float) -> tuple[str, ...]:
        """Take what the files say now; returns a line for each object that is declared twice.

        Args:
            contents: every manifest file that there is.
            now: Unix seconds.
        """
        self.files = {
            path: self.files.get(path, ()) if content.broken else content.objects for path, content in contents.items()
        }
        declared: dict[Key, tuple[Path, Declared]] = {}
        problems = []
        for path, item in ((path, item) for path in sorted(self.files) for item in self.files[path]):
            first = declared.setdefault((item.kind, item.name), (path, item))
            if first[1] is not item:
                problems.append(
                    f"{path}: {item.kind} {item.name} is declared in {first[0]} already; remove one of the two"
                )
        self.objects = {key: self._merge(self.objects.get(key), item, now) for key, (_, item) in declared.items()}
        return tuple(problems)

    def of(self, kind: type[T]) -> tuple[T, ...]:
        """All objects of a kind, by name."""
        found = (item for _, item in sorted(self.objects.items()))
        return tuple(item for item in found if isinstance(item, kind))

    def update_status(self, action: UpdateStatus) -> bool:
        """Store a status; False where the object is gone or another one by now."""
        item = self.objects.get((action.kind, action.name))
        if item is None or item.metadata.uid != action.uid:
            return False
        self.objects[action.kind, action.name] = item.model_copy(update={"status": action.status})
        return True

    def _merge(self, before: Declared | None, item: Declared, now: float) -> Declared:
        if before is None:
            created = datetime.fromtimestamp(int(now), UTC)
            given: dict[str, Any] = {"uid": str(uuid.uuid4()), "generation": 1, "creation_timestamp": created}
            return _with_metadata(item, **given)
        metadata = before.metadata
        generation = metadata.generation + (before.spec != item.spec)
        kept = {"uid": metadata.uid, "generation": generation, "creation_timestamp": metadata.creation_timestamp}
        return _with_metadata(item, **kept).model_copy(update={"status": before.status})


def _with_metadata(item: Declared, **fields: object) -> Declared:
    metadata: Metadata = item.metadata.model_copy(update=fields)
    return item.model_copy(update={"metadata": metadata})
