"""The parts of a scaling decision: queueing, windows of the week, history, season, corrections, sums, mixes."""

from dataclasses import replace
from datetime import UTC, datetime
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_autoscaling import NOW, PROMISE, SPEED, WORK, asked, known, spec
from operator_world import make_model, make_policy, make_slo
from sheaf_crds.agent_api import AdapterState, AgentState, EngineLoad
from sheaf_crds.slo import Observed, SLOWindow
from sheaf_operator.planning import PodFacts
from sheaf_operator.planning.autoscaling import Demand, Memory, Promise, Report, Work
from sheaf_operator.planning.autoscaling import mix as mixing
from sheaf_operator.planning.autoscaling.bounds import floor_ahead, limits, next_change
from sheaf_operator.planning.autoscaling.correction import Correction, corrected
from sheaf_operator.planning.autoscaling.gather import demand_of, meaningful, windows_of
from sheaf_operator.planning.autoscaling.history import History, trend
from sheaf_operator.planning.autoscaling.memory import recorded, remembered
from sheaf_operator.planning.autoscaling.mix import Bucket, Kind, mix, profile_table, throughput
from sheaf_operator.planning.autoscaling.queueing import attained, forecast, needed
from sheaf_operator.planning.autoscaling.scaler import promise
from sheaf_operator.planning.autoscaling.season import Season, expected
from sheaf_operator.planning.autoscaling.speeds import speed_of
from sheaf_operator.planning.autoscaling.wire import read_demand, read_windows
from sheaf_operator.planning.loss import loss


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@settings(max_examples=40, deadline=None)
@given(rate=st.floats(0.01, 200), more=st.floats(1.0, 3.0), prompt=st.floats(1, 8000), output=st.floats(1, 2000))
def test_the_replicas_needed_grow_with_the_rate_and_suffice(rate, more, prompt, output):
    work = Work(prompt, prompt, output, 1.0)
    count = needed(SPEED, work, None, rate)
    assert needed(SPEED, work, None, rate * more) >= count
    assert forecast(SPEED, work, rate, count).busy <= 0.8 or count == 10_000


def test_a_promise_needs_what_it_needs_and_an_impossible_one_what_helps():
    count = needed(SPEED, WORK, PROMISE, 8.0)
    assert attained(SPEED, WORK, PROMISE, 8.0, count) >= 0.0
    assert attained(SPEED, WORK, PROMISE, 8.0, count - 1) < 0.0
    tight = Promise(ttft=((0.95, 0.001),))
    assert needed(SPEED, WORK, tight, 8.0, most=500) < 500
    whole = Promise(e2e=((0.9, 60.0),))
    assert count / 3 < needed(SPEED, WORK, whole, 8.0) < 3 * count
    assert needed(SPEED, WORK, PROMISE, 0.0) == 0
    assert needed(SPEED, WORK, PROMISE, 1e5, most=7) == 7
    assert needed(SPEED.slower(2.0), WORK, PROMISE, 8.0) > count
    assert forecast(SPEED, WORK, 8.0, 1).busy > 1.0


@pytest.mark.parametrize(
    ("window", "open_at", "closed_at"),
    [
        ({"start": "08:00", "end": "18:00"}, "2026-03-04T08:00", "2026-03-04T18:00"),
        ({"start": "22:00", "end": "06:00"}, "2026-03-04T23:30", "2026-03-04T21:59"),
        ({"start": "22:00", "end": "06:00"}, "2026-03-05T05:59", "2026-03-05T06:00"),
        ({"start": "22:00", "end": "06:00", "days": ["Fri"]}, "2026-03-07T05:00", "2026-03-06T05:00"),
        ({"start": "09:00", "end": "10:00", "days": ["Mon"]}, "2026-03-02T09:30", "2026-03-03T09:30"),
        ({"days": ["Mon"], "start": "00:00", "end": "24:00"}, "2026-01-05T23:59:59", "2026-01-06T00:00"),
        ({"days": ["Mon"], "start": "00:00", "end": "24:00"}, "2026-01-05T00:00", "2026-01-04T23:59"),
        ({"start": "09:00", "end": "10:00", "timeZone": "Europe/Berlin"}, "2026-07-01T07:30", "2026-07-01T08:30"),
        ({"start": "09:00", "end": "10:00", "timeZone": "Europe/Berlin"}, "2026-01-01T08:30", "2026-01-01T07:30"),
    ],
)
def test_a_window_is_open_on_its_own_days_and_in_its_own_time_zone(window, open_at, closed_at):
    policy = spec(minReplicas=1, maxReplicas=9, schedules=[{"name": "w", "minReplicas": 4, "maxReplicas": 5, **window}])
    opened, closed = limits(policy, known(), at(open_at)), limits(policy, known(), at(closed_at))
    assert ((opened.low, opened.high), opened.windows) == ((4, 5), ("w",))
    assert (closed.low, closed.high, closed.windows) == (1, 9, ())
    edge = next_change(policy, at(open_at))
    assert edge is not None
    assert at(open_at) < edge <= at(open_at) + 9 * 86_400


def test_the_models_own_ceiling_is_the_hardest():
    policy = spec(minReplicas=3, maxReplicas=9)
    assert limits(policy, known(high=2), NOW).low == 2
    assert limits(policy, known(low=5), NOW).low == 5
    assert next_change(policy, NOW) is None
    assert floor_ahead(policy, NOW, 60.0) == floor_ahead(policy, NOW, 0.0) == 0


def test_history_is_bounded_and_tells_means_and_growth():
    history = History()
    for second in range(0, 2000, 5):
        rate = 5.0 if second < 1000 else 10.0
        history = history.with_demand(asked(rate), NOW + second)
    now = NOW + 2000
    assert len(history.cells) == 60
    assert history.rate(now - 120, now) == 10.0
    assert history.present(now - 120, now) == 200.0
    assert history.rate(now + 1000, now + 2000) is None
    assert trend(history, now, 120.0) == 0.0
    grown = replace(
        history, cells=tuple(replace(c, rate=c.rate + 2 * n * c.count) for n, c in enumerate(history.cells))
    )
    assert trend(grown, now, 120.0) > 0.0
    assert trend(grown, now, 400.0) == 0.0
    gap = replace(grown, cells=(grown.cells[0], *grown.cells[-3:]))
    assert trend(gap, now, 120.0) == 0.0


def test_a_load_or_a_gateway_that_begins_is_no_growth():
    def seen(first: float) -> History:
        history = History()
        for second in range(0, 240, 10):
            history = history.with_demand(asked(first if second < 60 else 6.0, present=0), NOW + second)
        return history

    assert trend(seen(3.0), NOW + 240, 120.0) > 0.0
    assert trend(seen(0.0), NOW + 240, 120.0) == 0.0


def test_the_same_hour_of_yesterday_and_last_week_is_remembered():
    season = Season()
    assert expected(season, 1.0, NOW, 60.0) is None
    start = NOW // 3600 * 3600
    for hour in range(8 * 24 + 1):
        rate = 9.0 if hour % 24 == 3 else 1.0
        season = season.with_rate(rate / 2, start + hour * 3600).with_rate(rate, start + hour * 3600 + 60)
        season = season.with_rate(0.1, start + hour * 3600 + 120)
    now = start + (8 * 24 + 2.99) * 3600
    assert len(season.rates) == 168
    assert expected(season, 1.0, now, 120.0) == (9.0, 1.0)
    assert expected(season, 100.0, now, 120.0) == (18.0, 2.0)
    assert expected(season, None, now, 120.0) == (9.0, 1.0)
    assert Season((0.0,) * 168).at(now) == 0.0
    assert expected(Season((0.0,) * 168), 3.0, now, 60.0) == (0.0, 1.0)


def test_measured_times_correct_the_profile_in_calm_weather_only():
    demand = asked(4.0, service_s=60.0)
    facts = known(ready=8)
    calm, stormy = Correction(), Correction()
    for step in range(200):
        calm = corrected(calm, facts, demand, 4.0, NOW, NOW + 200 + 5 * step)
        stormy = corrected(stormy, facts, demand, 4.0, NOW + 5 * step, NOW + 5 * step)
    assert calm.slowness > 1.3
    assert stormy == Correction()
    full = corrected(Correction(), known(ready=1), asked(50.0, service_s=99.0), 50.0, NOW, NOW + 500)
    assert full.slowness == 1.0


def test_a_budget_that_is_overspent_makes_careful_and_one_unspent_bold():
    careful = corrected(Correction(), known(), asked(1.0, burn=4.0), 1.0, NOW, NOW + 400)
    assert careful.caution == pytest.approx(0.15)
    assert corrected(careful, known(), asked(1.0, burn=4.0), 1.0, NOW, NOW + 500) == careful
    assert corrected(careful, known(), asked(1.0, burn=0.0), 1.0, NOW, NOW + 800).caution == pytest.approx(0.13)
    assert corrected(careful, known(), asked(1.0, burn=0.7), 1.0, NOW, NOW + 800).caution == pytest.approx(0.15)


def test_what_gateways_say_is_summed_and_what_is_missing_is_known_to_be():
    one, two = asked(2.0, 10, slots=5, service_s=4.0), Demand(running=1, held=2, rate=6.0)
    reports = {"a": Report(NOW, {"m": one}), "b": Report(NOW, {"m": two})}
    both = demand_of("m", reports, NOW + 1)
    pods = {name: Report(NOW, {"m": Demand(running=4, slots=16)}) for name in "ab"}
    assert demand_of("m", pods, NOW) == Demand(running=8, slots=16), "each tells of all pods"
    assert both is not None
    assert (both.running, both.held, both.rate, both.slots, both.complete) == (11, 2, 8.0, 5, True)
    assert (both.work, both.service_s) == (WORK, 4.0)
    stale = demand_of("m", reports, NOW + 30)
    assert stale is not None
    assert not stale.complete
    assert demand_of("m", reports, NOW + 61) is None
    assert demand_of("other", reports, NOW) is None
    silent = demand_of("m", {"a": Report(NOW, {"m": one}), "b": None}, NOW)
    assert silent == replace(one, complete=False)
    assert demand_of("m", {"a": Report(NOW, {"m": one})}, NOW) == one
    nothing = demand_of("m", {"a": Report(NOW, {"m": Demand()}), "b": Report(NOW, {"m": Demand()})}, NOW)
    assert nothing == Demand()


def window(**fields):
    return SLOWindow.model_validate({"window": "5m", **fields})


def test_windows_are_joined_by_requests():
    first = window(requests=30, attainedPercent=90, goodput=1.0, burn=2.0, ttft={"p95": "1s"})
    second = window(requests=10, attainedPercent=100, goodput=0.5, burn=0.0, ttft={"p95": "3s"})
    idle = window()
    hour = SLOWindow(window="1h", requests=5)
    reports = {
        "a": Report(NOW, windows={"chat": (first, hour)}),
        "b": Report(NOW, windows={"chat": (second,)}),
        "c": Report(NOW, windows={"chat": (idle,)}),
        "old": Report(NOW - 100, windows={"chat": (second,)}),
        "none": None,
    }
    joined = windows_of("chat", reports, NOW)
    assert [one.window for one in joined] == ["5m", "1h"]
    assert (joined[0].requests, joined[0].attained_percent, joined[0].burn) == (40, 92.5, 1.5)
    assert joined[0].ttft == Observed(p95=1.5)
    assert windows_of("other", reports, NOW) == ()
    empty = {"a": Report(NOW, windows={"chat": (idle,)}), "b": Report(NOW, windows={"chat": (idle,)})}
    assert windows_of("chat", empty, NOW)[0].attained_percent is None


def test_only_what_moved_is_worth_a_write():
    old = window(requests=100, attainedPercent=95, goodput=1.0, burn=1.0)
    assert not meaningful([old], [window(requests=105, attainedPercent=95.3, goodput=1.0, burn=1.0)])
    assert meaningful([old], [window(requests=120, attainedPercent=95, goodput=1.0, burn=1.0)])
    assert meaningful([old], [window(requests=100, attainedPercent=94, goodput=1.0, burn=1.0)])
    assert meaningful([old], [window()])
    assert meaningful([], [old])
    assert not meaningful([old], [])


def test_a_status_holds_what_a_restart_must_not_forget():
    memory = replace(Memory(), replicas=4, cold_start_s=93.0, season=Season((1.0,) * 168))
    kept = recorded(memory, "steady", keeps_season=True)
    back = remembered(kept)
    assert (back.replicas, back.cold_start_s) == (4, 95.0)
    assert back.season.rates == memory.season.rates
    short = recorded(replace(memory, cold_start_s=None), "steady", keeps_season=False)
    assert (short.cold_start, short.season) == (None, ())
    assert remembered(None) == Memory()


def test_answers_of_a_gateway_are_read_and_strange_ones_refused():
    content = {"at": 1, "models": [{"model": "m", "running": 2, "arrivalRate": 1.5, "outputTokens": 7, "new": 1}]}
    assert read_demand(content)["m"] == Demand(running=2, rate=1.5, work=Work(0.0, 0.0, 7.0, 0.0))
    assert read_demand({"models": [{"model": "m"}]})["m"].work is None
    assert read_windows({"slos": [{"slo": "chat", "windows": [{"window": "5m"}]}]})["chat"][0].window == "5m"
    for strange in (
        {},
        {"models": [{"model": "m", "running": -1}]},
        {"models": [{"model": "m", "arrivalRate": "NaN"}]},
    ):
        with pytest.raises(ValueError, match="validation error"):
            read_demand(strange)


def test_the_speed_comes_from_the_installation_the_accelerator_or_the_emulators_arguments():
    l4 = make_model(engine={"name": "vllm", "args": ["--max-num-seqs=7"]}, accelerators=[{"type": "nvidia-l4"}])
    found = speed_of(l4, {})
    assert found is not None
    assert (found.step_s, found.sequences) == (0.062, 7)
    assert speed_of(l4, {"nvidia-l4": SPEED.slower(2.0)}) == replace(SPEED.slower(2.0), sequences=7)
    assert speed_of(make_model(accelerators=[{"type": "strange"}]), {}) is None
    quick = make_model(engine={"name": "emulator", "args": ["--profile=h100-8b", "--speed=10"]})
    assert speed_of(quick, {}).step_s == pytest.approx(7e-4)
    plain = make_model(engine={"name": "emulator", "args": ["--speed=fast", "--max-num-batched-tokens=512"]})
    assert speed_of(plain, {}).batch_tokens == 512
    assert promise(make_slo()) == Promise()
    assert make_policy().spec.forecast is None


def test_the_loss_of_a_pod_counts_streams_caches_and_adapters():
    pod = PodFacts("p", "u", "m", "o", "h")
    assert loss(pod) == 0.0
    agent = AgentState(load=EngineLoad(running=2, waiting=1, kv_usage=0.5))
    busy = replace(pod, agent=agent)
    holds = replace(pod, agent=agent.model_copy(update={"adapters": (AdapterState(name="a", state="Resident"),)}))
    assert loss(busy) == 7.0
    assert loss(holds) == 7.5


SMALL = Kind("small", 1.0, SPEED)
LARGE = Kind("large", 3.0, SPEED.slower(0.2))


def test_the_mix_serves_every_bucket_at_the_least_price():
    buckets = [Bucket(Work(200.0, 200.0, 50.0, 0.5), 4.0), Bucket(Work(3000.0, 3000.0, 300.0, 0.5), 2.0)]
    table = profile_table([SMALL, LARGE], buckets, PROMISE)
    found = mix([SMALL, LARGE], buckets, table)
    assert found is not None
    assert found.proven
    for place, bucket in enumerate(buckets):
        assert sum(rates[place] for rates in found.shares.values()) == pytest.approx(bucket.rate)
    for kind in (SMALL, LARGE):
        load = sum(r / t for r, t in zip(found.shares[kind.name], table[kind.name], strict=True) if r)
        assert load <= found.pods[kind.name] + 1e-6
        alone = mix([kind], buckets, table)
        assert alone is None or found.cost <= alone.cost


@settings(max_examples=30, deadline=None)
@given(
    speeds=st.lists(st.tuples(st.floats(0.2, 4), st.floats(0.2, 4)), min_size=2, max_size=2),
    prices=st.tuples(st.floats(0.5, 4), st.floats(0.5, 4)),
    rates=st.tuples(st.floats(0.1, 3), st.floats(0.1, 3)),
)
def test_no_other_way_to_give_out_the_slices_is_cheaper(speeds, prices, rates):
    kinds = [Kind("a", prices[0], SPEED), Kind("b", prices[1], SPEED)]
    buckets = [Bucket(WORK, rate) for rate in rates]
    table = {"a": speeds[0], "b": speeds[1]}
    found = mix(kinds, buckets, table)
    best = min(
        sum(
            -(-sum(n / 8 * rates[b] / table[kind.name][b] for b, n in enumerate(counts)) // (1 + 1e-12)) * kind.price
            for kind, counts in ((kinds[0], split), (kinds[1], tuple(8 - n for n in split)))
        )
        for split in product(range(9), repeat=2)
    )
    assert found is not None
    assert found.cost <= best + 1e-6


def test_what_looks_cheapest_step_by_step_is_not_the_last_word():
    kinds = [Kind("a", 1.5, SPEED), Kind("b", 1.5, SPEED)]
    found = mix(kinds, [Bucket(WORK, 1.0), Bucket(WORK, 2.0)], {"a": (0.5, 0.5), "b": (3.0, 0.5)})
    assert found is not None
    assert (found.cost, found.proven) == (7.5, True)


def test_a_bucket_that_nobody_serves_and_capacity_that_is_not_there_are_said():
    table = {"small": (0.0,)}
    assert mix([SMALL], [Bucket(WORK, 1.0)], table) is None
    assert mix([replace(SMALL, most=1)], [Bucket(WORK, 5.0)], {"small": (1.0,)}) is None
    assert mix([SMALL], [Bucket(WORK, 0.0)], table).pods == {"small": 0}
    assert throughput(SMALL, Work(1e6, 1e6, 10.0), PROMISE) == 0.0


def test_a_search_that_takes_too_long_gives_its_best(monkeypatch):
    monkeypatch.setattr(mixing, "MOST_STEPS", 0)
    found = mix([SMALL, LARGE], [Bucket(WORK, 5.0)], {"small": (1.0,), "large": (2.6,)})
    assert found is not None
    assert not found.proven
