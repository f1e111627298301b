"""Decisions reach plans: pods, status, events; they survive a restart; SLOs say how they were kept; nothing is lost."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from operator_autoscaling import SPEED, WORK, asked
from operator_world import NOW, make_model, make_pod, make_policy
from prometheus_client import CollectorRegistry, generate_latest
from sheaf_crds import SLO, Model
from sheaf_crds.agent_api import AgentState, EngineLoad
from sheaf_crds.model import ModelAutoscaling
from sheaf_crds.slo import SLOWindow
from sheaf_operator.cluster.gateways import GatewayError, Gateways
from sheaf_operator.cluster.kubernetes.gateway_calls import parsed, url_of
from sheaf_operator.handlers.autoscaling import Autoscaling, ScalingCollector
from sheaf_operator.planning import CreatePod, DeletePod, DrainPod, EmitEvent, FleetIndex, Key, UpdateStatus, plan_key
from sheaf_operator.planning.autoscaling import Demand, Report, Scaler
from sheaf_operator.planning.scaling import desired_replicas

KEY = Key("Model", "m")


def make_slo(**spec: Any) -> SLO:
    return SLO.model_validate({"metadata": {"name": "chat", "uid": "uid-chat", "generation": 1}, "spec": spec})


def fleet(*pods: str, **spec: Any) -> tuple[FleetIndex, Model]:
    index = FleetIndex()
    model = make_model(autoscalingPolicyRef={"name": "steady"}, sloRef={"name": "chat"}, **spec)
    index.upsert(model)
    index.upsert(make_slo(ttft={"p95": "3s"}))
    index.upsert(make_policy(signal="Concurrency", target=10, maxReplicas=20, scaleDown={"stabilization": "1m"}))
    for name in pods:
        index.upsert(make_pod(model, name))
    return index, model


def report(demand: Demand, at: float = NOW, **windows: Any) -> dict[str, Report | None]:
    return {"gateway": Report(at, {"m": demand}, windows)}


def actions(index: FleetIndex, key: Key = KEY, now: float = NOW) -> list[Any]:
    return list(plan_key(index, key, now).actions)


def store(index: FleetIndex, found: list[Any]) -> None:
    """Write statuses, as a cluster does."""
    for action in found:
        if isinstance(action, UpdateStatus):
            item = index.model(action.name) if action.kind == "Model" else index.slo(action.name)
            assert item is not None
            index.upsert(item.model_copy(update={"status": action.status}))


def test_demand_becomes_pods_a_status_and_an_event_that_say_why():
    index, _ = fleet("one")
    scaler = Scaler(index, lambda _: SPEED)
    assert scaler.observe(report(Demand(running=35, rate=2.0)), NOW) == {KEY}
    found = actions(index)
    assert sum(isinstance(action, CreatePod) for action in found) == 3
    event = next(action for action in found if isinstance(action, EmitEvent) and action.reason == "ScaledUp")
    assert event.message.startswith("1 to 4 replicas: Concurrency: 35.0 requests")
    status = next(action.status for action in found if isinstance(action, UpdateStatus))
    assert status.autoscaling.desired_replicas == 4
    assert "AutoscalingPolicy steady decides the number" in status.condition("Ready").message
    assert scaler.reasons("m")[0].word == "Concurrency"
    assert scaler.reasons("other") == ()
    store(index, found)
    assert not [action for action in actions(index) if isinstance(action, UpdateStatus | EmitEvent)]


def test_the_same_demand_again_writes_nothing():
    index, _ = fleet("one")
    scaler = Scaler(index, lambda _: SPEED)
    scaler.observe(report(Demand(running=5, rate=2.0)), NOW)
    store(index, actions(index))
    for step in range(1, 200):
        assert scaler.observe(report(Demand(running=5, rate=2.0 + step % 3), NOW + step), NOW + step) == frozenset()


def test_a_restarted_operator_goes_on_with_the_number_before_any_gateway_answers():
    index, _ = fleet("one")
    Scaler(index, lambda _: SPEED).observe(report(Demand(running=35, rate=2.0)), NOW)
    store(index, actions(index))
    model = index.model("m")
    assert model is not None
    fresh, _ = fleet("one")
    fresh.upsert(model)
    assert sum(isinstance(action, CreatePod) for action in actions(fresh)) == 3
    Scaler(fresh, lambda _: SPEED).observe({"gateway": None}, NOW)
    assert fresh.scaling("m").replicas == 4
    assert not [action for action in actions(fresh) if isinstance(action, EmitEvent)]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_policy_that_is_away_leaves_number_and_memory_as_they_are(restarted: bool):
    index, model = fleet("one", "two", "three", "four")
    scaler = Scaler(index, lambda _: SPEED)
    scaler.observe(report(Demand(running=35, rate=2.0)), NOW)
    store(index, actions(index))
    before = index.model("m").status.autoscaling
    index.remove("AutoscalingPolicy", "steady")
    scaler = Scaler(index, lambda _: SPEED) if restarted else scaler
    if restarted:
        index.note_scaling("m", None)
    assert scaler.observe({}, NOW) == frozenset()
    found = actions(index)
    assert not [action for action in found if isinstance(action, DrainPod | DeletePod)]
    store(index, found)
    status = index.model("m").status
    assert status.autoscaling == before
    assert not [action for action in actions(index) if isinstance(action, UpdateStatus | EmitEvent)]
    index.upsert(make_policy(signal="Concurrency", target=10, maxReplicas=20))
    scaler.observe({"gateway": None}, NOW + 60)
    assert index.scaling("m").replicas == 4
    assert model.spec.replicas == 1


def test_a_policy_that_is_away_holds_within_the_bounds_of_the_model():
    index, _ = fleet("one")
    scaler = Scaler(index, lambda _: SPEED)
    scaler.observe(report(Demand(running=35, rate=2.0)), NOW)
    index.remove("AutoscalingPolicy", "steady")
    model = index.model("m")
    for bounds, expected in (({"max_replicas": 3}, 3), ({"min_replicas": 6}, 6), ({}, 4)):
        desired = desired_replicas(
            model.model_copy(update={"spec": model.spec.model_copy(update=bounds)}), None, index.scaling("m")
        )
        assert desired.replicas == expected
        assert "AutoscalingPolicy steady is not there" in desired.note


def test_what_was_decided_for_a_model_that_was_replaced_is_forgotten():
    index, model = fleet("one")
    scaler = Scaler(index, lambda _: SPEED)
    scaler.observe(report(Demand(running=35, rate=2.0)), NOW)
    index.remove("AutoscalingPolicy", "steady")
    index.upsert(model.model_copy(update={"metadata": model.metadata.model_copy(update={"uid": "another"})}))
    assert scaler.observe({}, NOW) == {KEY}
    assert index.scaling("m") is None


def test_a_model_that_names_no_policy_any_more_goes_by_its_spec():
    index, _ = fleet("one")
    scaler = Scaler(index, lambda _: SPEED)
    scaler.observe(report(Demand(running=35, rate=2.0)), NOW)
    store(index, actions(index))
    model = index.model("m")
    index.upsert(model.model_copy(update={"spec": model.spec.model_copy(update={"autoscaling_policy_ref": None})}))
    assert scaler.observe({}, NOW) == {KEY}
    status = next(a.status for a in actions(index) if isinstance(a, UpdateStatus))
    assert status.autoscaling is None
    assert list(scaler.standings()) == []
    index.remove("Model", "m")
    assert index.note_scaling("m", None) == frozenset()


def test_a_model_of_the_same_name_begins_anew():
    index, model = fleet("one")
    scaler = Scaler(index, lambda _: SPEED)
    scaler.observe(report(Demand(running=35, rate=2.0)), NOW)
    index.upsert(model.model_copy(update={"metadata": model.metadata.model_copy(update={"uid": "another"})}))
    scaler.observe({"gateway": None}, NOW)
    assert index.scaling("m").replicas == 1


def test_cold_starts_are_learnt_from_pods_that_become_ready():
    index, model = fleet()
    scaler = Scaler(index, lambda _: replace(SPEED, kv_tokens=1))
    starting = make_pod(model, "one", ready=False, phase="Pending", created_at=NOW, agent=None)
    index.upsert(starting)
    scaler.observe(report(asked(1.0)), NOW)
    state = AgentState(engine="Ready", kv_tokens=5000, load=EngineLoad(kv_usage=0.5))
    index.upsert(replace(starting, ready=True, phase="Ready", agent=state))
    scaler.observe(report(asked(1.0), NOW + 40), NOW + 40)
    index.upsert(replace(starting, name="two", uid="uid-two", created_at=NOW + 40))
    scaler.observe(report(asked(1.0), NOW + 45), NOW + 45)
    index.upsert(replace(starting, name="two", uid="uid-two", created_at=NOW + 40, ready=True, phase="Ready"))
    scaler.observe(report(Demand(running=99, rate=1.0), NOW + 140), NOW + 140)
    assert index.scaling("m").record.cold_start == 60.0
    assert next(iter(scaler.standings())).demand.kv_use == 0.5


@pytest.mark.parametrize(
    ("without_node", "start", "learnt"), [(0, 40, 40.0), (180, 40, 220.0), (7200, 40, 340.0), (7200, 7200, 1200.0)]
)
def test_a_node_that_cannot_be_had_is_no_cold_start(without_node: float, start: float, learnt: float):
    index, model = fleet()
    scaler = Scaler(index, lambda _: SPEED)
    starting = make_pod(model, "one", ready=False, phase="Pending", created_at=NOW, agent=None)
    index.upsert(starting)
    scaler.observe(report(asked(1.0)), NOW)
    ready = replace(starting, ready=True, phase="Ready", scheduled_at=NOW + without_node)
    index.upsert(ready)
    then = NOW + without_node + start
    scaler.observe(report(Demand(running=99, rate=1.0), then), then)
    assert index.scaling("m").record.cold_start == learnt


def test_what_was_learnt_by_an_older_version_is_bounded_too():
    index, model = fleet("one")
    window = {"name": "later", "start": "23:59", "end": "24:00", "minReplicas": 6}
    index.upsert(make_policy(signal="Concurrency", target=10, maxReplicas=20, schedules=[window]))
    record = ModelAutoscaling(policy="steady", desired_replicas=1, cold_start=40_000.0)
    status = model.status.model_copy(update={"autoscaling": record})
    index.upsert(model.model_copy(update={"status": status}))
    Scaler(index, lambda _: SPEED).observe(report(Demand(running=1, rate=0.1)), NOW)
    assert index.scaling("m").replicas == 1


def test_an_slo_says_how_it_was_kept_at_most_once_a_minute_and_nothing_where_nobody_asks():
    index, _ = fleet("one")
    scaler = Scaler(index, lambda _: SPEED)
    quiet = (SLOWindow(window="5m"), SLOWindow(window="1h"))
    assert Key("SLO", "chat") not in scaler.observe(report(asked(0.0, quiet_s=0.0), chat=quiet), NOW)
    kept = (SLOWindow(window="5m", requests=10, attained_percent=90.0, burn=2.0), SLOWindow(window="1h", requests=10))
    assert Key("SLO", "chat") in scaler.observe(report(asked(1.0, quiet_s=0.0), NOW + 5, chat=kept), NOW + 5)
    found = actions(index, Key("SLO", "chat"))
    assert next(a.status for a in found if isinstance(a, UpdateStatus)).windows == kept
    store(index, found)
    assert not actions(index, Key("SLO", "chat"))
    worse = (SLOWindow(window="5m", requests=50, attained_percent=50.0, burn=9.0), kept[1])
    assert Key("SLO", "chat") not in scaler.observe(report(asked(1.0, quiet_s=0.0), NOW + 30, chat=worse), NOW + 30)
    assert Key("SLO", "chat") in scaler.observe(report(asked(1.0, quiet_s=0.0), NOW + 66, chat=worse), NOW + 66)
    assert index.note_windows("chat", worse) == frozenset()
    index.remove("SLO", "chat")
    assert index.windows("chat") is None
    scaler.observe(report(asked(1.0, quiet_s=0.0), NOW + 130), NOW + 130)


def test_decisions_know_how_the_budget_of_both_windows_burns():
    index, _ = fleet("one")
    scaler = Scaler(index, lambda _: SPEED)
    windows = (SLOWindow(window="5m", requests=10, burn=2.0), SLOWindow(window="1h", requests=99, burn=0.5))
    for told, burns in ((windows, (2.0, 0.5)), (windows[:1], (2.0, None)), ((SLOWindow(window="1h"),), (None, None))):
        scaler.observe(report(asked(1.0), chat=told), NOW)
        (standing,) = scaler.standings()
        assert standing.demand is not None
        assert (standing.demand.burn, standing.demand.hour_burn) == burns


def test_the_last_word_comes_when_requests_pause_and_windows_that_only_pass_are_not_written():
    index, _ = fleet("one")
    scaler = Scaler(index, lambda _: SPEED)
    slo = Key("SLO", "chat")

    def look(seconds: float, quiet_s: float, requests: int) -> bool:
        windows = (SLOWindow(window="5m", requests=requests), SLOWindow(window="1h", requests=150))
        demand = asked(1.0, present=0, quiet_s=quiet_s)
        written = slo in scaler.observe(report(demand, NOW + seconds, chat=windows), NOW + seconds)
        store(index, actions(index, slo))
        return written

    assert look(0, 0, 100)
    assert not look(10, 7, 150)
    assert not look(20, 4, 150)
    assert look(22, 6, 150)
    assert not look(24, 8, 170)
    assert not any(look(40 + step, 24 + step, max(0, 150 - step)) for step in range(0, 600, 5))


def test_hours_are_written_while_somebody_asks():
    index, _ = fleet("one")
    index.upsert(make_policy(signal="Concurrency", target=10, maxReplicas=20, forecast={"history": "Day"}))
    scaler = Scaler(index, lambda _: SPEED)
    written = []
    for minute in range(400):
        now = NOW + 60.0 * minute
        demand = asked(1.0, present=5) if minute < 150 else asked(0.0, quiet_s=60.0 * (minute - 149))
        if KEY in scaler.observe(report(demand, now), now):
            written.append(minute)
    assert len(written) == 4
    assert max(written) < 200


class Web:
    """Gateways that answer what they are told to, or fail."""

    def __init__(self) -> None:
        self.urls = {"a": "http://a", "b": "http://b"}
        self.answers: dict[str, Any] = {}
        self.now = NOW
        self.asked: list[str] = []

    async def find(self) -> dict[str, str]:
        if not self.urls:
            raise GatewayError("nobody knows")
        return self.urls

    async def fetch(self, url: str) -> Any:
        self.asked.append(url)
        if url not in self.answers:
            raise GatewayError(f"{url} is silent")
        return self.answers[url]

    def gateways(self) -> Gateways:
        return Gateways(self.find, self.fetch, lambda: self.now)


def answering(web: Web, *names: str, running: int = 3) -> None:
    for name in names:
        web.answers[f"http://{name}/sheaf/v1/demand"] = {"models": [{"model": "m", "running": running}]}
        web.answers[f"http://{name}/sheaf/v1/slos"] = {"slos": [{"slo": "chat", "windows": [{"window": "5m"}]}]}


async def test_every_gateway_is_asked_and_a_silent_one_is_known_to_be():
    web = Web()
    answering(web, "a")
    gateways = web.gateways()
    found = await gateways.ask()
    assert found["b"] is None
    assert found["a"].demands["m"].running == 3
    answering(web, "b", running=5)
    web.now += 5
    assert (await gateways.ask())["b"].demands["m"].running == 5
    assert web.asked.count("http://a/sheaf/v1/slos") == 1


async def test_strange_answers_and_gateways_that_go_are_survived():
    web = Web()
    answering(web, "a", "b")
    gateways = web.gateways()
    await gateways.ask()
    web.answers["http://a/sheaf/v1/demand"] = {"hello": 1}
    web.answers["http://b/sheaf/v1/slos"] = []
    web.urls, web.now = {"b": "http://b"}, NOW + 20
    later = await gateways.ask()
    assert (later["a"].at, later["b"].at) == (NOW, NOW)
    web.urls, web.now = {}, NOW + 40
    assert set(await gateways.ask()) == {"a", "b"}
    web.urls, web.now = {"a": "http://a"}, NOW + 90
    assert set(await gateways.ask()) == {"a"}


async def test_the_loop_notes_decisions_and_shows_them():
    web = Web()
    answering(web, "a", "b", running=30)
    index, _ = fleet("one")
    marked: set[Key] = set()
    acting = True
    loop = Autoscaling(
        index, web.gateways(), lambda _: SPEED, lambda: web.now, lambda: web.now, lambda: acting, marked.update
    )
    assert loop.standings() == []
    await loop.look()
    assert marked == {KEY}
    assert index.scaling("m").replicas == 6
    registry = CollectorRegistry()
    ScalingCollector(loop.standings, loop.silent, registry)
    text = generate_latest(registry).decode()
    assert 'sheaf_desired_replicas{model="m"} 6.0' in text
    assert 'sheaf_demand{figure="running",model="m"} 60.0' in text
    assert "sheaf_gateways_silent 0.0" in text
    web.now += 16
    assert "sheaf_gateways_silent 2.0" in generate_latest(registry).decode()
    acting = False
    marked.clear()
    await loop.look()
    assert not marked


def test_gateway_pods_are_found_where_they_take_requests():
    ready = [{"type": "Ready", "status": "True"}]
    pod = {"metadata": {}, "status": {"podIP": "10.0.0.1", "phase": "Running", "conditions": ready}}
    assert url_of(pod, 8000, NOW) == "http://10.0.0.1:8000"
    assert url_of({**pod, "status": {**pod["status"], "podIP": "fd00::1"}}, 8000, NOW) == "http://[fd00::1]:8000"
    assert url_of({**pod, "status": {**pod["status"], "conditions": []}}, 8000, NOW) == ""
    ends = datetime.fromtimestamp(NOW, UTC).isoformat()
    ending = {"metadata": {"deletionTimestamp": ends}, "status": {**pod["status"], "conditions": []}}
    assert url_of(ending, 8000, NOW - 60) == url_of(ending, 8000, NOW + 10) == "http://10.0.0.1:8000"
    assert url_of(ending, 8000, NOW + 11) == ""
    assert url_of({**ending, "status": pod["status"]}, 8000, NOW + 11) == "http://10.0.0.1:8000"
    assert parsed("u", b"{}") == {}
    with pytest.raises(GatewayError, match="JSON"):
        parsed("u", b"<html>")
    assert WORK.output == 200.0
