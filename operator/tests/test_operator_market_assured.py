"""What was promised is covered whatever the load, peaks that are over cost nothing, and a new operator changes nothing."""

from datetime import UTC, datetime

import pytest
from operator_autoscaling import SPEED, asked
from operator_world import NOW, make_model, make_pod, make_policy, make_slo
from sheaf_crds.model import ModelAutoscaling
from sheaf_operator.planning import CreatePod, DeletePod, DrainPod, FleetIndex, Key, plan_key
from sheaf_operator.planning.autoscaling import Report, Scaler
from sheaf_operator.planning.market.ages import exposure
from sheaf_operator.planning.market.fleet import capacity, remembered
from sheaf_operator.planning.market.policy import decide
from sheaf_operator.planning.market.settings import MarketSettings
from sheaf_operator.planning.market.values import ENOUGH_LOADS, Ask, Held, Terms
from sheaf_operator.planning.scaling import Scaling, assured_replicas, known_loads
from sheaf_operator.planning.template import template_hash

HOUR = 3600.0
ZONES = ("a", "b", "c")
MARKET = MarketSettings.model_validate({"zones": ZONES, "prices": {"cpu": {"onDemand": 3.06, "spot": 0.97}}})
TERMS = Terms(ZONES, on_demand=3.06, spot=0.97, headroom=0.2)
DEAR = Terms(ZONES, on_demand=3.06, spot=3.2, headroom=0.2)
IDLE = (0.0,) * 60


def ask(replicas, pods=(), terms=TERMS, **fields):
    return Ask("Preferred", replicas, 0, None, tuple(pods), {}, terms, NOW, **fields)


def spot(count, stage="Ready", hours=20.0):
    return [Held(f"{stage}-{n}", True, ZONES[n % 3], stage, NOW - hours * HOUR) for n in range(count)]


def on_demand(count):
    return [Held(f"firm-{n}", False, "", "Ready", NOW - HOUR) for n in range(count)]


def world(replicas, **policy):
    """A Model on spot whose policy has looked once an hour's worth of minutes at nothing asked; all pods wait."""
    index = FleetIndex(market=MARKET)
    model = make_model(autoscalingPolicyRef={"name": "steady"}, spot={"policy": "Preferred"}, replicas=replicas)
    index.upsert(model)
    index.upsert(make_policy(signal="Concurrency", target=4, maxReplicas=8, **policy))
    scaler = Scaler(index, lambda _: SPEED)
    for minute in range(60):
        now = NOW + minute * 60.0
        scaler.observe({"g": Report(now, {"m": asked(0.0)}, {})}, now)
    for n in range(replicas):
        waits = {"ready": False, "phase": "Pending", "reason": "Unschedulable", "agent": None, "created_at": now - 600}
        pod_hash = template_hash(model, spot=True)
        index.upsert(make_pod(model, f"s{n}", template_hash=pod_hash, spot=True, zone=ZONES[n % 3], **waits))
    return index, now


def started(index, now):
    """On-demand and spot pods that the plan starts."""
    actions = [one for one in plan_key(index, Key("Model", "m"), now).actions if isinstance(one, CreatePod)]
    return sum(not one.template.spot for one in actions), sum(one.template.spot for one in actions)


@pytest.mark.parametrize("floor", [1, 3])
def test_the_floor_is_covered_on_demand_where_nothing_was_asked_for_an_hour(floor):
    index, now = world(floor, minReplicas=floor)
    assert index.scaling("m").loads == IDLE
    assert started(index, now)[0] == floor


def test_the_floor_of_a_window_is_covered_before_its_load_comes():
    opened = {"name": "morning", "start": "00:00", "end": "24:00", "minReplicas": 3}
    index, now = world(3, minReplicas=1, schedules=[opened])
    assert (index.scaling("m").least, started(index, now)[0]) == (3, 3)


def test_a_window_that_opens_while_a_replica_starts_counts_already():
    soon = datetime.fromtimestamp(NOW + 59 * 60.0 + 60.0, UTC)
    window = {"name": "soon", "start": f"{soon:%H:%M}", "end": "24:00", "minReplicas": 6, "maxReplicas": 7}
    index, _ = world(1, minReplicas=1, schedules=[window])
    assert (index.scaling("m").replicas, index.scaling("m").least) == (6, 6)


def test_one_replica_is_covered_whatever_its_load_is_worth():
    for terms, loads in ((TERMS, (0.0025,) * 60), (Terms(ZONES, 3.06, 0.97, shortfall=2.0), (0.45,) * 60)):
        assert decide(ask(1, spot(1, "Waiting"), terms, loads=loads)).on_demand == 1


def test_above_what_is_assured_on_demand_stands_in_for_the_load_only():
    waiting = spot(6, "Waiting")
    assert decide(ask(6, waiting, loads=IDLE, least=2)).on_demand == 2
    assert decide(ask(6, [*spot(1), *spot(5, "Waiting")], loads=IDLE, least=2)).on_demand == 1
    assert decide(ask(6, [*waiting, *on_demand(2)], loads=IDLE, least=2)).on_demand == 2
    assert decide(ask(6, waiting, loads=(3.9,) * 60, least=2)).on_demand == 4


@pytest.mark.parametrize(("replicas", "loads"), [(1, IDLE), (4, (0.9,) * 60), (4, ())])
def test_where_no_spot_is_worth_its_price_everything_wanted_runs_on_demand(replicas, loads):
    begun = decide(ask(replicas, terms=DEAR, loads=loads))
    assert (begun.on_demand, begun.spot) == (replicas, 0)
    settled = decide(ask(replicas, on_demand(replicas), DEAR, loads=loads))
    assert (settled.on_demand, settled.spot) == (replicas, 0)


def test_what_is_declared_is_assured_where_nobody_autoscales():
    model = make_model(replicas=4, spot={"policy": "Preferred"}, sloRef={"name": "chat"})
    assert (assured_replicas(model, None, None, 4), known_loads(model, None)) == (4, None)
    slo = make_slo()
    index = FleetIndex(market=MARKET)
    index.upsert(model)
    index.upsert(slo.model_copy(update={"spec": slo.spec.model_copy(update={"class_": "Batch"})}))
    for n in range(4):
        waits = {"ready": False, "phase": "Pending", "reason": "Unschedulable", "agent": None, "created_at": NOW - 600}
        pod_hash = template_hash(model, spot=True)
        index.upsert(make_pod(model, f"s{n}", template_hash=pod_hash, spot=True, zone=ZONES[n % 3], **waits))
    assert started(index, NOW)[0] == 4


def test_before_autoscaling_has_looked_the_declared_floors_are_assured():
    model = make_model(replicas=4, minReplicas=1, autoscalingPolicyRef={"name": "steady"})
    assert assured_replicas(model, make_policy(minReplicas=2, maxReplicas=8), None, 4) == 2
    assert assured_replicas(model, None, None, 4) == 1
    assert known_loads(model, None) == ()
    assert known_loads(model, Scaling(4, ModelAutoscaling(policy="steady", desired_replicas=4))) is None


@pytest.mark.parametrize("ago", [1, 15, 59])
def test_a_peak_that_is_over_holds_no_pods(ago):
    loads = (10.0,) * (60 - ago) + (1.0,) * ago
    assert decide(ask(2, spot(2), loads=loads)).spares == 0
    assert decide(ask(2, [*spot(2), *spot(2, "Waiting", 0.2)], loads=loads)).stand_ins == 0


def settled_fleet():
    index = FleetIndex(market=MARKET)
    model = make_model(spot={"policy": "Preferred"}, autoscalingPolicyRef={"name": "steady"}, replicas=4)
    index.upsert(model)
    index.upsert(make_policy(signal="Concurrency", target=4, minReplicas=4, maxReplicas=8))
    for n in range(4):
        pod_hash = template_hash(model, spot=True)
        where = {"spot": True, "zone": ZONES[n % 3], "node": f"n{n}", "created_at": NOW - HOUR}
        index.upsert(make_pod(model, f"s{n}", template_hash=pod_hash, **where))
    return index


def test_a_new_operator_leaves_the_fleet_as_it_is_until_it_knows_the_loads():
    index = settled_fleet()
    scaler = Scaler(index, lambda _: SPEED)
    for minute in range(-1, 60):
        now = NOW + minute * 60.0
        done = [one for one in plan_key(index, Key("Model", "m"), now).actions if _moves(one)]
        assert done == [], f"after {minute} minutes"
        scaler.observe({"g": Report(now, {"m": asked(0.4)}, {})}, now)


def _moves(action):
    return isinstance(action, (CreatePod, DeletePod, DrainPod))


def test_spares_and_stand_ins_that_are_there_stay_until_loads_are_known():
    held = [*spot(6, hours=40.0)]
    assert decide(ask(4, held, loads=())).spares == 2
    assert decide(ask(4, held, loads=(0.5,) * ENOUGH_LOADS)).spares == 0
    waiting = [*spot(1), *spot(3, "Waiting", 0.2), *on_demand(3)]
    assert decide(ask(4, waiting, loads=())).stand_ins == 3
    assert decide(ask(4, waiting, loads=(0.5,) * ENOUGH_LOADS)).stand_ins == 0


def test_one_idle_minute_is_no_record_of_the_load():
    waiting = [*spot(1), *spot(3, "Waiting", 0.2)]
    few, enough = ((0.0,) * count for count in (ENOUGH_LOADS - 1, ENOUGH_LOADS))
    assert decide(ask(4, waiting, loads=few)).stand_ins == decide(ask(4, waiting)).stand_ins > 0
    assert decide(ask(4, waiting, loads=enough)).stand_ins == 0


def test_hours_of_waiting_for_a_node_are_not_hours_that_a_pod_has_lasted():
    model = make_model(replicas=2, spot={"policy": "Preferred"})
    hashes = template_hash(model), template_hash(model, spot=True)

    def spares(created, scheduled):
        times = {"created_at": NOW - created, "scheduled_at": NOW - scheduled}
        pods = [make_pod(model, z, template_hash=hashes[1], spot=True, zone=z, node="n", **times) for z in ("a", "b")]
        return capacity(model, MARKET.terms(model, batch=False), 2, pods, hashes, NOW, (1.6,) * 60).spares

    assert spares(20 * HOUR, 360.0) == spares(360.0, 360.0) > spares(20 * HOUR, 20 * HOUR)


def test_the_memory_of_a_zone_counts_hours_on_a_node():
    model = make_model()
    times = {"created_at": NOW - 20 * HOUR, "scheduled_at": NOW - HOUR}
    pod = make_pod(model, "p", spot=True, zone="a", node="n", phase="Terminating", **times)
    (zone,) = remembered(model, [pod], (), NOW)
    assert zone.hours == pytest.approx(exposure(1.0), abs=1e-3)


def test_a_floor_alone_is_a_reason_to_plan_anew():
    index, record = settled_fleet(), ModelAutoscaling(policy="steady", desired_replicas=4)
    index.note_scaling("m", Scaling(4, record, IDLE, 1))
    assert index.note_scaling("m", Scaling(4, record, IDLE, 2)) == {Key("Model", "m")}
