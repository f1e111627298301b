"""Zones in the operator's plan: pods are placed, moved and covered for; what was learned survives a new operator."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_world import NOW, Operator, World, make_model, make_notice, make_pod, make_slo, of_kind
from sheaf_operator.planning import ClusterSnapshot, CreatePod, DeletePod, FleetIndex, PodFacts
from sheaf_operator.planning.market.fleet import AGAIN, again_times, records_of, remembered
from sheaf_operator.planning.market.settings import MarketSettings
from sheaf_operator.planning.market.values import Terms
from sheaf_operator.planning.template import template_hash

ZONES = ("a", "b", "c")
MARKET = MarketSettings.model_validate({"zones": ZONES, "prices": {"cpu": {"onDemand": 3.0, "spot": 1.0}}})


@dataclass
class Trader(Operator):
    """An operator that knows the market."""

    market: MarketSettings = MARKET

    def __init__(self, market: MarketSettings = MARKET) -> None:
        super().__init__()
        self.index = FleetIndex(market=market)


@dataclass
class Zones(World):
    """A world in which some zones have no spot capacity."""

    empty: set[str] = field(default_factory=set)

    def _create(self, action: CreatePod) -> None:
        super()._create(action)
        self.become(action.name, zone=action.zone)

    def _waits(self, pod: PodFacts) -> bool:
        return pod.spot and pod.zone in self.empty

    def _aged(self, pod: PodFacts) -> PodFacts:
        aged = super()._aged(pod)
        return replace(aged, node="" if self._waits(pod) and not pod.ready else f"node-{pod.name}")

    @property
    def places(self) -> list[str]:
        return sorted(pod.zone if pod.spot else "on-demand" for pod in self.snapshot.pods if pod.serving)

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.step()
            self.now += 9.0


def zones(replicas=2, market=MARKET, **spec) -> Zones:
    model = make_model(replicas=replicas, spot={"policy": "Preferred", "overProvision": 0, **spec})
    return Zones(ClusterSnapshot((model,)), operator=Trader(market))


def test_pods_are_made_in_different_zones_with_one_template():
    world = zones(3)
    world.wait(30)
    assert world.places == ["a", "b", "c"]
    assert len({pod.template_hash for pod in world.snapshot.pods}) == 1
    assert [world.step() for _ in range(3)] == [[]] * 3


def test_a_zone_without_capacity_is_left_for_another_and_remembered():
    world = zones(2)
    world.empty = {"a"}
    world.wait(150)
    assert world.places == ["b", "c"]
    assert {zone.zone: zone.refused for zone in world.snapshot.models[0].status.spot_zones} == {"a": 1.0}
    moved = [action.reason for action in of_kind(world.history, DeletePod)]
    assert moved[:1] == ["no spot capacity in a; c is tried"]


def test_no_capacity_anywhere_is_stood_in_for_and_mends_itself():
    world = zones(2)
    world.empty = set(ZONES)
    world.wait(200)
    assert world.places == ["on-demand", "on-demand"]
    assert world.snapshot.models[0].status.condition("Progressing").reason == "WaitingForSpot"
    world.empty = set()
    serving = []
    for _ in range(80):
        world.wait(10)
        serving.append(world.serving)
    assert min(serving) >= 2
    assert [place in ZONES for place in world.places] == [True, True]


def test_a_new_operator_knows_what_the_old_one_learned():
    world = zones(1)
    world.wait(30)
    (pod,) = world.snapshot.pods
    world.become(pod.name, notice=make_notice(30.0))
    replacement = of_kind(world.step(), CreatePod)
    assert [action.zone for action in replacement] == [zone for zone in ("b", "c") if zone != pod.zone][:1]
    world.operator = Trader()
    world.change(pod.name, lambda found: replace(found, phase="Terminating"))
    world.wait(30)
    (zone,) = world.snapshot.models[0].status.spot_zones
    assert (zone.zone, zone.losses) == (pod.zone, 1.0)


def test_a_batch_model_does_without_what_an_interactive_one_pays_for():
    batch = make_slo()
    batch = batch.model_copy(update={"spec": batch.spec.model_copy(update={"class_": "Batch"})})
    for slo, pods in ((make_slo(), 4), (batch, 2)):
        model = make_model(replicas=2, spot={"policy": "Preferred"}, sloRef={"name": "chat"})
        market = MARKET.model_copy(update={"headroom": 0.0})
        world = Zones(ClusterSnapshot((model,), slos=(slo,)), operator=Trader(market))
        world.wait(60)
        assert len(world.pods) == pods


def test_without_zones_or_spot_nothing_is_pinned():
    for world in (zones(2, MarketSettings()), zones(2, policy="Never", overProvision=None)):
        world.wait(30)
        assert {pod.zone for pod in world.snapshot.pods} == {""}


def test_a_lower_number_of_replicas_lets_spares_and_pods_go():
    world = zones(3, overProvision=1)
    world.wait(40)
    assert len(world.pods) == 4
    status = world.snapshot.models[0].status
    assert status.condition("Ready").message == "3 of 3 replicas ready"
    assert status.condition("Progressing").reason == "Complete"
    world.replace_model(make_model(replicas=1, spot={"policy": "Preferred", "overProvision": 0}))
    world.wait(90)
    assert len(world.pods) == 1


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(["lose", "empty", "fill", "wait", "scale"]), st.integers(0, 5)), max_size=12))
def test_capacity_comes_back_after_whatever_happens(happenings):
    world = zones(2)
    world.wait(20)
    for what, which in happenings:
        if what == "lose" and world.snapshot.pods:
            gone = world.snapshot.pods[which % len(world.snapshot.pods)]
            world.snapshot = replace(world.snapshot, pods=tuple(p for p in world.snapshot.pods if p is not gone))
        elif what == "empty":
            world.empty.add(ZONES[which % 3])
        elif what == "fill":
            world.empty.clear()
        elif what == "scale":
            world.replace_model(make_model(replicas=which, spot={"policy": "Preferred", "overProvision": 0}))
        world.wait(20.0)
    world.wait(150.0)
    wanted = world.snapshot.models[0].spec.replicas
    assert world.serving >= wanted
    assert len(world.pods) <= 2 * wanted + 1


def test_pods_that_wait_are_looked_at_after_their_patience_and_every_five_minutes():
    model = make_model(spot={"policy": "Preferred"})
    spot_hash = template_hash(model, spot=True)
    waits = make_pod(model, "p", template_hash=spot_hash, ready=False, phase="Pending", reason="Unschedulable")
    times = again_times([waits, make_pod(model, "q", template_hash=spot_hash)], spot_hash, Terms(), NOW)
    assert times == [waits.created_at + AGAIN, waits.created_at + 60.0]


@pytest.mark.parametrize(
    ("fields", "losses", "placed"),
    [
        ({"notice": make_notice()}, 1.0, 1.0),
        ({"phase": "Terminating", "reason": "NodeGone"}, 1.0, 1.0),
        ({"phase": "Terminating"}, 0.0, 1.0),
    ],
)
def test_what_became_of_a_pod_is_read_from_what_can_be_seen(fields, losses, placed):
    model = make_model()
    pod = make_pod(model, "p", spot=True, zone="a", node="n", **fields)
    (zone,) = remembered(model, [pod, make_pod(model, "q", spot=True, zone="a", node="n")], (), NOW)
    assert (zone.losses, zone.placed, zone.counted) == (losses, placed, (pod.uid,))
    kept = model.model_copy(update={"status": model.status.model_copy(update={"spot_zones": (zone,)})})
    assert remembered(kept, [pod], (), NOW + 5) == (zone,)
    assert records_of((zone,))["a"].updated == NOW


def test_prices_count_for_every_accelerator_of_a_pod():
    market = MarketSettings.model_validate(
        {"zones": ZONES, "prices": {"nvidia-l4": {"onDemand": 0.7, "zones": dict.fromkeys(ZONES, 0.3)}}}
    )
    terms = market.terms(make_model(accelerators=[{"type": "nvidia-l4", "count": 2}]), batch=False)
    assert (terms.on_demand, terms.spot, terms.price("b"), terms.priced) == (1.4, None, 0.6, True)
    assert not market.terms(make_model(), batch=True).priced
