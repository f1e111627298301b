"""A tree fits the schema or is told, in words, where it does not."""

from typing import Any

import pytest
from sheaf_crds import KINDS
from sheaf_crds.schema import structural_schema
from sheaf_crds.structure import PATTERN_WORDS, defaulted, misfits
from sheaf_crds.words import described, nearest, shown

NUMBER = {"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 1}
TEXT = {"type": "string", "minLength": 2, "maxLength": 3}
MAP = {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 1}


def patterns(schema: dict[str, Any]) -> set[str]:
    inside = [*schema.get("properties", {}).values(), schema.get("items", {}), schema.get("additionalProperties", {})]
    own = {schema["pattern"]} if "pattern" in schema else set()
    return own.union(*(patterns(child) for child in inside if child)) if schema else own


@pytest.mark.parametrize("kind", KINDS)
def test_every_pattern_of_a_spec_is_said_in_words(kind: str) -> None:
    assert patterns(structural_schema(KINDS[kind])["properties"]["spec"]) <= set(PATTERN_WORDS)


@pytest.mark.parametrize(
    ("schema", "value", "message"),
    [
        (NUMBER, 0, "is the number 0, which is out of bounds; write a finite number above 0 and at most 1"),
        (NUMBER, 1.5, "is the number 1.5, which is out of bounds; write a finite number above 0 and at most 1"),
        (NUMBER, float("nan"), "is the number nan, not a finite number; write a finite number above 0 and at most 1"),
        ({"type": "integer"}, True, "is true, not a whole number; write a whole number"),
        (TEXT, "a", "is the text 'a', which is too short; write at least 2 characters"),
        (TEXT, "abcd", "is 4 characters long; write at most 3"),
        (TEXT, ["a"], "is a list, not text; write text there, or remove it"),
        (MAP, {"a": 1, "b": 2}, "has 2 entries; write at most 1"),
        ({"type": "object"}, {"a": 1}, "is not a field; remove it: there are no fields here"),
    ],
)
def test_what_does_not_fit_is_said_in_words(schema: dict[str, Any], value: object, message: str) -> None:
    assert [f"{finding.what}; {finding.mend}" for finding in misfits(schema, value)] == [message]


@pytest.mark.parametrize(
    ("schema", "value"), [(NUMBER, 1), (NUMBER, 0.1), (TEXT, "ab"), (MAP, {"a": 1}), ({"type": "integer"}, -5)]
)
def test_what_fits_is_not_mentioned(schema: dict[str, Any], value: object) -> None:
    assert list(misfits(schema, value)) == []


def test_defaults_fill_what_is_left_out_and_change_nothing_else() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "default": 1}, "b": {"type": "number"}}}
    given = {"a": None, "b": 2}
    assert defaulted(schema, given) == {"a": 1, "b": 2.0}
    assert given == {"a": None, "b": 2}


def test_values_are_shown_in_one_short_line() -> None:
    assert shown("a\nb") == "'a\\nb'"
    assert len(shown("x" * 1000)) == 60
    assert [described(value) for value in (None, False, 1, "x", [], {})] == [
        "empty", "false", "the number 1", "the text 'x'", "a list", "a mapping of fields",
    ]  # fmt: skip


def test_the_nearest_word_is_suggested_whatever_its_case() -> None:
    assert nearest("MODLE", ["Model", "SLO"]) == "did you mean Model?"
    assert nearest("zzz", ["Model", "SLO"]) == ""
