"""The generated CRDs are structural, documented in every field, bounded, and default as the Python types do."""

from collections.abc import Iterator
from typing import Any

import pytest
from sheaf_crds import KINDS
from sheaf_crds.meta import KubeObject
from sheaf_crds.schema import custom_resource_definition, structural_schema
from sheaf_crds.structure import defaulted, misfits

ALLOWED = {
    "type", "format", "description", "default", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum",
    "exclusiveMinimum", "items", "maxItems", "properties", "additionalProperties", "maxProperties", "required",
    "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations",
}  # fmt: skip
SMALLEST: dict[str, dict[str, Any]] = {
    "Model": {"source": "hf://org/name"},
    "Adapter": {"modelRef": {"name": "base"}, "source": "hf://org/lora"},
    "SLO": {},
    "AutoscalingPolicy": {"maxReplicas": 8},
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for step in ("items", "additionalProperties"):
        if step in schema:
            yield from nodes(schema[step], f"{path}.{step}")


@each_kind
def test_every_node_is_structural(kind: type[KubeObject]) -> None:
    for path, node in nodes(structural_schema(kind)):
        assert set(node) <= ALLOWED, path
        assert isinstance(node["type"], str), path
        assert ("properties" in node) + ("additionalProperties" in node) <= 1, path
        assert set(node.get("required", ())) <= set(node.get("properties", ())), path


@each_kind
def test_every_field_explains_itself(kind: type[KubeObject]) -> None:
    fields = [
        (f"{path}.{name}", child)
        for path, node in nodes(structural_schema(kind))
        for name, child in node.get("properties", {}).items()
    ]
    assert [path for path, child in fields if not child.get("description") and path != ".metadata"] == []


@each_kind
def test_every_list_map_and_text_of_a_spec_is_bounded(kind: type[KubeObject]) -> None:
    bound = {"array": "maxItems", "string": "maxLength"}
    for path, node in nodes(structural_schema(kind)["properties"]["spec"]):
        assert node["type"] not in bound or bound[node["type"]] in node or "enum" in node, path
        assert "additionalProperties" not in node or "maxProperties" in node, path
        assert node["type"] != "integer" or "maximum" in node or "enum" in node, path


@each_kind
def test_patterns_are_anchored_at_both_ends(kind: type[KubeObject]) -> None:
    patterns = [node["pattern"] for _, node in nodes(structural_schema(kind)) if "pattern" in node]
    assert [pattern for pattern in patterns if not (pattern.startswith("^") and pattern.endswith("$"))] == []


@each_kind
def test_the_keys_of_a_map_like_list_are_required(kind: type[KubeObject]) -> None:
    for path, node in nodes(structural_schema(kind)):
        assert set(node.get("x-kubernetes-list-map-keys", ())) <= set(node.get("items", {}).get("required", ())), path


@each_kind
def test_every_default_fits_its_own_schema(kind: type[KubeObject]) -> None:
    for path, node in nodes(structural_schema(kind)):
        assert "default" not in node or list(misfits(node, node["default"])) == [], path


@each_kind
def test_the_status_has_no_defaults(kind: type[KubeObject]) -> None:
    assert [path for path, node in nodes(structural_schema(kind)["properties"]["status"]) if "default" in node] == []


@each_kind
def test_the_defaults_of_the_crd_are_those_of_the_types(kind: type[KubeObject]) -> None:
    tree = {"metadata": {"name": "x"}, "spec": SMALLEST[kind.__name__]}
    by_types = kind.model_validate(tree).to_wire()["spec"]
    assert defaulted(structural_schema(kind)["properties"]["spec"], SMALLEST[kind.__name__]) == by_types


@each_kind
def test_a_field_given_in_part_keeps_the_defaults_of_the_rest(kind: type[KubeObject]) -> None:
    spec = structural_schema(kind)["properties"]["spec"]
    parts = [name for name, node in spec["properties"].items() if node["type"] == "object" and node.get("default")]
    for name in parts:
        whole = defaulted(spec, SMALLEST[kind.__name__] | {name: {}})
        by_types = kind.model_validate({"metadata": {"name": "x"}, "spec": SMALLEST[kind.__name__] | {name: {}}})
        assert whole == by_types.to_wire()["spec"], name


@each_kind
def test_kubectl_knows_the_names_and_columns(kind: type[KubeObject]) -> None:
    crd = custom_resource_definition(kind)
    names, version = crd["spec"]["names"], crd["spec"]["versions"][0]
    assert crd["metadata"]["name"] == f"{kind.PLURAL}.sheaf.dev"
    assert (names["shortNames"], names["categories"], names["listKind"]) == (
        [kind.SHORT],
        ["sheaf"],
        f"{kind.__name__}List",
    )
    columns = [column["name"] for column in version["additionalPrinterColumns"]]
    assert columns[:2] == ["Ready", "Reason"]
    assert columns[-1] == "Age"


@each_kind
def test_columns_show_fields_that_there_are(kind: type[KubeObject]) -> None:
    known = {path for path, _ in nodes(structural_schema(kind))} | {".metadata.creationTimestamp"}
    shown = [c.path for c in kind.COLUMNS if "conditions" not in c.path]
    assert [path for path in shown if path not in known] == []


def test_only_models_scale() -> None:
    scaling = {
        name: custom_resource_definition(kind)["spec"]["versions"][0]["subresources"].get("scale")
        for name, kind in KINDS.items()
    }
    assert scaling == {
        "Model": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"},
        "Adapter": None,
        "SLO": None,
        "AutoscalingPolicy": None,
    }  # fmt: skip
