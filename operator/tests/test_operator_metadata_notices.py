"""Notices that agents read in their cloud's metadata service: the same to the planner as those of nodes and pods."""

import json
from dataclasses import replace

import pytest
from operator_manifests import make_settings
from operator_world import NOW, World, make_model, make_pod, of_kind
from sheaf_crds.agent_api import AgentNotice, AgentState
from sheaf_operator.planning import ClusterSnapshot, CreatePod, DrainPod, EmitEvent, UpdateStatus
from sheaf_operator.planning.manifest import NodeFacts, pod_facts, pod_manifest
from sheaf_operator.planning.market.fleet import LOSSES
from sheaf_operator.planning.snapshot import Notice
from sheaf_operator.planning.template import pod_template, template_hash

TOLD = {
    "aws": ("SpotInterruption", "EC2 takes the spot instance back, as its metadata says", 118.0),
    "gcp": ("SpotPreemption", "Compute Engine takes the spot machine back, as its metadata says", 25.0),
    "azure": ("SpotPreemption", "Azure takes the spot machine back, as its scheduled events say", 30.0),
}
ADVICE = AgentNotice(source="aws", reason="RebalanceRecommendation", message="the risk is raised", advisory=True)


def agent(notice):
    return AgentState(engine="Ready", notice=notice)


def observed(model, notice, *, node=None, disrupted=False):
    """The facts of a Pod that serves, with what its agent says."""
    raw = pod_manifest("p", pod_template(model, spot=True), make_settings())
    conditions = [{"type": "Ready", "status": "True"}]
    conditions += [{"type": "DisruptionTarget", "status": "True"}] if disrupted else []
    raw["metadata"]["uid"] = "uid-p"
    raw["status"] = {"phase": "Running", "conditions": conditions}
    return pod_facts(raw, node, agent(notice), NOW)


@pytest.mark.parametrize("cloud", TOLD)
def test_the_replacement_is_requested_in_the_pass_that_hears_it_and_events_and_conditions_say_why(cloud):
    reason, message, seconds = TOLD[cloud]
    model = make_model(replicas=1, drainTimeout="60s", spot={"policy": "Required"})
    notice = AgentNotice(source=cloud, reason=reason, message=message, deadline=NOW + seconds)
    world = World(ClusterSnapshot(models=(model,), pods=(observed(model, None),)))
    world.settle()
    now = world.now
    world.become("p", **{f: getattr(observed(model, notice), f) for f in ("agent", "notice")})
    actions = world.step()
    assert len(of_kind(actions, CreatePod)) == 1
    (drain,) = of_kind(actions, DrainPod)
    assert (drain.name, drain.seconds, drain.reason) == (
        "p",
        min(60.0, NOW + seconds - now),
        f"{reason}: {message}",
    )
    said = f"0 of 1 replica ready; p has to go and is being replaced: {message}"
    (event,) = of_kind(actions, EmitEvent)
    assert (event.reason, event.message, event.type) == (reason, said, "Warning")
    (status,) = [one.status for one in of_kind(actions, UpdateStatus) if one.kind == "Model"]
    assert (status.condition("Ready").reason, status.condition("Ready").message) == (reason, said)
    assert reason in LOSSES
    world.settle()
    assert "p" not in world.pods
    assert len(world.pods) == 1


def test_a_notice_without_a_deadline_waits_for_the_replacement():
    model = make_model(replicas=1, spot={"policy": "Required"})
    notice = AgentNotice(source="gcp", reason="NodeMaintenance", message="the host's maintenance ends the machine")
    facts = observed(model, notice)
    assert facts.notice == Notice("gcp-metadata", "NodeMaintenance", notice.message, None)
    assert facts.bides
    assert not facts.live


def test_an_advice_replaces_nothing_and_is_told():
    model = make_model(replicas=1)
    pod = make_pod(model, "p", template_hash=template_hash(model), agent=agent(ADVICE))
    world = World(ClusterSnapshot(models=(model,), pods=(pod,)))
    world.settle()
    assert of_kind(world.history, (CreatePod, DrainPod)) == []
    ready = world.snapshot.models[0].status.condition("Ready")
    assert (ready.status, ready.message) == ("True", "1 of 1 replica ready; p may have to go soon: the risk is raised")
    world.become("p", agent=agent(None))
    world.settle()
    assert world.snapshot.models[0].status.condition("Ready").message == "1 of 1 replica ready"


def test_what_is_advised_of_a_pod_that_goes_is_not_said():
    model = make_model()
    pod = make_pod(model, "p", agent=agent(ADVICE.model_copy(update={"message": ""})))
    assert pod.advice == "RebalanceRecommendation"
    assert replace(pod, phase="Terminating").advice == ""
    assert replace(pod, agent=None).advice == ""
    assert observed(model, ADVICE).notice is None


def test_of_several_notices_the_one_whose_time_is_up_first_counts():
    model = make_model()
    told = AgentNotice(source="aws", reason="SpotInterruption", deadline=NOW + 100)
    taint = NodeFacts("n", notice=Notice("aws-node-termination-handler", "SpotInterruption", "", NOW + 90))
    bare = NodeFacts("n", notice=Notice("karpenter", "NodeDisruption"))
    sources = [
        observed(model, told).notice.source,
        observed(model, told, node=taint).notice.source,
        observed(model, told, node=bare, disrupted=True).notice.source,
        observed(model, None, node=bare, disrupted=True).notice.source,
    ]
    assert sources == ["aws-metadata", "aws-node-termination-handler", "aws-metadata", "kubernetes"]


def config_of(settings, *, spot):
    pod = pod_manifest("p", pod_template(make_model(), settings.digest, spot=spot), settings)
    return json.loads(pod["metadata"]["annotations"]["sheaf.dev/agent-config"]).get("notices")


def test_agents_of_spot_pods_alone_are_told_to_read_notices():
    on = make_settings(notices={"cloud": "aws", "endpoint": "http://10.0.0.1:80", "rebalance": "Replace"})
    assert config_of(on, spot=True) == {"cloud": "aws", "endpoint": "http://10.0.0.1:80", "rebalance": "Replace"}
    assert config_of(on, spot=False) is None
    assert config_of(make_settings(notices={"cloud": "gcp"}), spot=True) == {"cloud": "gcp", "rebalance": "Tell"}
    assert config_of(make_settings(), spot=True) is None


def test_turning_notices_on_rolls_no_pods():
    assert make_settings(notices={"cloud": "azure"}).digest == make_settings().digest


@pytest.mark.parametrize(
    "wrong", [{"cloud": "oracle"}, {"endpoint": "https://h"}, {"endpoint": "http://h/x"}, {"a": 1}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="validation error"):
        make_settings(notices=wrong)
