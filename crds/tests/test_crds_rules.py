"""CEL in the API server and CEL here say the same of the same objects, and every rule is met and broken by some object.

The rules are read out of the generated CRD files and evaluated by a second, independent CEL implementation.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import celpy
import pytest
import yaml
from celpy.adapter import json_to_cel
from sheaf_crds import KINDS
from sheaf_crds.manifests import field_name, findings, to_object
from sheaf_crds.rules import RULES, Rule, broken_rules
from sheaf_crds.schema import structural_schema
from sheaf_crds.structure import defaulted

HERE = Path(__file__).parent
PERCENTILES = ("p50", "p90", "p95", "p99")
REQUIRED: dict[str, dict[str, Any]] = {
    "Model": {"source": "hf://org/name"},
    "Adapter": {"modelRef": {"name": "base"}, "source": "hf://org/lora"},
    "AutoscalingPolicy": {"maxReplicas": 1},
}


def promise_cases() -> Iterator[dict[str, Any]]:
    for latency in ("ttft", "tpot", "e2e"):
        for low, high in ((low, high) for i, low in enumerate(PERCENTILES) for high in PERCENTILES[i + 1 :]):
            for longer, refused in (("1s", []), ("1001ms", [f"spec.{latency}.{low}"])):
                spec = {latency: {low: longer, high: "1s"}}
                yield {"case": f"{latency} {low} {longer} {high} 1s", "kind": "SLO", "spec": spec, "refused": refused}
        for percentile in PERCENTILES:
            spec = {latency: {percentile: "0.0s"}}
            yield {
                "case": f"{latency} {percentile} 0",
                "kind": "SLO",
                "spec": spec,
                "refused": [f"spec.{latency}.{percentile}"],
            }
    for percentile in PERCENTILES:
        spec = {"ttft": {percentile: "2s"}, "e2e": {percentile: "1s"}}
        yield {
            "case": f"e2e before ttft {percentile}",
            "kind": "SLO",
            "spec": spec,
            "refused": [f"spec.e2e.{percentile}"],
        }


ENVIRONMENT = celpy.Environment()
SECOND_OPINION = {rule.cel: ENVIRONMENT.program(ENVIRONMENT.compile(rule.cel)) for rule in RULES}
CASES = [*yaml.safe_load((HERE / "rule_cases.yaml").read_text()), *promise_cases()]


def whole(case: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "sheaf.dev/v1alpha1",
        "kind": case["kind"],
        "metadata": {"name": case.get("name", "thing")},
        "spec": REQUIRED.get(case["kind"], {}) | case.get("spec", {}),
    }


def with_defaults(tree: dict[str, Any]) -> dict[str, Any]:
    return defaulted(structural_schema(KINDS[tree["kind"]]), tree)


@cache
def crd_schema(kind: str) -> dict[str, Any]:
    crd = yaml.safe_load((HERE.parent / f"sheaf.dev_{KINDS[kind].PLURAL}.yaml").read_text())
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def refused_by_crd(schema: dict[str, Any], tree: Any) -> Iterator[str]:
    for validation in schema.get("x-kubernetes-validations", ()):
        if not SECOND_OPINION[validation["rule"]].evaluate({"self": json_to_cel(tree)}):
            yield validation["message"]
    for name, child in schema.get("properties", {}).items():
        if name in tree:
            yield from refused_by_crd(child, tree[name])
    for item in tree if "items" in schema else ():
        yield from refused_by_crd(schema["items"], item)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_exactly_the_named_fields_are_refused(case: dict[str, Any]) -> None:
    found = findings(whole(case))
    assert sorted({field_name(finding.path) for finding in found}) == sorted(case.get("refused", []))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_the_rules_in_the_crd_say_the_same_to_another_cel_implementation(case: dict[str, Any]) -> None:
    tree = with_defaults(whole(case))
    here = [f"{finding.what}; {finding.mend}" for finding in broken_rules(case["kind"], tree)]
    assert sorted(refused_by_crd(crd_schema(case["kind"]), tree)) == sorted(here)


@pytest.mark.parametrize("case", [case for case in CASES if not case.get("refused")], ids=lambda case: case["case"])
def test_an_object_without_findings_survives_a_round_trip(case: dict[str, Any]) -> None:
    item = to_object(whole(case))
    assert to_object(whole(case) | {"spec": item.to_wire()["spec"]}) == item


@cache
def broken_in_cases(kind: str) -> tuple[frozenset[tuple[Any, str]], ...]:
    """What each case of that kind breaks."""
    trees = [with_defaults(whole(case)) for case in CASES if case["kind"] == kind]
    return tuple(frozenset((finding.path, finding.what) for finding in broken_rules(kind, tree)) for tree in trees)


def breaks(rule: Rule, broken: frozenset[tuple[Any, str]]) -> bool:
    return any(what == rule.what and tuple(rule.path)[:2] == path[: len(rule.path[:2])] for path, what in broken)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{'.'.join(rule.path)} {rule.what}")
def test_every_rule_is_met_by_one_object_and_broken_by_another(rule: Rule) -> None:
    assert {breaks(rule, broken) for kind in rule.kinds for broken in broken_in_cases(kind)} == {True, False}


def test_messages_fit_what_kubernetes_takes() -> None:
    assert [rule for rule in RULES if "\n" in rule.message or len(rule.message) > 2048] == []
