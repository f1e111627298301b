"""The structural OpenAPI v3 schema of each kind, made from its pydantic type, and the CustomResourceDefinition of it.

Kubernetes takes only structural schemas: every node has one type, and `$ref`, `anyOf`, `oneOf` and titles are gone.
 An optional field (`T | None`) is a field that may be left out: the API server drops an explicit null before it
looks further. `status` carries no defaults, because only the operator writes it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from sheaf_crds.base import DURATION_PATTERN, GROUP, SIZE_PATTERN, VERSION, format_duration, format_size
from sheaf_crds.meta import Column, KubeObject
from sheaf_crds.rules import Rule, rules_at

Schema: TypeAlias = dict[str, Any]

_KEPT = ("pattern", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "enum")
_INT32_MAX = 2**31 - 1


_FORMATS: dict[str, Callable[[Any], str]] = {DURATION_PATTERN: format_duration, SIZE_PATTERN: format_size}


def _wire_default(value: object, pattern: str) -> object:
    """A default as a user would write it, whole: the API server judges a default by the rules before it fills it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    if pattern in _FORMATS:
        return _FORMATS[pattern](value)
    return list(value) if isinstance(value, tuple) else value


class _Generator(GenerateJsonSchema):
    """Pydantic's JSON schema with every default in its wire form, those from a factory too."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """The schema of a field that has a default; None is no default, only a field that may be left out."""
        node = self.generate_inner(schema["schema"])
        factory: Any = schema.get("default_factory")
        value = factory() if factory else schema["default"]
        return node if value is None else {**node, "default": _wire_default(value, node.get("pattern", ""))}


def _resolve(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """The node with its reference inlined and the null of an optional field taken out; what stands beside it wins."""
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        return _resolve(target | {key: value for key, value in node.items() if key != "$ref"}, definitions)
    if "anyOf" in node:
        (target,) = (choice for choice in node["anyOf"] if choice != {"type": "null"})
        beside = {key: value for key, value in node.items() if key != "anyOf"}
        return _resolve(target | beside, definitions)
    return node


def _number_format(node: Schema) -> Schema:
    if node["type"] == "number":
        return {"format": "double"}
    return {"format": "int32" if node.get("maximum", _INT32_MAX + 1) <= _INT32_MAX else "int64"}


def _scalar(node: Schema) -> Schema:
    structural = {"type": node["type"]} | {key: node[key] for key in _KEPT if key in node}
    if node.get("format") == "date-time":
        structural["format"] = "date-time"
    if "exclusiveMinimum" in node:
        structural |= {"minimum": node["exclusiveMinimum"], "exclusiveMinimum": True}
    if node["type"] in {"integer", "number"} and "enum" not in node:
        structural |= _number_format(node)
    return structural


def _array(node: Schema, convert: Callable[[Schema], Schema]) -> Schema:
    structural = {"type": "array", "items": convert(node["items"]), "maxItems": node["maxItems"]}
    if "listMapKey" in node:
        structural |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [node["listMapKey"]]}
    else:
        structural["x-kubernetes-list-type"] = "set" if node.get("listSet") else "atomic"
    return structural


def _object(node: Schema, convert: Callable[[Schema], Schema]) -> Schema:
    if "properties" not in node:
        values = convert(node["additionalProperties"])
        return {"type": "object", "additionalProperties": values, "maxProperties": node["maxProperties"]}
    structural: Schema = {"type": "object", "properties": {k: convert(v) for k, v in node["properties"].items()}}
    if node.get("required"):
        structural["required"] = sorted(node["required"])
    return structural


def structural(schema: Schema) -> Schema:
    """The structural form of a JSON schema as pydantic writes it."""
    definitions = schema.get("$defs", {})

    def convert(reference: Schema) -> Schema:
        node = _resolve(reference, definitions)
        shapes = {"object": _object, "array": _array}
        shape = shapes.get(node["type"])
        result = shape(node, convert) if shape else _scalar(node)
        beside = {key: node[key] for key in ("description", "default") if key in node}
        return beside | result

    return convert(schema)


def _without_defaults(node: Schema) -> Schema:
    result = {key: value for key, value in node.items() if key != "default"}
    if "properties" in result:
        result["properties"] = {name: _without_defaults(child) for name, child in result["properties"].items()}
    if "items" in result:
        result["items"] = _without_defaults(result["items"])
    return result


def _validation(rule: Rule) -> Schema:
    place = {"fieldPath": f".{rule.field}"} if rule.field and rule.path else {}
    return {"rule": rule.cel, "message": rule.message, "reason": "FieldValueInvalid"} | place


def _with_rules(node: Schema, kind: str, path: tuple[str, ...]) -> Schema:
    """The schema with the rules of that kind at every node where they belong; `*` in a path is every item."""
    result = dict(node)
    if "properties" in node:
        children = node["properties"].items()
        result["properties"] = {name: _with_rules(child, kind, (*path, name)) for name, child in children}
    if "items" in node:
        result["items"] = _with_rules(node["items"], kind, (*path, "*"))
    validations = [_validation(rule) for rule in rules_at(kind, path)]
    return result | ({"x-kubernetes-validations": validations} if validations else {})


_TYPE_META: Schema = {
    "apiVersion": {"type": "string", "description": f"Version of the schema of this object: {GROUP}/{VERSION}."},
    "kind": {"type": "string", "description": "Kind of the object."},
    "metadata": {"type": "object"},
}


@cache
def structural_schema(kind: type[KubeObject]) -> Schema:
    """The structural schema of a kind, rules included; treat it as read-only."""
    written = kind.model_json_schema(by_alias=True, schema_generator=_Generator)
    own = {name: node for name, node in written["properties"].items() if name not in _TYPE_META}
    required = [name for name in written["required"] if name in own]
    whole = structural({**written, "properties": own, "required": required})
    properties = _TYPE_META | whole["properties"]
    properties["status"] = _without_defaults(properties["status"])
    return _with_rules({**whole, "properties": properties}, kind.__name__, ())


def _column(column: Column) -> Schema:
    shown = {"name": column.name, "type": column.type, "jsonPath": column.path}
    return shown | ({"priority": 1} if column.wide else {})


def _subresources(kind: type[KubeObject]) -> Schema:
    scale = {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }
    return {"status": {}} | ({"scale": scale} if kind.SCALES else {})


def custom_resource_definition(kind: type[KubeObject]) -> Schema:
    """The CustomResourceDefinition of a kind, as `kubectl apply` takes it."""
    name = kind.__name__
    names = {
        "kind": name,
        "listKind": f"{name}List",
        "plural": kind.PLURAL,
        "singular": name.lower(),
        "shortNames": [kind.SHORT],
        "categories": ["sheaf"],
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [_column(column) for column in kind.COLUMNS],
        "subresources": _subresources(kind),
        "schema": {"openAPIV3Schema": structural_schema(kind)},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.PLURAL}.{GROUP}"},
        "spec": {"group": GROUP, "names": names, "scope": "Namespaced", "versions": [version]},
    }
