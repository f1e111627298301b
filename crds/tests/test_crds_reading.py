"""What an older program reads of an object that a newer CRD has more fields for."""

from typing import Any

import pytest
from pydantic import ValidationError
from sheaf_crds import Model
from sheaf_crds.reading import read_known


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
