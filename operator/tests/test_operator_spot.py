"""Spot: the floor is on-demand, spot that cannot be had is stood in for, and moving between the two costs nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from operator_world import NOW, World, make_model, of_kind
from sheaf_crds.model import Spot
from sheaf_operator.planning import ClusterSnapshot, CreatePod, plan
from sheaf_operator.planning.spot import SPOT_PATIENCE, split


def world_of(**spec) -> World:
    return World(ClusterSnapshot((make_model(**spec),)))


def sorts(world: World) -> list[bool]:
    """Whether each pod that serves is a spot pod."""
    return sorted(pod.spot for pod in world.snapshot.pods if pod.serving)


@pytest.mark.parametrize(
    ("spot", "expected"),
    [
        ({"policy": "Never"}, [False] * 3),
        ({"policy": "Required"}, [True] * 3),
        ({"policy": "Preferred"}, [True] * 3),
        ({"policy": "Preferred", "onDemandFloor": 1}, [False, True, True]),
        ({"policy": "Preferred", "onDemandFloor": 5}, [False] * 3),
    ],
)
def test_the_first_replicas_up_to_the_floor_are_on_demand_and_the_rest_as_the_policy_says(spot, expected):
    world = world_of(replicas=3, spot=spot)
    world.settle()
    assert sorts(world) == expected


@pytest.mark.parametrize(
    ("spot", "expected"),
    [
        ({"policy": "Preferred", "overProvision": 2}, [True] * 5),
        ({"policy": "Preferred", "overProvision": 2, "onDemandFloor": 2}, [False, False, True, True]),
        ({"policy": "Required", "overProvision": 1}, [True] * 4),
        ({"policy": "Required", "overProvision": 50}, [True] * 6),
        ({"policy": "Never", "overProvision": 2}, [False] * 3),
    ],
)
def test_declared_spares_are_held_without_zones_too_and_the_status_counts_them_apart(spot, expected):
    world = world_of(replicas=3, spot=spot)
    world.settle()
    assert sorts(world) == expected
    status = world.snapshot.models[0].status
    assert status.condition("Ready").message == "3 of 3 replicas ready"
    assert status.condition("Progressing").reason == "Complete"
    world.replace_model(make_model(replicas=0, spot=spot))
    world.settle()
    assert not world.pods


def test_spares_need_no_stand_ins():
    assert split(Spot(policy="Preferred", over_provision=1), 3, 1).stand_ins == 0
    assert split(Spot(policy="Preferred", over_provision=1), 3, 4).stand_ins == 3


def test_a_pod_to_be_made_says_for_which_capacity():
    made = of_kind(
        plan(ClusterSnapshot((make_model(replicas=2, spot={"policy": "Preferred", "onDemandFloor": 1}),)), NOW).actions,
        CreatePod,
    )
    assert [action.template.spot for action in made] == [False, True]
    assert len({action.template.hash for action in made}) == 2


def test_on_demand_stands_in_until_spot_can_be_had_and_goes_then():
    world = world_of(replicas=2, spot={"policy": "Preferred", "onDemandFloor": 1})
    world.no_spot = True
    world.step()
    while world.now < NOW + SPOT_PATIENCE - 1:
        world.step()
        assert len(world.pods) == 2
    world.settle()
    assert sorts(world) == [False, False]
    assert len(world.pods) == 3
    status = world.snapshot.models[0].status
    assert status.condition("Ready").status == "True"
    assert status.condition("Progressing").reason == "WaitingForSpot"
    assert status.condition("Progressing").message == "1 on-demand replica until spot capacity can be had"
    assert [world.step() for _ in range(3)] == [[]] * 3
    world.no_spot = False
    for _ in range(10):
        world.step()
        assert world.serving >= 2
    world.settle()
    assert sorts(world) == [False, True]
    assert len(world.pods) == 2
    assert {a.reason for a in world.history if isinstance(a, CreatePod)} >= {
        "spot capacity cannot be had at present; on-demand stands in"
    }


def test_every_spot_pod_that_cannot_be_had_is_stood_in_for_also_beyond_the_surge():
    world = world_of(replicas=3, spot={"policy": "Preferred"})
    world.no_spot = True
    world.settle()
    assert sorts(world) == [False] * 3
    assert len(world.pods) == 6
    world.replace_model(make_model(replicas=1, spot={"policy": "Preferred"}))
    world.settle()
    assert (sorts(world), len(world.pods)) == ([False], 2)


def test_where_spot_is_required_nothing_stands_in():
    world = world_of(replicas=1, spot={"policy": "Required"})
    world.no_spot = True
    world.settle()
    assert sorts(world) == []
    assert len(world.pods) == 1
    assert world.snapshot.models[0].status.condition("Ready").reason == "Unschedulable"


SPOTS = [
    {"policy": "Never"},
    {"policy": "Required"},
    {"policy": "Preferred"},
    {"policy": "Preferred", "onDemandFloor": 1},
]


@pytest.mark.parametrize("before", SPOTS, ids=str)
@pytest.mark.parametrize("after", SPOTS, ids=str)
def test_a_change_of_the_split_moves_pods_without_costing_capacity(before, after):
    world = world_of(replicas=2, spot=before)
    world.settle()
    world.replace_model(make_model(replicas=2, spot=after))
    for _ in range(20):
        world.step()
        assert world.serving >= 2
        assert len([pod for pod in world.snapshot.pods if pod.live]) <= 3
    fresh = world_of(replicas=2, spot=after)
    fresh.settle()
    assert sorts(world) == sorts(fresh)


def test_a_move_says_why():
    world = world_of(replicas=1)
    world.settle()
    world.replace_model(make_model(replicas=1, spot={"policy": "Required"}))
    world.settle()
    why = "1 replica is wanted (0 on-demand, 1 on spot)"
    assert {action.reason for action in world.history} >= {why, f"{why}, 1 is there"}


policies = st.sampled_from(["Never", "Preferred", "Required"])


@given(policies, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_a_split_covers_the_replicas_and_stands_in_for_no_more_than_waits(policy, floor, replicas, waiting):
    divided = split(Spot(policy=policy, on_demand_floor=floor), replicas, waiting)
    assert divided.on_demand + divided.spot == replicas + divided.stand_ins
    assert divided.stand_ins <= min(waiting, divided.spot)
    assert divided.spot == 0 or policy != "Never"
    assert divided.on_demand == 0 or policy != "Required"
    if policy == "Preferred":
        assert divided.on_demand >= min(floor, replicas)
