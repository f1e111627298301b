"""Objects that are right by themselves are judged together."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_crds import SLO, Adapter, AutoscalingPolicy, Model
from sheaf_crds.judge import Declared, judge, served_name_clashes


def metadata(name: str, created: int | None = None, namespace: str = "default") -> dict[str, Any]:
    stamp = datetime.fromtimestamp(created, UTC) if created is not None else None
    return {"name": name, "namespace": namespace, "creationTimestamp": stamp}


def model(name: str = "base", created: int | None = None, namespace: str = "default", **spec: Any) -> Model:
    return Model.model_validate({"metadata": metadata(name, created, namespace), "spec": {"source": "hf://o/n"} | spec})


def adapter(name: str = "pirate", created: int | None = None, of: str = "base", **spec: Any) -> Adapter:
    whole = {"modelRef": {"name": of}, "source": "hf://o/l"} | spec
    return Adapter.model_validate({"metadata": metadata(name, created), "spec": whole})


def policy(**spec: Any) -> AutoscalingPolicy:
    return AutoscalingPolicy.model_validate(
        {"metadata": metadata("steady"), "spec": {"signal": "QueuePressure", "maxReplicas": 4} | spec}
    )


def reasons(**objects: Any) -> list[tuple[str, str, str]]:
    return [(v.key[0], v.key[2], v.reason) for v in judge(Declared(**objects))]


def test_a_fleet_in_order_has_no_verdict() -> None:
    chat = SLO.model_validate({"metadata": metadata("chat")})
    base = model(sloRef={"name": "chat"}, autoscalingPolicyRef={"name": "steady"}, maxReplicas=4)
    pirate = adapter(rank=16)
    assert reasons(models=[base], adapters=[pirate], slos=[chat], autoscaling_policies=[policy(signal="SLO")]) == []


def test_of_two_objects_with_one_served_name_the_younger_is_reported() -> None:
    old, young = model("twin", created=1), adapter("twin", created=2)
    (verdict,) = served_name_clashes([old], [young])
    assert verdict.key == ("Adapter", "default", "twin")
    assert (
        verdict.message
        == "the name twin is served by the Model of that name in namespace default already; rename this Adapter"
    )


def test_a_younger_model_gives_way_to_an_older_adapter() -> None:
    (verdict,) = served_name_clashes([model("twin", created=2)], [adapter("twin", created=1)])
    assert verdict.key[0] == "Model"


def test_of_objects_of_one_age_the_adapter_gives_way() -> None:
    (verdict,) = served_name_clashes([model("twin")], [adapter("twin")])
    assert verdict.key[0] == "Adapter"


@settings(max_examples=30, deadline=None)
@given(
    st.permutations([model("twin", 3), model("twin", 1, "prod"), model("other", 2)]),
    st.permutations([adapter("twin", 2), adapter("x", 9)]),
)
def test_the_order_in_which_objects_are_listed_does_not_matter(models: list[Model], adapters: list[Adapter]) -> None:
    found = {verdict.key for verdict in served_name_clashes(models, adapters)}
    assert found == {("Model", "default", "twin"), ("Adapter", "default", "twin")}


def test_references_to_nothing_are_reported() -> None:
    lost = model(sloRef={"name": "chat"}, autoscalingPolicyRef={"name": "steady"})
    assert reasons(models=[lost], adapters=[adapter(of="bass")]) == [
        ("Model", "base", "SLONotFound"),
        ("Model", "base", "AutoscalingPolicyNotFound"),
        ("Adapter", "pirate", "ModelNotFound"),
    ]


def test_a_reference_does_not_reach_into_another_namespace() -> None:
    assert reasons(models=[model(namespace="prod")], adapters=[adapter()]) == [("Adapter", "pirate", "ModelNotFound")]


def test_what_exists_but_could_not_be_read_is_not_missing() -> None:
    assert judge(Declared(adapters=[adapter()]), also=[("Model", "default", "base")]) == ()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"task": "Embed"}, "LoraDisabled"),
        ({"lora": {"slots": 0}}, "LoraDisabled"),
        ({"lora": {"maxRank": 8}}, "RankTooHigh"),
    ],
)
def test_an_adapter_that_its_model_cannot_take_is_reported(spec: dict[str, Any], reason: str) -> None:
    assert reasons(models=[model(**spec)], adapters=[adapter(rank=16)]) == [("Adapter", "pirate", reason)]


def test_a_rank_that_is_not_declared_is_left_to_the_agent() -> None:
    assert reasons(models=[model(lora={"maxRank": 8})], adapters=[adapter()]) == []


@pytest.mark.parametrize(
    ("spec", "bounds", "reason"),
    [
        ({"maxReplicas": 1}, {"minReplicas": 2, "maxReplicas": 4}, "BoundsExclude"),
        ({"minReplicas": 5}, {"maxReplicas": 4}, "BoundsExclude"),
        ({}, {"signal": "SLO"}, "SLOMissing"),
    ],
)
def test_a_policy_that_cannot_scale_its_model_is_reported(
    spec: dict[str, Any], bounds: dict[str, Any], reason: str
) -> None:
    scaled = model(autoscalingPolicyRef={"name": "steady"}, **spec)
    assert reasons(models=[scaled], autoscaling_policies=[policy(**bounds)]) == [("Model", "base", reason)]
