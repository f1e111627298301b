"""What an older program reads of an object that a newer CRD has more fields for."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sheaf_crds import Model, ModelStatus
from sheaf_crds.reading import read_known, readable_part


def wire(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "m"}, "spec": {"source": "hf://org/name", **spec}}


def test_a_whole_object_is_read_as_ever():
    assert read_known(Model, wire(replicas=3)) == Model.model_validate(wire(replicas=3))


def test_fields_of_a_newer_version_are_left_out_at_any_depth_and_in_any_number():
    env = [{"name": f"A{place}", "value": "b", "mode": "Plain", "more": {}} for place in range(64)]
    found = read_known(Model, wire(newField="Default", replicas=3, engine={"env": env, "profile": {"x": [1]}}))
    assert found.spec.replicas == 3
    assert [one.name for one in found.spec.engine.env] == [one["name"] for one in env]


@pytest.mark.parametrize("spec", [{"replicas": "many"}, {"replicas": "many", "newField": 1}])
def test_what_is_wrong_besides_is_told(spec: dict[str, Any]):
    with pytest.raises(ValidationError, match="replicas") as told:
        read_known(Model, wire(**spec))
    assert told.value.error_count() == 1


FIELDS = ["replicas", "autoscaling", "decisions", "desiredReplicas", "policy", "spotZones", "zone", "conditions", "odd"]
DECISION = {"at": "2026-01-01T00:00:00Z", "before": 1, "after": 7, "reason": "X"}


@pytest.mark.parametrize(
    ("status", "left"),
    [
        ({"replicas": 3}, {"replicas": 3}),
        ({"replicas": 3, "selector": ["a"]}, {"replicas": 3}),
        ({"spotZones": [{"zone": "a"}, {"losses": 2.0}, {"zone": "c"}]}, {"spotZones": [{"zone": "a"}, {"zone": "c"}]}),
        (
            {"autoscaling": {"policy": "p", "desiredReplicas": 7, "decisions": [DECISION, {**DECISION, "at": "soon"}]}},
            {"autoscaling": {"policy": "p", "desiredReplicas": 7, "decisions": [DECISION]}},
        ),
        ({"conditions": "odd"}, {}),
        (["odd"], {}),
        (None, {}),
    ],
)
def test_of_a_status_the_smallest_part_that_cannot_be_read_is_left_out(status: Any, left: Any):
    assert readable_part(ModelStatus, status) == left


def test_where_what_is_left_does_not_do_either_nothing_is():
    assert readable_part(Model, {"spec": 3}) == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.sampled_from([0, 1, -1, "", "1", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_whatever_a_status_holds_a_part_of_it_is_read(status: Any):
    ModelStatus.model_validate(readable_part(ModelStatus, status))
