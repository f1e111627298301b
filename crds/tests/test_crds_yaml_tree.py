"""Plain scalars mean what they mean to kubectl, and every value knows its line."""

from typing import Any

import pytest
import yaml
from sheaf_crds.yaml_tree import MAX_NODES, YamlProblem, documents, resolve


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("null", None), ("true", True), ("Yes", True), ("on", True), ("n", False), ("OFF", False),
        ("12", 12), ("-3", -3), ("+4", 4), ("1_000", 1000), ("0x1F", 31), ("0o17", 15), ("017", 15), ("0b11", 3), ("0", 0),
        ("08", 8.0), ("1.5", 1.5), (".5", 0.5), ("1e3", 1000.0), ("-.inf", float("-inf")), (".INF", float("inf")),
        ("10:30", "10:30"), ("2026-01-01", "2026-01-01"), ("1.2.3", "1.2.3"), ("-", "-"), ("5m", "5m"), ("0x", "0x"),
        ("9" * 400, float("inf")),
    ],
)  # fmt: skip
def test_a_plain_scalar_means_what_it_means_to_kubectl(text: str, value: object) -> None:
    assert resolve(text) == value
    assert type(resolve(text)) is type(value)


def test_no_number_is_no_number() -> None:
    assert str(resolve(".nan")) == "nan"


def plain(text: str) -> list[Any]:
    return [node.plain() for node in documents(text.encode())]


def test_quotes_make_text() -> None:
    assert plain("a: '1'\nb: \"true\"\nc: |\n  2\n") == [{"a": "1", "b": "true", "c": "2\n"}]


def test_names_of_fields_are_text_as_written() -> None:
    assert plain("1: x\ntrue: yy\n'': z\n'<<': w\n") == [{"1": "x", "true": "yy", "": "z", "<<": "w"}]


def test_an_alias_stands_for_its_anchor_within_one_document() -> None:
    assert plain("a: &x {b: 1}\nc: *x\n") == [{"a": {"b": 1}, "c": {"b": 1}}]
    with pytest.raises(YamlProblem, match="names no anchor"):
        plain("a: &x 1\n---\nb: *x\n")


def test_chained_aliases_do_not_hide_depth() -> None:
    chain = "\n".join(f"- &a{i} [[[[[[[[ *a{i - 1} ]]]]]]]]" for i in range(1, 9))
    with pytest.raises(YamlProblem, match="deeper"):
        plain(f"- &a0 x\n{chain}\n")


def test_every_value_knows_its_line_and_what_is_missing_has_the_line_above() -> None:
    (node,) = documents(b"# note\na:\n  b:\n    - x\n    -\n      c: 1\n")
    paths: list[tuple[Any, ...]] = [
        (),
        ("a",),
        ("a", "b", 0),
        ("a", "b", 1, "c"),
        ("a", "b", 7),
        ("a", "z"),
        ("a", "b", "c"),
    ]
    assert [node.line_of(path) for path in paths] == [2, 2, 4, 6, 3, 2, 3]


def test_the_number_of_values_is_bounded() -> None:
    with pytest.raises(YamlProblem, match=str(MAX_NODES)):
        plain("- &a [" + "0, " * 1000 + "]\n" + "- *a\n" * (MAX_NODES // 1000))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not YAML"), ('a: "\\ud800"', "not YAML|surrogate"), ("%YAML 9.0\n---\na", "not YAML"), ("a: !x 1", "tag"), ('a: "\\UFFFFFFFF"', "not YAML"), ("? [a]\n: 1", "name of a field"), ("~: 1", "name of a field")],
)  # fmt: skip
@pytest.mark.parametrize("loader", ["CSafeLoader", "none"])
def test_broken_text_is_refused_with_and_without_the_c_library(
    monkeypatch: pytest.MonkeyPatch, loader: str, text: str, message: str
) -> None:
    if loader == "none":
        monkeypatch.delattr(yaml, "CSafeLoader")
    with pytest.raises(YamlProblem, match=message):
        plain(text)
