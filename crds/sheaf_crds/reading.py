"""Objects as the API server holds them, read without the fields that this version does not know.

A manifest with an unknown field is refused, because it may be misspelt. What the API server hands out was checked by
the CRD: a field that is unknown here is one that a newer CRD has, perhaps filled in by its default on every object at
once. An older program goes on with the rest of the object.
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
