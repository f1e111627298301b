"""The market policy: zones are remembered, choices are weighed by what they cost, and never fewer pods than wanted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sheaf_operator.planning.market import Ask, Held, Sighting, Terms, ZoneRecord, decide, estimate, remember
from sheaf_operator.planning.market.ages import exposure
from sheaf_operator.planning.market.memory import HALF_LIFE, MOST_ZONES
from sheaf_operator.planning.market.policy import MOST_SPARES, waiting_in_vain

NOW = 1_000_000.0
ZONES = ("a", "b", "c")
PRICED = Terms(ZONES, on_demand=3.0, spot=1.0)
COUNTED = Terms(ZONES)


def ask(replicas, pods=(), terms=PRICED, records=(), **fields):
    values = {"policy": "Preferred", "floor": 0, "spare": 0, "now": NOW, **fields}
    return Ask(replicas=replicas, pods=tuple(pods), records={r.zone: r for r in records}, terms=terms, **values)


def spot(name, zone, stage="Ready", age=18_000.0):
    return Held(name, True, zone, stage, NOW - age)


def firm(name, stage="Ready"):
    return Held(name, False, "", stage, NOW - 600.0)


def bad(zone, losses=30.0):
    return ZoneRecord(zone, losses=losses, hours=6.0, placed=30.0, updated=NOW)


def empty(zone):
    return ZoneRecord(zone, updated=NOW, empty_at=NOW)


def test_without_spot_and_without_replicas_there_is_nothing_to_choose():
    assert decide(ask(3, policy="Never")).on_demand == 3
    assert (decide(ask(0)).spot, decide(ask(0)).on_demand) == (0, 0)


def test_new_pods_are_spread_over_zones_that_are_as_good():
    assert sorted(decide(ask(3)).places) == ["a", "b", "c"]
    assert sorted(decide(ask(3, terms=COUNTED)).places) == ["a", "b", "c"]


@pytest.mark.parametrize("terms", [PRICED, COUNTED])
def test_a_zone_that_lost_many_pods_is_used_last(terms):
    assert "a" not in decide(ask(2, terms=terms, records=[bad("a", 8.0)])).places


def test_the_cheaper_zone_is_used_first_where_it_is_as_safe():
    terms = Terms(ZONES, on_demand=3.0, spot=1.0, spot_in={"c": 0.5})
    assert decide(ask(1, terms=terms)).places == ("c",)


def test_where_every_zone_costs_more_than_on_demand_no_spot_is_begun_and_none_is_thrown_away():
    awful = [bad(zone, 400.0) for zone in ZONES]
    assert (decide(ask(2, records=awful)).spot, decide(ask(2, records=awful)).on_demand) == (0, 2)
    held = decide(ask(2, [spot("x", "a")], records=awful))
    assert (held.spot, held.on_demand) == (1, 1)
    assert decide(ask(2, records=awful, policy="Required")).spot == 2


def test_the_floor_is_on_demand_and_required_spot_has_none():
    assert (decide(ask(3, floor=1)).on_demand, decide(ask(3, floor=1)).spot) == (1, 2)
    required = decide(ask(3, [spot("x", "a", "Waiting", 999.0)], policy="Required"))
    assert (required.on_demand, required.spot, len(required.places)) == (0, 3, 2)


def test_on_demand_does_not_stand_in_for_what_starts_as_soon_itself():
    assert decide(ask(2, [spot("x", "a"), spot("y", "b", "Starting", 1.0)])).stand_ins == 0
    assert decide(ask(2, [spot("x", "a"), spot("y", "b", "Waiting", 1.0)])).stand_ins == 0


@pytest.mark.parametrize("terms", [PRICED, COUNTED])
def test_on_demand_stands_in_for_a_pod_that_waits_in_vain_and_stays_until_spot_serves(terms):
    waits = spot("y", "b", "Waiting", 61.0)
    assert decide(ask(2, [spot("x", "a"), waits], terms)).stand_ins == 1
    assert decide(ask(2, [spot("x", "a"), spot("y", "c", "Starting"), firm("z")], terms)).stand_ins == 1
    assert decide(ask(2, [spot("x", "a"), spot("y", "c"), firm("z")], terms)).stand_ins == 0


def test_on_demand_stands_in_at_once_where_no_zone_is_known_to_have_capacity():
    assert decide(ask(1, records=[empty(zone) for zone in ZONES])).stand_ins == 1
    waits = [spot("y", "b", "Waiting", 1.0)]
    assert decide(ask(1, waits, records=[empty("b")])).stand_ins == 1
    assert decide(ask(1, waits, COUNTED, records=[empty("b")])).stand_ins == 0


def test_a_pod_that_waits_in_vain_is_tried_in_another_zone():
    decision = decide(ask(1, [spot("y", "b", "Waiting", 61.0)], records=[empty("a")]))
    assert [(move.name, move.zone) for move in decision.moves] == [("y", "c")]
    assert decision.moves[0].reason == "no spot capacity in b; c is tried"
    assert decide(ask(1, [spot("y", "b", "Waiting", 59.0)])).moves == ()
    assert decide(ask(1, [spot("y", "", "Waiting", 61.0)])).moves == ()
    awful = [bad(zone, 400.0) for zone in ZONES]
    assert decide(ask(1, [spot("y", "b", "Waiting", 61.0)], records=awful)).moves == ()


def test_two_pods_that_wait_in_vain_go_to_different_zones():
    decision = decide(ask(2, [spot("x", "a", "Waiting", 61.0), spot("y", "a", "Waiting", 61.0)]))
    assert {move.zone for move in decision.moves} == {"b", "c"}


def test_with_fewer_than_two_zones_the_scheduler_chooses():
    assert decide(ask(2, terms=Terms(("a",), on_demand=3.0, spot=1.0))).places == ("", "")
    assert decide(ask(2, terms=Terms())).places == ("", "")


def test_a_spare_is_held_where_the_shortfall_that_it_prevents_costs_more():
    pods = [spot("x", "a"), spot("y", "b")]
    assert decide(ask(2, pods, spare=None)).spares == 1
    assert decide(ask(2, pods, spare=None, loads=(0.5, 1.0) * 30)).spares == 0
    assert decide(ask(2, pods, Terms(ZONES, 3.0, 1.0, shortfall=1.0), spare=None)).spares == 0
    assert decide(ask(2, pods, COUNTED, spare=None)).spares == 0
    assert decide(ask(2, pods, spare=2)).spares == 2


def test_a_spare_that_is_there_stays_while_it_is_worth_half_its_price():
    terms = Terms(ZONES, 3.0, 1.0, shortfall=60.0)
    two = [spot("x", "a"), spot("y", "b")]
    assert decide(ask(2, two, terms, spare=None)).spares == 0
    assert decide(ask(2, [*two, spot("z", "c")], terms, spare=None)).spares == 1


def test_a_spare_worth_its_price_on_demand_is_bought_there_where_spot_has_none():
    pods = [spot("x", "a"), spot("y", "b"), spot("z", "c", "Waiting", 61.0)]
    rich = Terms(ZONES, 3.0, 1.0, shortfall=1000.0)
    assert decide(ask(2, pods, rich, spare=None, records=[bad("a", 2.0)])).stand_ins == 1
    assert decide(ask(2, pods, rich, spare=None, policy="Required")).stand_ins == 0


def test_reasons_say_what_was_expected():
    said = " ".join(decide(ask(1, spare=1, records=[empty(zone) for zone in ZONES])).reasons)
    assert "losses an hour and 2% chance of capacity expected" in said
    assert "an hour all in" in said
    assert "1 spare on spot" in said
    assert "1 on demand while spot is not ready" in said
    assert "all in" not in " ".join(decide(ask(1, terms=COUNTED)).reasons)


def test_prices_are_known_only_where_all_are():
    assert PRICED.priced
    assert Terms(ZONES, 3.0, None, dict.fromkeys(ZONES, 1.0)).priced
    assert not Terms(ZONES, 3.0, None, {"a": 1.0}).priced
    assert not Terms(ZONES, None, 1.0).priced
    assert COUNTED.price("a") == 0.0


def test_waiting_is_in_vain_after_the_patience_and_only_without_a_node():
    assert not waiting_in_vain(spot("x", "a", "Starting", 999.0), ask(1))
    assert waiting_in_vain(spot("x", "a", "Waiting", 60.0), ask(1))


def seen(uid, zone="a", fate="Lost", hours=2.0, at=NOW):
    return Sighting(uid, zone, fate, hours, at)


def test_a_pod_is_counted_once_as_long_as_it_is_seen():
    once = remember({}, [seen("u1")], frozenset({"u1"}))
    assert (once["a"].losses, once["a"].hours, once["a"].placed, once["a"].empty_at) == (1.0, exposure(2.0), 1.0, NOW)
    assert remember(once, [seen("u1", at=NOW + 60)], frozenset({"u1"})) == once
    later = remember(once, [seen("u2", fate="Retired")], frozenset({"u2"}))
    assert (later["a"].losses, later["a"].hours, later["a"].counted) == (1.0, 2 * exposure(2.0), ("u2",))


def test_a_pod_that_found_no_capacity_was_held_for_no_time():
    found = remember({}, [seen("u1", fate="Refused")], frozenset())["a"]
    assert (found.refused, found.hours, found.losses, found.empty_at) == (1.0, 0.0, 0.0, NOW)


def test_nothing_is_remembered_of_a_pod_without_a_zone():
    assert remember({}, [seen("u1", zone="")], frozenset()) == {}


def test_memory_fades_by_half_in_a_half_life():
    once = remember({}, [seen("u1")], frozenset())["a"]
    assert once.faded(NOW + HALF_LIFE).losses == pytest.approx(0.5)
    assert once.faded(NOW - 10).losses == 1.0


def test_the_zones_heard_of_last_are_kept():
    records = {}
    for index in range(MOST_ZONES + 5):
        records = remember(records, [seen(f"u{index}", zone=f"z{index:03}", at=NOW + index)], frozenset())
    assert len(records) == MOST_ZONES
    assert "z000" not in records


@given(st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0, 1e4), st.integers(0, 99), st.booleans())
def test_estimates_are_bounded_and_more_losses_never_make_a_zone_look_safer(losses, hours, placed, refused, live, gone):
    record = ZoneRecord("a", losses, hours, placed, refused, NOW, NOW if gone else 0.0)
    found = estimate(record, 1.0, live, NOW)
    worse = estimate(ZoneRecord("a", losses + 1, hours, placed, refused + 1, NOW, record.empty_at), 1.0, live, NOW)
    assert 1 / 720 <= found.losses_per_hour <= worse.losses_per_hour <= 12.0
    assert 0.02 <= worse.chance <= found.chance <= 1.0


held = st.builds(
    Held, st.uuids().map(str), st.booleans(), st.sampled_from(ZONES), st.sampled_from(["Ready", "Starting", "Waiting"]),
    st.floats(NOW - 1e4, NOW),
)  # fmt: skip
records = st.lists(st.builds(bad, st.sampled_from(ZONES), st.floats(0, 500)) | st.builds(empty, st.sampled_from(ZONES)))


@given(
    st.sampled_from(["Never", "Preferred", "Required"]),
    st.integers(0, 9),
    st.integers(0, 4),
    st.none() | st.integers(0, 3),
    st.lists(held, max_size=9),
    st.sampled_from([PRICED, COUNTED, Terms(), Terms(("a",), 3.0, 1.0)]),
    records,
)
def test_every_replica_is_covered_and_nothing_is_bought_without_need(
    policy, replicas, floor, spare, pods, terms, known
):
    pods = [Held(p.name, p.spot, p.zone if p.spot else "", p.stage, p.since) for p in pods]
    question = ask(replicas, pods, terms, known, policy=policy, floor=floor, spare=spare)
    decision = decide(question)
    ours = sum(pod.spot for pod in pods)
    assert decision == decide(question)
    assert decision.on_demand + decision.spot >= replicas
    assert decision.on_demand - decision.stand_ins == (replicas if policy == "Never" else question.base)
    assert 0 <= decision.stand_ins <= replicas + MOST_SPARES
    assert decision.spares <= max(replicas, 0)
    assert len(decision.places) == max(0, decision.spot - ours) or policy == "Never"
    assert set(decision.places) <= {*terms.zones, ""}
    assert {move.name for move in decision.moves} <= {pod.name for pod in pods if pod.stage == "Waiting"}
