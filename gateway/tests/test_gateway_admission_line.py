"""Who goes next: on time before late before Batch, the earliest deadline first, and nobody starves."""

from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.admission.fairness import Deficits, books
from sheaf_gateway.admission.line import TURNS, Line
from sheaf_gateway.admission.terms import Ask, Terms, Work

QUICK = settings(max_examples=40, deadline=None)
ONE_SECOND = Terms(ttft=1.0)


def ask(name: object, **more) -> Ask:
    return Ask(
        **{"request_id": str(name), "model": "m", "availability": "Ready", "slots": 1, "terms": ONE_SECOND, **more}
    )


def drained(line: Line, now: float, first_s: float = 0.0) -> list[str]:
    order = []
    while (waiter := line.next(now, first_s)) is not None:
        order.append(waiter.ask.request_id)
    return order


def test_the_earliest_deadline_goes_first():
    line = Line(books("None"))
    line.join(ask("patient", terms=Terms(ttft=5.0)), Work, 0.0)
    line.join(ask("hurried", terms=Terms(ttft=0.5)), Work, 1.0)
    line.join(ask("any", terms=Terms()), Work, 2.0)
    assert drained(line, 1.0) == ["hurried", "any", "patient"]


def test_in_a_crowd_a_short_prompt_passes_a_long_one():
    line = Line(books("None"))
    line.join(ask("long"), lambda: Work(prefill_s=0.8), 0.0)
    line.join(ask("short"), lambda: Work(prefill_s=0.1), 0.5)
    assert drained(line, 0.1) == ["short", "long"]


def test_who_will_be_late_anyway_yields_to_who_can_still_make_it():
    line = Line(books("None"))
    line.join(ask("late"), Work, 0.0)
    line.join(ask("large"), lambda: Work(prefill_s=0.9), 0.5)
    line.join(ask("fresh"), Work, 0.6)
    assert line.next(0.9, 0.2).ask.request_id == "fresh"
    assert [line.count(lane) for lane in range(3)] == [1, 1, 0]
    assert drained(line, 0.9, 0.2) == ["late", "large"]


def test_a_long_match_that_comes_too_late_yields_as_well():
    line = Line(books("DLPM"))
    line.join(ask("warm but long"), lambda: Work(cached=900.0, prefill_s=1.5), 0.0)
    line.join(ask("cold"), Work, 0.1)
    assert line.next(0.2, 0.1).ask.request_id == "cold"
    assert line.count(1) == 1
    assert line.next(0.2, 0.1).ask.request_id == "warm but long"


def test_interactive_goes_before_batch():
    line = Line(books("None"))
    line.join(ask("batch", batch=True), Work, 0.0)
    line.join(ask("interactive"), Work, 0.5)
    assert drained(line, 0.5) == ["interactive", "batch"]


def test_a_lane_that_was_passed_over_long_enough_gets_its_turn_and_only_its_turn():
    line = Line(books("None"))
    for number in range(3):
        line.join(ask(f"batch{number}", batch=True), Work, 0.0)
    for number in range(50):
        line.join(ask(number), Work, 0.0)
    order = drained(line, 0.0)
    assert [place for place, name in enumerate(order) if name.startswith("batch")] == [9, 19, 29]


def test_late_and_batch_age_each_for_itself():
    line = Line(books("None"))
    line.join(ask("late", terms=Terms(ttft=0.0)), Work, 0.0)
    line.join(ask("batch", batch=True), Work, 0.0)
    for number in range(30):
        line.join(ask(number, terms=Terms(ttft=60.0)), Work, 0.5)
    order = drained(line, 1.0)
    assert (order.index("late"), order.index("batch")) == (9, 10)


def test_under_dlpm_the_longest_match_goes_first_until_another_is_urgent():
    line = Line(books("DLPM"))
    line.join(ask("cold"), lambda: Work(cached=0.0), 0.0)
    line.join(ask("warm"), lambda: Work(cached=900.0), 0.3)
    line.join(ask("lukewarm"), lambda: Work(cached=100.0), 0.3)
    assert line.next(0.4, 0.0).ask.request_id == "warm"
    assert line.next(0.5, 0.0).ask.request_id == "cold"
    assert drained(line, 0.5) == ["lukewarm"]


def test_under_dlpm_who_was_served_less_goes_first_once_it_is_urgent():
    line = Line(books("DLPM"))
    line.join(ask("heavy", tenant="heavy"), Work, 0.0)
    line.join(ask("light", tenant="light"), Work, 0.2)
    line.books.charge(line.books.tenants["heavy"], 1000.0)
    assert line.next(0.8, 0.0).ask.request_id == "light"


def test_when_one_was_served_those_that_begin_alike_are_measured_again():
    line = Line(books("DLPM"))
    cached = {"a": 0.0, "b": 0.0}
    for number in range(40):
        kind = "ab"[number % 2]
        line.join(ask(f"{kind}{number}"), lambda kind=kind: Work(cached=cached[kind], kin=1 + "ab".index(kind)), 0.0)
    first = line.next(0.1, 0.0).ask.request_id
    cached[first[0]] = 500.0
    order = [line.next(0.1, 0.0).ask.request_id for _ in range(39)]
    assert {name[0] for name in order[:19]} == {first[0]}
    assert line.next(0.1, 0.0) is None
    assert line._kin == {}


def test_measuring_again_leaves_bounded_heaps():
    line = Line(books("DLPM"))
    grown = iter(range(100_000))
    for number in range(30):
        line.join(ask(number), lambda: Work(cached=float(next(grown)), kin=1), 0.0)
    for number in range(30, 600):
        assert line.next(0.1, 0.0) is not None
        line.join(ask(number), lambda: Work(cached=float(next(grown)), kin=1), 0.0)
    (group,) = line._lanes[0].groups.values()
    assert len(group.by_match._entries) <= 2 * 30 + 17


def test_who_leaves_is_passed_over_wherever_it_stood():
    line = Line(Deficits())
    for number in range(40):
        line.join(ask(number, tenant=str(number % 2)), lambda number=number: Work(cached=float(number)), 0.0)
    for number in range(1, 39):
        assert line.leave(str(number)).ask.request_id == str(number)
    assert line.leave("7") is None
    for number in range(40, 80):
        line.join(ask(number, tenant="0"), Work, 0.0)
    assert line.size == 42
    assert {"0", "39", "40", "79"} < set(drained(line, 0.1))
    assert line.next(0.1, 0.0) is None


def test_places_count_the_whole_crowd_only_where_nobody_is_protected_from_it():
    for policy, expected in (("None", 11.0), ("VTC", 1.25), ("DLPM", 1.25)):
        line = Line(books(policy))
        for number in range(10):
            line.join(ask(number, tenant="crowd"), Work, 0.0)
        assert line.places("gold", 4.0) == expected
        assert line.places("crowd", 1.0) == 11.0


def test_nobody_makes_room_where_all_have_the_same():
    terms = Terms(policy="VTC", weights={"gold": 2})
    line = Line(books("VTC"))
    assert line.victim(ask("x", tenant="a", terms=terms)) is None
    line.join(ask(1, tenant="a", terms=terms), Work, 0.0)
    assert line.victim(ask(2, tenant="b", terms=terms)) is None
    assert line.victim(ask(2, tenant="gold", terms=terms)).ask.request_id == "1"
    line.join(ask(3, tenant="b", terms=terms), Work, 0.0)
    line.join(ask(4, tenant="b", terms=terms, batch=True), Work, 0.0)
    assert line.victim(ask(5, tenant="b", terms=terms, batch=True)) is None
    assert line.victim(ask(5, tenant="c", terms=terms, batch=True)).ask.request_id == "4"


steps = st.lists(
    st.tuples(st.sampled_from("jjjnl"), st.sampled_from("abc"), st.booleans(), st.floats(0, 3), st.floats(0, 500)),
    max_size=80,
)


@QUICK
@given(steps, st.sampled_from(["None", "VTC", "DLPM"]), st.floats(0, 1))
def test_whatever_happens_everyone_waits_once_and_the_queue_is_work_conserving(steps, policy, first_s):
    line = Line(books(policy))
    waiting: set[str] = set()
    now = 0.0
    for number, (step, tenant, batch, passed, cached) in enumerate(steps):
        now += passed
        if step == "j":
            work = Work(cached, cached, passed / 3, kin=int(cached) % 3)
            line.join(ask(number, tenant=tenant, batch=batch), lambda work=work: work, now)
            waiting.add(str(number))
        elif step == "l" and waiting:
            gone = min(waiting)
            line.leave(gone)
            waiting.discard(gone)
        else:
            waiter = line.next(now, first_s)
            assert (waiter is None) == (not waiting)
            if waiter is not None:
                waiting.remove(waiter.ask.request_id)
        assert line.size == len(waiting) == sum(line.count(lane) for lane in range(3)) == len(list(line))
        assert {waiter.ask.request_id for waiter in line} == waiting
        assert sum(tenant.waiting for tenant in line.books.tenants.values()) == len(waiting)
    assert set(drained(line, now)) == waiting


@QUICK
@given(st.lists(st.sampled_from(["on time", "late", "batch"]), min_size=1, max_size=60))
def test_nobody_waits_longer_than_its_lanes_turns(kinds):
    """The n-th of a lane has gone after at most n rounds of TURNS and a turn for each other aged lane."""
    line = Line(books("None"))
    terms = {"on time": Terms(), "late": Terms(ttft=0.0), "batch": Terms()}
    for number, kind in enumerate(kinds):
        line.join(ask(f"{kind}/{number}", terms=terms[kind], batch=kind == "batch"), Work, 0.0)
    seen = {"on time": 0, "late": 0, "batch": 0}
    for place, name in enumerate(drained(line, 1.0)):
        kind = name.partition("/")[0]
        seen[kind] += 1
        assert place < seen[kind] * (TURNS + 2)
