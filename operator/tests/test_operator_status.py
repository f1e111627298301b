"""Statuses: what is so and why, written only when it changed, and never in the way of the other objects."""

from dataclasses import replace

import pytest
from operator_world import (
    NOW,
    World,
    make_adapter,
    make_model,
    make_pod,
    make_policy,
    make_slo,
    of_kind,
    resident,
)
from sheaf_crds.agent_api import AdapterState, AgentState
from sheaf_operator.planning import (
    ClusterSnapshot,
    CreatePod,
    EmitEvent,
    FleetIndex,
    Key,
    SetCatalog,
    UpdateStatus,
    plan,
    plan_key,
)


def statuses(snapshot: ClusterSnapshot, now: float = NOW):
    return {(a.kind, a.name): a.status for a in of_kind(plan(snapshot, now).actions, UpdateStatus)}


def ready(status) -> tuple[str, str]:
    condition = status.condition("Ready")
    return condition.status, condition.reason


def model_status(model, *pods, **others):
    return statuses(ClusterSnapshot((model,), pods=pods, **others))["Model", model.name]


def adapter_status(adapter, model, *pods):
    return statuses(ClusterSnapshot((model,), (adapter,), pods=pods))["Adapter", adapter.name]


def test_a_quiet_cluster_is_not_written_to():
    world = World(
        ClusterSnapshot(
            (make_model(replicas=2, sloRef={"name": "chat"}),), (make_adapter("a"),), (make_slo(),), (make_policy(),)
        )
    )
    world.settle()
    assert [world.step() for _ in range(5)] == [[]] * 5


def test_a_model_that_serves_says_so():
    model = make_model(replicas=2)
    status = model_status(model, make_pod(model, "p"), make_pod(model, "q"))
    assert ready(status) == ("True", "Serving")
    assert (status.replicas, status.ready_replicas, status.selector) == (2, 2, "sheaf.dev/model=m")
    assert status.observed_generation == 1
    assert status.condition("Progressing").status == "False"
    assert status.condition("Available").status == "True"


def test_a_starting_model_is_not_alarming():
    model = make_model(replicas=2)
    actions = plan(ClusterSnapshot((model,)), NOW).actions
    event = of_kind(actions, EmitEvent)[0]
    assert (event.type, event.reason, event.message) == ("Normal", "Starting", "0 of 2 replicas ready")


def test_a_model_in_trouble_says_which_pod_and_why():
    model = make_model(replicas=2)
    crashing = make_pod(
        model, "p", ready=False, phase="Starting", restarts=3, reason="CrashLoopBackOff", message="engine: no memory"
    )
    waiting = make_pod(model, "q", ready=False, phase="Pending", reason="FetchFailed", message="not there")
    status = model_status(model, crashing, waiting)
    assert ready(status) == ("False", "CrashLoopBackOff")
    assert status.condition("Ready").message == "0 of 2 replicas ready; p: engine: no memory"
    assert status.condition("Available").status == "False"


def test_a_reference_to_nothing_hides_no_trouble_and_keeps_no_model_from_being_ready():
    model = make_model(replicas=1, sloRef={"name": "gone"})
    crashing = make_pod(model, "p", ready=False, phase="Starting", reason="CrashLoopBackOff", message="no memory")
    assert ready(model_status(model, crashing)) == ("False", "CrashLoopBackOff")
    assert "1 replica ready; p: no memory; there is no SLO" in model_status(model, crashing).condition("Ready").message
    assert ready(model_status(model, make_pod(model, "p"))) == ("True", "Serving")
    follows = make_model(replicas=1, autoscalingPolicyRef={"name": "steady"})
    status = model_status(follows, make_pod(follows, "p"), policies=(make_policy(),))
    assert ready(status) == ("True", "Serving")
    assert status.condition("Resolved").reason == "SLOMissing"


@pytest.mark.parametrize(("reason", "word"), [("Image pull: backoff!", "Imagepullbackoff"), ("9", "PodNotReady")])
def test_any_reason_of_a_pod_becomes_a_lawful_word(reason, word):
    model = make_model()
    pod = make_pod(model, "p", ready=False, phase="Pending", reason=reason)
    assert ready(model_status(model, pod)) == ("False", word)


def test_a_model_at_zero_is_as_declared():
    status = model_status(make_model(replicas=0))
    assert ready(status) == ("True", "ScaledToZero")
    assert status.condition("Available").reason == "ScaledToZero"


def test_held_replicas_are_said():
    model = make_model(replicas=3, maxReplicas=3)
    above = model.model_copy(update={"spec": model.spec.model_copy(update={"replicas": 5})})
    pods = [make_pod(above, name) for name in "pqr"]
    message = model_status(above, *pods).condition("Ready").message
    assert message == "3 of 3 replicas ready; replicas 5 is held at maxReplicas 3"


def test_progress_is_told():
    model = make_model(replicas=1)
    old = make_pod(model, "old", template_hash="00000")
    rolling = model_status(model, old, make_pod(model, "new", ready=False, phase="Starting"))
    assert rolling.condition("Progressing").reason == "RollingUpdate"
    scaling = model_status(model, make_pod(model, "p"), make_pod(model, "q"))
    assert scaling.condition("Progressing").reason == "Scaling"
    starting = model_status(model, make_pod(model, "p", ready=False, phase="Starting"))
    assert starting.condition("Progressing").reason == "Starting"


def test_a_rollout_of_which_no_pod_can_be_made_says_so_while_the_old_ones_serve():
    model, index = make_model(replicas=1), FleetIndex()
    index.replace(ClusterSnapshot((model,), pods=(make_pod(model, "old", template_hash="00000"),)))
    index.note_refusal("m", "create pods: exceeded quota; raise it")
    actions = plan_key(index, Key("Model", "m"), NOW).actions
    (status,) = (action.status for action in of_kind(actions, UpdateStatus))
    assert ready(status) == ("True", "Serving")
    told = status.condition("Progressing")
    assert (told.status, told.reason, told.message) == ("False", "PodRefused", "create pods: exceeded quota; raise it")
    warnings = [event.reason for event in of_kind(actions, EmitEvent) if event.type == "Warning"]
    assert warnings == ["PodRefused"]


def test_a_policy_with_a_time_zone_that_nobody_knows_says_so():
    window = {"name": "day", "start": "08:00", "end": "18:00", "minReplicas": 1}
    strange = make_policy(schedules=[{**window, "timeZone": "Europe/Atlantis"}])
    found = statuses(ClusterSnapshot(policies=(strange,)))["AutoscalingPolicy", "steady"]
    assert ready(found) == ("False", "TimeZoneUnknown")
    assert found.condition("Ready").message == (
        "there is no time zone Europe/Atlantis of window day, and UTC is taken instead; write the name of an IANA time "
        "zone, such as Europe/Berlin"
    )
    known = make_policy(schedules=[{**window, "timeZone": "Europe/Berlin"}])
    assert ready(statuses(ClusterSnapshot(policies=(known,)))["AutoscalingPolicy", "steady"]) == ("True", "Unused")


def test_the_moment_of_a_transition_stays_until_the_status_changes():
    model = make_model(replicas=1)
    world = World(ClusterSnapshot((model,)), lag=3)
    world.step()
    first = world.snapshot.models[0].status.condition("Ready")
    world.snapshot = replace(
        world.snapshot,
        pods=tuple(replace(pod, reason="FetchFailed", message="no such folder") for pod in world.snapshot.pods),
    )
    world.step()
    second = world.snapshot.models[0].status.condition("Ready")
    assert second.reason == "FetchFailed"
    assert second.last_transition_time == first.last_transition_time
    world.settle()
    third = world.snapshot.models[0].status.condition("Ready")
    assert third.status == "True"
    assert third.last_transition_time > first.last_transition_time


def test_an_event_comes_with_every_change_of_reason_and_only_then():
    world = World(ClusterSnapshot((make_model(replicas=2),)), lag=2)
    world.settle()
    assert [event.reason for event in of_kind(world.history, EmitEvent)] == ["Starting", "Serving"]


def test_the_younger_of_two_with_one_name_is_refused_and_the_rest_is_served():
    model, fine = make_model("m"), make_model("n")
    adapter = make_adapter("m", "n", metadata={"created": NOW - 50})
    actions = plan(ClusterSnapshot((model, fine), (adapter,)), NOW).actions
    said = {(a.kind, a.name): ready(a.status) for a in of_kind(actions, UpdateStatus)}
    assert said["Model", "m"] == ("False", "NameClash")
    assert {pod.template.model for pod in of_kind(actions, CreatePod)} == {"n"}
    younger = make_adapter("m", "n", metadata={"created": NOW + 50})
    assert ready(statuses(ClusterSnapshot((model, fine), (younger,)))["Adapter", "m"]) == ("False", "NameClash")


def test_a_model_that_lost_its_name_keeps_the_pods_that_it_has():
    model = make_model("m")
    adapter = make_adapter("m", "m", metadata={"created": NOW - 50})
    actions = plan(ClusterSnapshot((model,), (adapter,), pods=(make_pod(model, "p"),)), NOW).actions
    assert of_kind(actions, (CreatePod, SetCatalog)) == []


def test_a_dangling_slo_is_reported_and_the_model_served_without_it():
    model = make_model(sloRef={"name": "nowhere"}, replicas=1)
    actions = plan(ClusterSnapshot((model,)), NOW).actions
    status = of_kind(actions, UpdateStatus)[0].status
    assert ready(status) == ("False", "Starting")
    told = status.condition("Resolved")
    assert (told.status, told.reason) == ("False", "SLONotFound")
    assert "until then it is served without" in told.message
    assert status.condition("Ready").message == f"0 of 1 replica ready; {told.message}"
    assert [event.reason for event in of_kind(actions, EmitEvent) if event.type == "Warning"] == ["SLONotFound"]
    assert len(of_kind(actions, CreatePod)) == 1


@pytest.mark.parametrize(
    ("adapter", "model", "reason"),
    [
        (make_adapter("a", "nowhere"), make_model(), "ModelNotFound"),
        (make_adapter("a"), make_model(task="Embed"), "LoraDisabled"),
        (make_adapter("a"), make_model(lora={"slots": 0}), "LoraDisabled"),
        (make_adapter("a", rank=64), make_model(lora={"maxRank": 16}), "RankTooHigh"),
    ],
)
def test_an_adapter_that_cannot_be_served_says_why_and_stays_out_of_catalogs(adapter, model, reason):
    pod = make_pod(model, "p")
    assert ready(adapter_status(adapter, model, pod)) == ("False", reason)
    actions = plan(ClusterSnapshot((model,), (adapter,), pods=(pod,)), NOW).actions
    assert [a.catalog.adapters for a in of_kind(actions, SetCatalog)] == [()]


def test_an_adapter_is_ready_when_it_is_resident_where_it_should_be():
    model, adapter = make_model(replicas=2), make_adapter("a", replicas=2)
    both = adapter_status(adapter, model, *(make_pod(model, name, agent=resident("a")) for name in "pq"))
    assert ready(both) == ("True", "Resident")
    assert (both.ready_replicas, both.desired_replicas) == (2, 2)
    assert [(p.pod, p.state) for p in both.placements] == [("p", "Resident"), ("q", "Resident")]
    one = adapter_status(adapter, model, make_pod(model, "p", agent=resident("a")), make_pod(model, "q"))
    assert ready(one) == ("False", "Loading")
    assert [(p.pod, p.state) for p in one.placements] == [("p", "Resident"), ("q", "Pending")]


def test_an_older_content_does_not_count_as_resident():
    model, adapter = make_model(), make_adapter("a", digest="sha256:" + "2" * 64)
    status = adapter_status(adapter, model, make_pod(model, "p", agent=resident("a")))
    assert status.ready_replicas == 0
    assert [(p.state, p.message) for p in status.placements] == [("Loading", "an older content is still loaded")]


@pytest.mark.parametrize(("reason", "said"), [("DigestMismatch", "DigestMismatch"), ("", "LoadFailed")])
def test_a_failure_is_told_in_the_agents_words(reason, said):
    model = make_model()
    state = AdapterState(name="a", state="Failed", reason=reason, message="the files differ")
    agent = AgentState(engine="Ready", adapters=(state,))
    status = adapter_status(make_adapter("a"), model, make_pod(model, "p", agent=agent))
    assert ready(status) == ("False", said)
    assert status.condition("Ready").message == "p: the files differ"


def test_a_failure_elsewhere_does_not_matter_where_enough_pods_hold_it():
    model, adapter = make_model(replicas=2), make_adapter("a", replicas=1)
    failed = AgentState(engine="Ready", adapters=(AdapterState(name="a", state="Failed"),))
    pods = make_pod(model, "p", agent=resident("a")), make_pod(model, "q", agent=failed)
    assert ready(adapter_status(adapter, model, *pods)) == ("True", "Resident")


def test_an_adapter_for_demand_only_and_one_of_a_sleeping_model_are_as_declared():
    model = make_model()
    assert ready(adapter_status(make_adapter("a", replicas=0), model, make_pod(model, "p"))) == ("True", "OnDemand")
    assert ready(adapter_status(make_adapter("a"), make_model(replicas=0))) == ("True", "NoReplicas")
    assert ready(adapter_status(make_adapter("a"), make_model(replicas=1))) == ("False", "Loading")


def test_a_pod_that_starts_does_not_make_a_resident_adapter_unready():
    model, adapter = make_model(replicas=3), make_adapter("a", replicas=2)
    serving = [make_pod(model, name, agent=resident("a")) for name in "pq"]
    status = adapter_status(adapter, model, *serving, make_pod(model, "r", ready=False, phase="Starting"))
    assert ready(status) == ("True", "Resident")
    assert status.desired_replicas == 2


def test_short_capacity_is_said_on_the_adapter_of_lower_priority():
    model = make_model(lora={"slots": 1, "maxAdapters": 1})
    adapters = make_adapter("a", priority=1), make_adapter("b")
    said = statuses(ClusterSnapshot((model,), adapters, pods=(make_pod(model, "p"),)))
    assert ready(said["Adapter", "b"]) == ("False", "CapacityExceeded")
    assert ready(said["Adapter", "a"]) == ("False", "Loading")


def test_slos_and_policies_tell_how_many_models_use_them():
    model = make_model(sloRef={"name": "chat"}, autoscalingPolicyRef={"name": "steady"})
    said = statuses(
        ClusterSnapshot((model,), slos=(make_slo(), make_slo("idle")), policies=(make_policy(), make_policy("idle")))
    )
    assert said["SLO", "chat"].models == said["AutoscalingPolicy", "steady"].models == 1
    assert ready(said["SLO", "chat"]) == ("True", "Accepted")
    assert ready(said["AutoscalingPolicy", "idle"]) == ("True", "Unused")


def test_every_action_names_its_object_for_back_off():
    world = World(ClusterSnapshot((make_model(replicas=1),), (make_adapter("a"),), (make_slo(),), (make_policy(),)))
    world.settle()
    world.replace_model(make_model(replicas=0))
    world.settle()
    assert {action.key.split("/")[0] for action in world.history} == {
        "pod",
        "drain",
        "catalog",
        "status",
        "event",
    }
