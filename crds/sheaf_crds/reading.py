"""Objects as the API server holds them, read without the fields that this version does not know.

A manifest with an unknown field is refused, because it may be misspelt. What the API server hands out was checked by
the CRD: a field that is unknown here is one that a newer CRD has, perhaps filled in by its default on every object at
once. An older program goes on with the rest of the object. Of a status, which nobody wrote by hand,
whatever can be read is kept.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

_Type = TypeVar("_Type", bound=BaseModel)
_Path = Sequence[int | str]


def read_known(kind: type[_Type], raw: Mapping[str, Any]) -> _Type:
    """The object with all of its fields that are known.

    Raises:
        pydantic.ValidationError: Something else is wrong with it.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        unknown = [one["loc"] for one in found if one["type"] == "extra_forbidden"]
        if not unknown:
            raise
    return kind.model_validate(_without(raw, unknown))


def readable_part(kind: type[BaseModel], raw: Any) -> Mapping[str, Any]:
    """What of an object can be read, `{}` where nothing can; `kind` has a default for each field.

    The smallest part that is wrong goes, and where a part cannot do without it, that part.
    """
    left = raw if isinstance(raw, Mapping) else {}
    while True:
        try:
            kind.model_validate(left)
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False, include_context=False)
        else:
            return left
        wrong = [_present(left, one["loc"]) for one in found]
        if not all(wrong):
            return {}
        left = _without(left, wrong)


def _present(raw: Any, path: _Path) -> _Path:
    """The part of a path that leads to something: what lacks a field is wrong where the field is not."""
    for depth, part in enumerate(path):
        there = part in raw if isinstance(raw, Mapping) else isinstance(raw, list) and part in range(len(raw))
        if not there:
            return path[:depth]
        raw = raw[part]
    return path


def _without(raw: Any, paths: Sequence[_Path]) -> Any:
    """A copy without the fields at these paths."""
    gone = {path[0] for path in paths if len(path) == 1}
    deeper: dict[int | str, list[_Path]] = {}
    for path in paths:
        if len(path) > 1:
            deeper.setdefault(path[0], []).append(path[1:])
    pairs = raw.items() if isinstance(raw, Mapping) else enumerate(raw)
    kept = {key: _without(value, deeper[key]) if key in deeper else value for key, value in pairs if key not in gone}
    return kept if isinstance(raw, Mapping) else list(kept.values())
