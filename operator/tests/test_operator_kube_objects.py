"""Objects that another version of Sheaf wrote, or that were written past the CRD's checks."""

from typing import Any

import pytest
from operator_world import NOW
from sheaf_crds import Model, ModelStatus
from sheaf_crds.model import ModelAutoscaling
from sheaf_operator.cluster.kubernetes.objects import Refusal, read
from sheaf_operator.cluster.kubernetes.resources import DECLARED
from sheaf_operator.cluster.kubernetes.view import View
from sheaf_operator.planning import FleetIndex, Key

AUTOSCALING = {"policy": "steady", "desiredReplicas": 20, "season": [1.0] * 3}
CONDITIONS = [
    {"type": "Ready", "status": "True", "reason": "Serving"},
    {"type": "Available", "status": "True", "reason": "Serving"},
]
STATUS = {
    "replicas": 20,
    "readyReplicas": 19,
    "selector": "sheaf.dev/model=m",
    "autoscaling": AUTOSCALING,
    "spotZones": [{"zone": "a", "losses": 2.0}],
    "conditions": CONDITIONS,
}


def raw(status: Any = STATUS, **spec: Any) -> dict[str, Any]:
    meta = {"name": "m", "namespace": "ns", "uid": "U", "generation": 3, "resourceVersion": "5"}
    spec = {"source": "hf://a/b", **spec}
    return {"apiVersion": "sheaf.dev/v1alpha1", "kind": "Model", "metadata": meta, "spec": spec, "status": status}


def refused(status: Any = STATUS) -> Refusal:
    found = read("Model", raw(status, replicas="many"))
    assert isinstance(found, Refusal)
    return found


def test_a_field_that_a_newer_crd_fills_in_by_default_changes_nothing():
    found = read("Model", raw(newField="Default", lora={"newField": 1}))
    assert found == read("Model", raw(lora={}))
    assert isinstance(found, Model)


def test_a_refusal_replaces_the_ready_condition_and_keeps_the_rest_of_the_status():
    status = refused().action(NOW).status
    assert isinstance(status, ModelStatus)
    assert (status.replicas, status.ready_replicas, status.selector) == (20, 19, "sheaf.dev/model=m")
    assert status.autoscaling == ModelAutoscaling.model_validate(AUTOSCALING)
    assert [zone.zone for zone in status.spot_zones] == ["a"]
    assert [(one.type, one.reason) for one in status.conditions] == [("Ready", "Invalid"), ("Available", "Serving")]
    assert status.observed_generation == 3


def test_a_refusal_that_was_written_is_told():
    written = refused().action(NOW).status
    assert not refused().told
    again = refused(written.to_wire())
    assert again.told
    assert again.action(NOW + 60).status == written


@pytest.mark.parametrize("status", [None, {"replicas": "some"}, ["odd"]])
def test_a_status_that_cannot_be_read_is_written_anew(status: Any):
    found = refused(status).action(NOW).status
    assert [one.reason for one in found.conditions] == ["Invalid"]


UNREADABLE = {**STATUS, "autoscaling": {**AUTOSCALING, "coldStart": "soon"}, "readyReplicas": "all"}


def test_one_field_of_a_status_that_cannot_be_read_costs_that_field_only():
    found = read("Model", raw(UNREADABLE))
    assert isinstance(found, Model)
    assert found.status.autoscaling == ModelAutoscaling.model_validate(AUTOSCALING)
    assert (found.status.replicas, found.status.ready_replicas) == (20, 0)
    assert [zone.zone for zone in found.status.spot_zones] == ["a"]


def test_a_refusal_keeps_all_of_the_status_that_can_be_read_and_names_none_of_its_fields():
    refusal = refused(UNREADABLE)
    assert refusal.action(NOW).status.autoscaling == ModelAutoscaling.model_validate(AUTOSCALING)
    assert "spec.replicas" in refusal.message
    assert "status" not in refusal.message


def test_the_view_tells_the_models_of_a_policy_that_it_is_there_and_cannot_be_read():
    view = View(FleetIndex(), lambda: NOW, lambda: None, lambda *_: None)
    view.take(DECLARED["Model"], raw(None, autoscalingPolicyRef={"name": "steady"}))
    view.taken()
    meta = {"name": "steady", "uid": "P", "resourceVersion": "6"}
    view.take(DECLARED["AutoscalingPolicy"], {"metadata": meta, "spec": {"maxReplicas": "many"}})
    assert view.index.unreadable("AutoscalingPolicy", "steady")
    assert Key("Model", "m") in view.taken()
    view.drop(DECLARED["AutoscalingPolicy"], "steady", "P")
    assert not view.index.unreadable("AutoscalingPolicy", "steady")
    assert Key("Model", "m") in view.taken()
