"""Reading Kubernetes' JSON without trusting it: what is missing or of another type is empty."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any


def section(value: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """The object at that path; empty where there is none."""
    found: Any = value
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def items(value: Mapping[str, Any], *path: str) -> list[Mapping[str, Any]]:
    """The objects in the list at that path; empty where there is none."""
    found = section(value, *path[:-1]).get(path[-1])
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []


def text(value: Mapping[str, Any], name: str) -> str:
    """The text of that name; empty where there is none."""
    found = value.get(name)
    return found if isinstance(found, str) else ""


def count(value: Mapping[str, Any], name: str) -> int:
    """The whole number of that name; 0 where there is none."""
    found = value.get(name)
    return found if isinstance(found, int) else 0


def parse_time(value: object) -> float:
    """Unix seconds of an RFC 3339 time; 0 where it is none."""
    if not isinstance(value, str):
        return 0.0
    try:
        return datetime.fromisoformat(value).timestamp()
    except ValueError:
        return 0.0
