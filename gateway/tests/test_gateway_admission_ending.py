"""A call that is over is charged what it was given and no more, whoever settles it: the gateway or a simulation."""

import pytest
from sheaf_crds import SLO
from sheaf_gateway.admission.admission import Admission, Admit
from sheaf_gateway.admission.attainment import Attainment
from sheaf_gateway.admission.ending import NOTHING, Ending, Usage, breaks_promise, settle
from sheaf_gateway.admission.expecting import expected
from sheaf_gateway.admission.promised import bounds, terms, window
from sheaf_gateway.admission.slots import Bounds
from sheaf_gateway.admission.terms import Ask, Terms, Work
from sheaf_gateway.fleet.view import Rate, availability
from sheaf_gateway.routing.cost import Coefficients
from sheaf_gateway.routing.prefix import BLOCK

LIMITED = (("tenant `a`", Rate(tokens_per_minute=1000)),)


def entered(admission: Admission, name: str = "1", tokens: float = 300.0) -> Ask:
    ask = Ask(name, "m", "Ready", 8, "a", terms=Terms(policy="VTC"), scopes=LIMITED, tokens=tokens, prompt=200.0)
    assert isinstance(admission.decide(ask, 0.0), Admit)
    return ask


def over(usage: Usage = NOTHING, produced: int = 0, *, billed: bool = True) -> Ending:
    return Ending(usage, produced, 0.0, 2.0, 2.0, 0.5, billed, billed)


@pytest.mark.parametrize(
    ("ending", "served", "left"),
    [
        (over(Usage(200, 50, 120)), 80.0 + 2.0 * 50.0, 750.0),
        (over(produced=30), 200.0 + 2.0 * 30.0, 770.0),
        (over(), 200.0, 700.0),
        (over(Usage(200, 50, 120), 50, billed=False), 0.0, 1000.0),
    ],
)
def test_books_and_limits_end_at_what_was_given(ending, served, left):
    admission = Admission()
    ask = entered(admission)
    settle(admission, ask, ending, 0.0)
    assert admission.served("m") == {"a": served}
    assert admission.running("m") == 0
    assert admission.limits.check(LIMITED, left, 0.0) is None
    assert left == 1000.0 or admission.limits.check(LIMITED, left + 1.0, 0.0) is not None


def test_only_a_call_that_went_well_tells_how_long_things_take():
    for ending, known in ((over(Usage(200, 50)), 2.0), (over(billed=False), 0.0)):
        admission = Admission()
        settle(admission, entered(admission), ending, 0.0)
        assert admission.demand("m", 0.0, ready=True).service_s == known


@pytest.mark.parametrize(
    ("status", "error", "breaks"),
    [
        (503, "queue_full", True),
        (429, "slo_unattainable", True),
        (200, "stream_interrupted", True),
        (429, "rate_limit_exceeded", False),
        (499, "client_gone", False),
    ],
)
def test_what_is_the_callers_own_breaks_no_promise(status, error, breaks):
    assert breaks_promise(status, error) is breaks


def test_what_is_cached_is_not_expected_to_be_computed_again():
    price = Coefficients(base_ms=1.0, prefill_ms_per_token=1.0, attention_ms_per_pair=0.0)
    per_block = expected(1e9, [7], 1, price).cached
    assert expected(3 * per_block, [7, 8], 1, price) == Work(2 * per_block, per_block, (1.0 + 2 * per_block) / 1e3, 7)
    assert expected(per_block / 2, [7], 1, price) == Work(0.0, per_block / 2, 0.001, 7)
    assert expected(10.0, [], 0, price).kin == 0
    assert BLOCK


def test_bounds_begin_at_the_ceiling_follow_reports_and_leave_with_their_pods():
    found = Bounds(64)
    assert found.of("a") == 64
    assert found.hear("a", own=64, running=8, waiting=56) == found.of("a") == 32
    found.keep({"b"})
    assert found.of("a") == 64


def test_a_model_without_pods_is_at_zero_only_where_it_declares_none():
    assert [availability(*facts) for facts in ((0, 0, 0), (2, 0, 0), (0, 0, 1), (0, 1, 1))] == [
        "Zero", "Starting", "Starting", "Ready",
    ]  # fmt: skip


def test_an_slo_is_read_alike_by_the_door_and_by_those_who_measure_it():
    spec = {"class": "Batch", "ttft": {"p50": "1s", "p99": "4s"}, "tpot": {"p95": "60ms"}, "e2e": {"p90": "9s"}}
    slo = SLO.model_validate({"metadata": {"name": "s"}, "spec": spec})
    found = terms(slo, wakes=True)
    assert (found.ttft, found.ttft_limit, found.interactive, found.wakes) == (1.0, 4.0, False, True)
    assert [(bound.latency, bound.seconds) for bound in bounds(slo)] == [
        ("ttft", 1.0), ("ttft", 4.0), ("tpot", 0.06), ("e2e", 9.0),
    ]  # fmt: skip
    assert terms(None, wakes=False) == Terms()
    late = SLO.model_validate({"metadata": {"name": "s"}, "spec": {"ttft": {"p99": "4s"}}})
    assert terms(late, wakes=False).ttft == 4.0
    assert terms(SLO.model_validate({"metadata": {"name": "s"}, "spec": {}}), wakes=False).ttft is None
    kept = Attainment(bounds(slo), 0.0)
    assert window("5m", kept.window(300.0, 1.0)).attained_percent is None
    kept.failed(1.0)
    assert window("5m", kept.window(300.0, 1.0)).attained_percent == 0.0
