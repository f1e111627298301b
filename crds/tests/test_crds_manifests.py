"""Manifests give objects and, for every mistake, one line with file, line, field and remedy; nothing makes the reader fail."""

from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_crds.manifests import ManifestFile, Surroundings, field_name, findings, parse
from sheaf_crds.yaml_tree import MAX_BYTES

BROKEN = sorted((Path(__file__).parent / "broken_manifests").glob("*.yaml"))
EXPECT = "# expect: "
MODEL = "apiVersion: sheaf.dev/v1alpha1\nkind: Model\nmetadata: {name: %s}\nspec:\n  source: %s\n"
SOURCE = "hf://org/name"


def missing_folder(path: PurePosixPath) -> str:
    return f"there is no folder {path}"


def unknown_zone(name: str) -> str:
    return f"there is no time zone {name}" if name != "UTC" else ""


ELSEWHERE = Surroundings(missing_folder, unknown_zone)


def lines(text: str | bytes, name: str = "x") -> list[str]:
    content = text if isinstance(text, bytes) else text.encode()
    return [str(problem) for problem in parse([ManifestFile(name, content)], ELSEWHERE).problems]


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_broken_manifest_gets_exactly_its_lines(path: Path) -> None:
    text = path.read_text()
    expected = [line.removeprefix(EXPECT) for line in text.splitlines() if line.startswith(EXPECT)]
    assert expected
    assert lines(text) == [f"x:{line}" for line in expected]


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(BROKEN) >= 40


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"a: 1\nb: \xff\n", "x:2: (document): the file is not UTF-8 text; save it as UTF-8"),
        (
            b"a: 1\nb: \x07\n",
            "x:2: (document): there is an unprintable character ('\\x07'); remove it or write it escaped",
        ),
        (b"#" * (MAX_BYTES + 1), "x:1: (document): the file is larger than 1 MiB; split it into several files"),
    ],
)
def test_what_is_no_text_is_refused(content: bytes, line: str) -> None:
    assert lines(content) == [line]


def test_what_a_user_needs_to_write_is_short() -> None:
    manifests = parse([ManifestFile("x", (Path(__file__).parent / "short.yaml").read_bytes())])
    assert manifests.problems == ()
    assert [item.name for item in manifests.objects] == ["smollm2", "pirate", "chat", "steady"]


def test_an_empty_file_declares_nothing() -> None:
    assert parse([ManifestFile("x", b""), ManifestFile("y", b"---\n# nothing\n---\n")]) == parse([])


def test_a_byte_order_mark_is_no_mistake() -> None:
    assert lines(b"\xef\xbb\xbf" + (MODEL % ("base", SOURCE)).encode()) == []


def test_objects_before_a_syntax_error_are_kept() -> None:
    text = MODEL % ("base", SOURCE) + "---\n" + MODEL % ("other", "[")
    manifests = parse([ManifestFile("x", text.encode())])
    assert [item.name for item in manifests.objects] == ["base"]
    assert [problem.line for problem in manifests.problems] == [12]


def test_good_objects_are_kept_beside_broken_ones_and_sorted_by_kind() -> None:
    bad = MODEL % ("bad", "hf://org")
    slo = "apiVersion: sheaf.dev/v1alpha1\nkind: SLO\nmetadata: {name: chat}\n"
    policy = (
        "apiVersion: sheaf.dev/v1alpha1\nkind: AutoscalingPolicy\nmetadata: {name: steady}\nspec: {maxReplicas: 4}\n"
    )
    adapter = "apiVersion: sheaf.dev/v1alpha1\nkind: Adapter\nmetadata: {name: a}\nspec: {modelRef: {name: base}, source: hf://o/l}\n"
    text = "---\n".join([bad, slo, policy, adapter, MODEL % ("base", SOURCE)])
    declared = parse([ManifestFile("x", text.encode())]).declared()
    kinds = (declared.models, declared.adapters, declared.slos, declared.autoscaling_policies)
    assert [[item.name for item in kind] for kind in kinds] == [["base"], ["a"], ["chat"], ["steady"]]


def test_problems_come_in_the_order_of_the_files() -> None:
    files = [ManifestFile(name, (MODEL % (name, "hf://org")).encode()) for name in ("zeta", "alpha")]
    assert [problem.file for problem in parse(files).problems] == ["zeta", "alpha"]


def test_an_object_is_declared_once_over_all_files() -> None:
    files = [ManifestFile(name, (MODEL % ("base", SOURCE)).encode()) for name in ("one.yaml", "two.yaml")]
    manifests = parse(files)
    assert len(manifests.objects) == 1
    assert [str(problem) for problem in manifests.problems] == [
        "two.yaml:3: metadata.name: Model base is declared in one.yaml:1 already; remove or rename one of them"
    ]


def test_what_kubectl_shows_can_be_fed_back() -> None:
    text = MODEL.replace(
        "{name: %s}",
        "{name: %s, uid: u, generation: 3, creationTimestamp: 2026-01-01T00:00:00Z, managedFields: [{a: 1}]}",
    )
    (model,) = parse([ManifestFile("x", (text % ("base", SOURCE) + "status: {replicas: many}\n").encode())]).objects
    assert (model.metadata.uid, model.metadata.creation_timestamp) == ("", None)


def test_a_field_left_empty_counts_as_left_out() -> None:
    text = MODEL % ("base", SOURCE) + "  engine:\n  replicas: null\n  minReplicas: ~\nstatus:\n"
    assert lines(text) == []


def test_without_surroundings_nothing_outside_is_asked() -> None:
    assert parse([ManifestFile("x", (MODEL % ("base", "file:///nowhere")).encode())]).problems == ()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("spec", "engine", "args", 0), "spec.engine.args[0]"),
        (("metadata", "labels", "a b\n"), "metadata.labels['a b\\n']"),
        (("spec", "x" * 99), f"spec['{'x' * 60}...']"),
        ((), "(document)"),
    ],
)
def test_a_field_is_named_as_people_name_it(path: tuple[Any, ...], name: str) -> None:
    assert field_name(path) == name


def test_all_references_to_nothing_are_reported() -> None:
    adapter = "apiVersion: sheaf.dev/v1alpha1\nkind: Adapter\nmetadata: {name: a%d}\nspec: {modelRef: {name: m%d}, source: 'file:///x'}\n---\n"
    text = "".join(adapter % (i, i) for i in range(100))
    assert len(lines(text)) == 200


WORDS = st.sampled_from(
    ["apiVersion", "kind", "metadata", "spec", "name", "source", "replicas", "engine", "args", "env", "lora", "Model", "SLO"]
) | st.text(max_size=8)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["hf://org/name", "sheaf.dev/v1alpha1", "5m"])
    | st.text(max_size=8)
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=8
)


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_fail(content: bytes) -> None:
    assert all(len(line.splitlines()) == 1 for line in lines(content))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["Model", "Adapter", "SLO", "AutoscalingPolicy"]), TREES, TREES, TREES)
def test_no_tree_makes_the_reader_fail(kind: str, metadata: Any, spec: Any, other: Any) -> None:
    tree = {"apiVersion": "sheaf.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
    text = yaml.safe_dump_all([tree, other, {"kind": other, "apiVersion": spec}])
    assert all(len(line.splitlines()) == 1 for line in lines(text))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=6), st.integers(0, 30)), max_size=5))
def test_no_damage_to_a_good_manifest_makes_the_reader_fail(damage: list[tuple[int, bytes, int]]) -> None:
    content = (MODEL % ("base", SOURCE) + "  engine: {args: [--a], env: [&e {name: A, value: x}, *e]}\n").encode()
    for place, put, cut in damage:
        at = place % (len(content) + 1)
        content = content[:at] + put + content[at + cut :]
    assert all(len(line.splitlines()) == 1 for line in lines(content))


def test_a_time_zone_that_there_is_is_no_mistake() -> None:
    window = (
        "spec: {maxReplicas: 2, schedules: [{name: day, start: '08:00', end: '09:00', minReplicas: 1, timeZone: UTC}]}"
    )
    assert lines(f"apiVersion: sheaf.dev/v1alpha1\nkind: AutoscalingPolicy\nmetadata: {{name: p}}\n{window}\n") == []


def test_what_is_not_an_object_has_one_finding() -> None:
    assert [finding.what for finding in findings(["x"])] == ["is a list, not an object"]
