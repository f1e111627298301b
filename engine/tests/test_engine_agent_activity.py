"""The told activity follows use over about a minute, in steps, and does not flutter."""

from hypothesis import given
from hypothesis import strategies as st
from sheaf_engine.agent.activity import MARGIN, STEP, Activity, observe

looks = st.lists(st.tuples(st.booleans(), st.floats(0, 30)), max_size=60)


def after(uses: list[tuple[bool, float]]) -> list[Activity]:
    found: dict[str, Activity] = {}
    told = []
    for used, seconds in uses:
        found = observe(found, ["a"] if used else [], seconds)
        told.append(found.get("a", Activity()))
    return told


@given(looks)
def test_it_is_a_share_in_steps_near_the_mean(uses: list[tuple[bool, float]]):
    for one in after(uses):
        assert 0 <= one.mean <= 1
        assert round(one.told / STEP) * STEP == one.told or abs(round(one.told / STEP) * STEP - one.told) < 1e-9
        assert abs(one.mean - one.told) <= MARGIN + 1e-9


def test_always_used_and_never_used():
    assert after([(True, 1.0)] * 400)[-1].told == 1.0
    assert after([(True, 1.0)] * 400 + [(False, 1.0)] * 400)[-1] == Activity()


def test_a_minute_of_use_is_most_of_it():
    assert after([(True, 1.0)] * 60)[-1].told == 0.6


def test_what_is_told_does_not_flutter_around_a_step():
    told = [one.told for one in after([(True, 1.0), (False, 1.0)] * 600)]
    assert len(set(told[600:])) == 1


def test_adapters_that_nobody_uses_are_forgotten():
    assert observe({"a": Activity(0.01, 0.0)}, [], 10.0) == {}
    assert observe({}, ["b"], 0.0).keys() == {"b"}


def test_time_that_goes_backwards_changes_nothing():
    assert observe({"a": Activity(0.5, 0.5)}, [], -100.0) == {"a": Activity(0.5, 0.5)}
