"""The index: planning what changed is planning everything, and one change touches a handful of keys."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_world import NOW, World, make_adapter, make_model, make_pod, make_policy, make_slo, of_kind
from sheaf_crds import Model
from sheaf_crds.agent_api import AdapterState, AgentState, EngineLoad
from sheaf_crds.model import ModelAutoscaling
from sheaf_operator.planning import (
    ClusterSnapshot,
    CreatePod,
    Finding,
    FleetIndex,
    Key,
    Plan,
    PodFacts,
    UpdateStatus,
    plan,
    plan_key,
)
from sheaf_operator.planning.groups import Groups

DELETED = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
NAMES = ("m", "n", "o")

names = st.sampled_from(NAMES)
refs = st.sampled_from([None, "x", "y"])
ages = st.integers(-2, 2).map(lambda days: {"created": NOW + days})
tombs = st.sampled_from([{}, {}, {}, DELETED])


def _ref(name: str | None) -> dict[str, str] | None:
    return {"name": name} if name else None


@st.composite
def models(draw) -> Model:
    spec = {"replicas": draw(st.integers(0, 2)), "sloRef": _ref(draw(refs)), "autoscalingPolicyRef": _ref(draw(refs))}
    return make_model(
        draw(names), metadata=draw(ages) | draw(tombs), **spec, task=draw(st.sampled_from(["Generate", "Embed"]))
    )


@st.composite
def pods(draw) -> PodFacts:
    state = AdapterState(name="a", state="Resident", activity=draw(st.integers(0, 10)) / 10)
    load = EngineLoad(running=draw(st.integers(0, 1)))
    agent = AgentState(engine="Ready", load=load, adapters=draw(st.sampled_from([(), (state,)])))
    model = make_model(draw(names))
    owner = draw(st.sampled_from([model.metadata.uid, "uid-of-another"]))
    return make_pod(
        model, f"{draw(names)}-{draw(st.integers(0, 1))}", owner_uid=owner, agent=draw(st.sampled_from([None, agent]))
    )


adapters = st.builds(
    lambda name, model, metadata: make_adapter(name, model, metadata=metadata),
    st.sampled_from([*NAMES, "a", "b"]),
    names,
    st.builds(lambda age, tomb: age | tomb, ages, tombs),
)
usables = st.sampled_from(
    [make_slo("x"), make_slo("y"), make_policy("x"), make_policy("y", minReplicas=2, maxReplicas=4)]
)
upserts = st.one_of(models(), adapters, pods(), usables)
removals = st.tuples(
    st.sampled_from(["Model", "Adapter", "SLO", "AutoscalingPolicy", "Pod"]), st.sampled_from([*NAMES, "a", "x", "m-0"])
)
changes = st.lists(st.one_of(upserts, removals), min_size=1, max_size=12)


def apply(index: FleetIndex, change) -> frozenset[Key]:
    return index.remove(*change) if isinstance(change, tuple) else index.upsert(change)


def plans_of(index: FleetIndex) -> dict[Key, Plan]:
    return {key: plan_key(index, key, NOW) for key in sorted(index.keys())}


@settings(deadline=None, max_examples=60)
@given(changes, changes)
def test_every_key_whose_plan_changed_is_reported(before, after):
    """So planning the reported keys is planning everything."""
    index = FleetIndex()
    for change in before:
        apply(index, change)
    plans = plans_of(index)
    for change in after:
        dirty = apply(index, change)
        now = plans_of(index)
        assert {key for key in now if plans.get(key) != now[key]} <= dirty
        plans = now


@settings(deadline=None, max_examples=60)
@given(changes)
def test_the_plan_of_all_keys_is_the_plan_of_the_snapshot(history):
    index = FleetIndex()
    for change in history:
        apply(index, change)
    actions = [action for key in sorted(index.keys()) for action in plan_key(index, key, NOW).actions]
    assert tuple(actions) == plan(index.snapshot(), NOW).actions


@settings(deadline=None, max_examples=60)
@given(changes)
def test_one_change_of_a_model_an_adapter_or_a_pod_touches_a_handful_of_keys(history):
    index = FleetIndex()
    for change in history:
        dirty = apply(index, change)
        if isinstance(change, Model):
            assert len(dirty) <= 6
        elif isinstance(change, PodFacts) or getattr(change, "kind", "") == "Adapter":
            assert len(dirty) <= 3


@settings(deadline=None, max_examples=60)
@given(changes, changes)
def test_a_new_snapshot_is_the_changes_between(before, after):
    index, other = FleetIndex(), FleetIndex()
    for change in before:
        apply(index, change)
    for change in after:
        apply(other, change)
    plans = plans_of(index)
    dirty = index.replace(other.snapshot())
    assert index.snapshot() == other.snapshot()
    assert index.keys() == other.keys()
    assert {key for key, planned in plans_of(index).items() if plans.get(key) != planned} <= dirty
    assert index.replace(other.snapshot()) == frozenset()


def filled() -> FleetIndex:
    index = FleetIndex()
    for name in NAMES:
        index.upsert(make_model(name, sloRef={"name": "x"}, autoscalingPolicyRef={"name": "x"}))
    for item in (make_adapter("a"), make_slo("x"), make_policy("x"), make_pod(make_model(), "p")):
        index.upsert(item)
    return index


def test_each_thing_can_be_asked_for():
    index = filled()
    found = index.model("m"), index.adapter("a"), index.slo("x"), index.policy("x"), index.pod("p")
    assert [item.name for item in found if item] == ["m", "a", "x", "x", "p"]
    assert index.users_of("SLO", "x") == index.users_of("AutoscalingPolicy", "x") == 3


def test_an_slo_that_comes_or_goes_touches_its_models_but_not_one_that_changes():
    index = filled()
    assert index.upsert(
        make_slo("x").model_copy(update={"status": index.slo("x").status.model_copy(update={"models": 9})})
    ) == {Key("SLO", "x")}
    assert index.remove("SLO", "x") == {Key("SLO", "x"), *(Key("Model", name) for name in NAMES)}
    assert index.remove("SLO", "x") == frozenset()


@pytest.mark.parametrize(
    ("kind", "field", "item"),
    [("SLO", "sloRef", make_slo("x")), ("AutoscalingPolicy", "autoscalingPolicyRef", make_policy("x"))],
)
def test_what_cannot_be_read_is_not_said_to_be_missing(kind, field, item):
    index, keys = FleetIndex(), {Key("Model", "m")}
    index.upsert(make_model(**{field: {"name": "x"}}))

    def resolved() -> tuple[str, str]:
        actions = plan_key(index, Key("Model", "m"), NOW).actions
        found = next(one.status for one in actions if one.key.startswith("status/Model")).condition("Resolved")
        return found.reason, found.message

    assert index.note_unreadable(kind, "x") >= keys
    reason, message = resolved()
    assert reason == f"{kind}Invalid"
    assert message.startswith(f"{kind} x cannot be read; its own Ready condition says why")
    assert index.upsert(item) >= keys
    assert not index.unreadable(kind, "x")
    assert index.note_unreadable(kind, "x") >= keys
    assert index.remove(kind, "x") >= keys
    assert resolved()[0] == f"{kind}NotFound"


def test_without_a_policy_that_can_be_read_the_number_decided_last_stays_and_says_why():
    index = FleetIndex()
    record = ModelAutoscaling(policy="steady", desired_replicas=5)
    model = make_model(autoscalingPolicyRef={"name": "steady"})
    index.upsert(model.model_copy(update={"status": model.status.model_copy(update={"autoscaling": record})}))
    index.note_unreadable("AutoscalingPolicy", "steady")
    actions = plan_key(index, Key("Model", "m"), NOW).actions
    assert len(of_kind(actions, CreatePod)) == 5
    status = of_kind(actions, UpdateStatus)[0].status
    assert (
        "AutoscalingPolicy steady cannot be read; the number that was decided last" in status.condition("Ready").message
    )


def test_other_kinds_that_cannot_be_read_are_gone_for_what_is_planned():
    index = FleetIndex()
    index.upsert(make_model())
    assert index.note_unreadable("Model", "m") == {Key("Model", "m")}
    assert index.model("m") is None
    assert index.note_unreadable("Adapter", "a") == index.remove("Adapter", "a") == frozenset()


def test_a_policy_that_changes_touches_the_models_whose_bounds_it_sets():
    assert filled().upsert(make_policy("x", maxReplicas=3)) >= {Key("Model", name) for name in NAMES}


def test_two_of_one_name_touch_each_other():
    """The Adapter n belongs to the Model m; which of the two is served depends on both."""
    index = filled()
    assert index.upsert(make_adapter("n", "m")) == {Key("Model", "m"), Key("Model", "n")}
    assert Key("Model", "m") in index.remove("Model", "n")
    assert Key("Model", "m") in index.upsert(make_model("n"))
    assert index.remove("Adapter", "n") == {Key("Model", "m"), Key("Model", "n")}


def test_what_decides_nothing_touches_nothing():
    """New resource versions, and the load of a pod that stays."""
    index, pod = filled(), make_pod(make_model(), "p")
    renewed = make_model(metadata={"resourceVersion": "7"}, sloRef={"name": "x"}, autoscalingPolicyRef={"name": "x"})
    assert index.upsert(renewed) == frozenset()
    busy = AgentState(engine="Ready", version=9, load=EngineLoad(running=3))
    assert index.upsert(replace(pod, agent=busy)) == frozenset()
    assert index.pod("p").agent.load.running == 3
    leaving = busy.model_copy(update={"draining": True})
    assert index.upsert(replace(pod, agent=leaving)) == {Key("Model", "m")}
    idle = leaving.model_copy(update={"load": EngineLoad()})
    assert index.upsert(replace(pod, agent=idle)) == {Key("Model", "m")}


@pytest.mark.parametrize("uid", ["uid-m", "uid-of-another"])
def test_a_removal_may_mean_one_object_only(uid):
    index = filled()
    assert bool(index.remove("Model", "m", uid)) == (uid == "uid-m")
    assert (index.model("m") is None) == (uid == "uid-m")


def test_a_removal_of_what_is_not_there_touches_nothing():
    index = filled()
    for kind in ("Model", "Adapter", "SLO", "AutoscalingPolicy", "Pod"):
        assert index.remove(kind, "nothing") == index.remove(kind, "nothing", "uid") == frozenset()
    assert not index.remove("Pod", "p", "uid-of-another")
    assert index.remove("Pod", "p", "uid-p") == {Key("Model", "m")}


def test_an_object_that_is_being_deleted_is_gone_also_one_that_came_unseen_after_what_is_known():
    index = filled()
    assert Key("Model", "m") in index.upsert(make_model(metadata=DELETED))
    assert index.model("m") is None
    index.upsert(make_model("n", metadata=DELETED | {"uid": "uid-of-the-second"}))
    assert index.model("n") is None


def test_other_settings_are_other_templates():
    index = filled()
    changed = replace(index.snapshot(), settings_digest="other")
    assert index.replace(changed) == {Key("Model", name) for name in NAMES}
    world = World(ClusterSnapshot((make_model(replicas=2),)))
    world.settle()
    before = {pod.template_hash for pod in world.snapshot.pods}
    world.snapshot = replace(world.snapshot, settings_digest="another image")
    world.settle()
    assert len(world.pods) == 2
    assert not before & {pod.template_hash for pod in world.snapshot.pods}


def test_what_blocks_is_said_first_and_references_before_what_is_disregarded():
    lost = Finding("AcceleratorDisregarded", "4 l4: no alternative; remove it", blocks=False)
    index = FleetIndex(obstacle=lambda _: lost)

    def resolved(**spec) -> str:
        index.upsert(make_model(**spec))
        actions = plan_key(index, Key("Model", "m"), NOW).actions
        return next(one.status for one in actions if one.key.startswith("status/Model")).condition("Resolved").reason

    assert resolved(replicas=0) == "AcceleratorDisregarded"
    assert resolved(replicas=0, sloRef={"name": "gone"}) == "SLONotFound"
    index.upsert(make_adapter("m", metadata={"created": NOW - 50}))
    assert resolved(replicas=0) == "NameClash"


def test_a_model_of_which_no_pod_can_be_made_says_why_and_keeps_those_that_it_has():
    why = Finding("AcceleratorUnknown", "this installation has none of type x; correct spec.accelerators")
    index = FleetIndex(obstacle=lambda _: why)
    index.upsert(make_model(replicas=2))
    index.upsert(make_pod(make_model(), "p", template_hash="outdated"))
    status, event = plan_key(index, Key("Model", "m"), NOW).actions
    assert (
        status.status.condition("Ready").reason == status.status.condition("Progressing").reason == "AcceleratorUnknown"
    )
    assert (event.type, event.message) == ("Warning", why.message)


def test_a_key_without_anything_has_no_plan():
    for kind in ("Model", "SLO", "AutoscalingPolicy"):
        assert plan_key(FleetIndex(), Key(kind, "nothing"), NOW).actions == ()


def test_groups_forget_what_is_empty():
    groups = Groups()
    groups.move("a", None, "g")
    groups.move("b", None, "g")
    groups.move("a", "g", "h")
    groups.move("b", "g", None)
    groups.move("a", "h", "h")
    assert (list(groups.names()), groups.of("h"), groups.size("h"), groups.of("g"), groups.size("g")) == (
        ["h"],
        ["a"],
        1,
        [],
        0,
    )
