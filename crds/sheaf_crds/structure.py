"""Whether a tree fits a structural schema, said in words for people, and the tree with its defaults.

It answers as the API server does: unknown fields are refused, an explicit null counts as left out, list keys are
unique. The recursion follows the schema, so its depth is the schema's and not the user's.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache

from sheaf_crds.adapter import ADAPTER_SOURCE_PATTERN
from sheaf_crds.autoscaling import END_OF_WINDOW_PATTERN, TIME_OF_DAY_PATTERN, TIME_ZONE_PATTERN
from sheaf_crds.base import PATTERN_HINTS
from sheaf_crds.model import ACCELERATOR_PATTERN, ENV_PATTERN, MODEL_SOURCE_PATTERN, OPTIONAL_TEXT_PATTERN, TEXT_PATTERN
from sheaf_crds.rules import Finding, Path, Tree
from sheaf_crds.schema import Schema
from sheaf_crds.words import described, nearest

PATTERN_WORDS = PATTERN_HINTS | {
    MODEL_SOURCE_PATTERN: "write an address that begins with hf://, s3://, https://, pvc:// or file:///",
    ADAPTER_SOURCE_PATTERN: "write an address that begins with hf://, s3://, https:// or file:///",
    TEXT_PATTERN: "write at least one character and none that is NUL",
    OPTIONAL_TEXT_PATTERN: "remove the NUL character",
    ENV_PATTERN: "write letters, digits and '_', not beginning with a digit",
    ACCELERATOR_PATTERN: "write lower-case letters, digits, '-' and '.', such as nvidia-l4",
    TIME_OF_DAY_PATTERN: "write a time of day from 00:00 to 23:59",
    END_OF_WINDOW_PATTERN: "write a time of day from 00:00 to 24:00",
    TIME_ZONE_PATTERN: "write the name of an IANA time zone, such as UTC or Europe/Berlin",
}
_KNOWN_AS = {
    "object": "a mapping of fields",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a finite number",
}


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None:
        return ""
    return f" above {low:g} and at most {high:.0f}" if schema.get("exclusiveMinimum") else f" from {low} to {high}"


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.removeprefix("^").removesuffix("$"), re.ASCII)


def _wanted(schema: Schema, value: Tree) -> str:
    if "enum" in schema:
        return f"write one of {', '.join(str(value) for value in schema['enum'])}"
    if schema["type"] == "string":
        return _wanted_text(schema.get("pattern", "^.*$"), value)
    if schema["type"] == "array":
        return "write each item on a line of its own that begins with '- '"
    if schema["type"] == "object":
        return "write its fields indented below it, each as NAME: VALUE"
    return f"write {_KNOWN_AS[schema['type']]}{_range(schema)}"


def _wanted_text(pattern: str, value: Tree) -> str:
    if value is None or isinstance(value, (list, dict)):
        return "write text there, or remove it"
    return "put it in quotes to make it text" if _compiled(pattern).fullmatch(str(value)) else PATTERN_WORDS[pattern]


def _has_type(schema: Schema, value: Tree) -> bool:
    if schema["type"] in {"integer", "number"}:
        numbers = int if schema["type"] == "integer" else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, {"object": dict, "array": list, "string": str}[schema["type"]])


def misfits(schema: Schema, value: Tree, path: Path = ()) -> Iterator[Finding]:
    """Everything in a tree that does not fit the schema, depth first, in the order of the tree."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    if not _has_type(schema, value):
        yield Finding(path, f"is {described(value)}, not {_KNOWN_AS[schema['type']]}", _wanted(schema, value))
    elif "enum" in schema and value not in schema["enum"]:
        near = nearest(str(value), [str(choice) for choice in schema["enum"]])
        yield Finding(path, f"is {described(value)}", f"{near} {_wanted(schema, value)}".strip())
    else:
        yield from _INSIDE[schema["type"]](schema, value, path)


def _number(schema: Schema, value: float, path: Path) -> Iterator[Finding]:
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    if not low <= value <= high or (schema.get("exclusiveMinimum") and value == low):
        yield Finding(path, f"is {described(value)}, which is out of bounds", _wanted(schema, value))


def _string(schema: Schema, value: str, path: Path) -> Iterator[Finding]:
    longest = schema.get("maxLength", math.inf)
    if len(value) > longest:
        yield Finding(path, f"is {len(value)} characters long", f"write at most {longest}")
    elif len(value) < schema.get("minLength", 0):
        hint = PATTERN_WORDS.get(schema.get("pattern", ""), f"write at least {schema['minLength']} characters")
        yield Finding(path, f"is {described(value)}, which is too short", hint)
    elif "pattern" in schema and not _compiled(schema["pattern"]).fullmatch(value):
        yield Finding(path, f"is {described(value)}, which does not fit", PATTERN_WORDS[schema["pattern"]])


def _array(schema: Schema, value: list[Tree], path: Path) -> Iterator[Finding]:
    if len(value) > schema["maxItems"]:
        yield Finding(path, f"has {len(value)} items", f"write at most {schema['maxItems']}")
        return
    for index, item in enumerate(value):
        yield from misfits(schema["items"], item, (*path, index))
    yield from _repeated(schema, value, path)


def _key_of(schema: Schema, item: Tree) -> str | None:
    """What must differ between the items of a map-like or set-like list, or nothing where they may be alike."""
    keys = schema.get("x-kubernetes-list-map-keys")
    if keys and isinstance(item, dict):
        item = item.get(keys[0])
    return item if schema["x-kubernetes-list-type"] != "atomic" and isinstance(item, str) else None


def _repeated(schema: Schema, value: list[Tree], path: Path) -> Iterator[Finding]:
    seen: set[str] = set()
    place: Path = tuple(schema.get("x-kubernetes-list-map-keys", ()))
    for index, key in enumerate(_key_of(schema, item) for item in value):
        if key in seen:
            what = f"is {described(key)}, which stands above already"
            yield Finding((*path, index, *place), what, "remove one of them")
        elif key is not None:
            seen.add(key)


def _object(schema: Schema, value: dict[str, Tree], path: Path) -> Iterator[Finding]:
    if "additionalProperties" in schema:
        yield from _map(schema, value, path)
        return
    fields = schema.get("properties", {})
    for name, child in value.items():
        if name not in fields:
            yield Finding((*path, name), "is not a field", _known_fields(name, fields))
        elif child is not None:
            yield from misfits(fields[name], child, (*path, name))
    for name in schema.get("required", ()):
        if value.get(name) is None:
            yield Finding((*path, name), "is missing", _addition(name, fields[name]))


def _addition(name: str, schema: Schema) -> str:
    if "required" in schema:
        return f"add {name} with {' and '.join(schema['required'])}"
    return f"add it: {schema.get('description', _wanted(schema, None))}"


def _map(schema: Schema, value: dict[str, Tree], path: Path) -> Iterator[Finding]:
    if len(value) > schema["maxProperties"]:
        yield Finding(path, f"has {len(value)} entries", f"write at most {schema['maxProperties']}")
        return
    for name, child in value.items():
        yield from misfits(schema["additionalProperties"], child, (*path, name))


def _known_fields(name: str, fields: Iterable[str]) -> str:
    listed = ", ".join(fields)
    return nearest(name, fields) or (
        f"remove it, or write one of {listed}" if listed else "remove it: there are no fields here"
    )


_INSIDE: dict[str, Callable[[Schema, Tree, Path], Iterator[Finding]]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _number,
    "number": _number,
}


def defaulted(schema: Schema, value: Tree) -> Tree:
    """A tree that fits the schema, without nulls and with every default filled in; the one given is not changed."""
    if schema["type"] == "array":
        return [defaulted(schema["items"], item) for item in value]
    if schema["type"] == "number":
        return float(value)
    if schema["type"] != "object" or "properties" not in schema:
        return value
    given = {name: child for name, child in value.items() if child is not None}
    missing = {name: child["default"] for name, child in schema["properties"].items() if "default" in child}
    return {name: defaulted(schema["properties"][name], child) for name, child in (missing | given).items()}
