"""One change at a time gives the same fleet as everything at once, and touches only what it must."""

from gateway_fixtures import adapter, model, slo
from hypothesis import given
from hypothesis import strategies as st
from sheaf_crds import SLO, Adapter, Model
from sheaf_crds.agent_api import AgentState
from sheaf_gateway.fleet.snapshot import PodSnapshot, read_snapshot, snapshot_of
from sheaf_gateway.fleet.store import Change, FleetStore

NAMES = st.sampled_from(["a", "b", "c", "d"])
MODELS = st.builds(
    lambda name, slo_, n: Model.model_validate(model(name, replicas=n, **({"sloRef": {"name": slo_}} if slo_ else {}))),
    NAMES,
    st.sampled_from(["", "a", "b"]),
    st.integers(0, 2),
)
ADAPTERS = st.builds(lambda name, base: Adapter.model_validate(adapter(name, base)), NAMES, NAMES)
SLOS = st.builds(
    lambda name, n: SLO.model_validate(slo(name, queue={"maxRequests": n})),
    st.sampled_from(["a", "b"]),
    st.integers(1, 2),
)


def pod(name: str, base: str = "a", uid: str = "u", **facts) -> PodSnapshot:
    where = {"engineUrl": "http://127.0.0.1:1", "agentUrl": "http://127.0.0.1:2"}
    return PodSnapshot.model_validate({"name": name, "model": base, "uid": uid, "ready": True, **where, **facts})


PODS = st.builds(
    lambda name, base, uid, ready: pod(name, base, uid, ready=ready), NAMES, NAMES, st.sampled_from("uv"), st.booleans()
)
KINDS = {"models": MODELS, "adapters": ADAPTERS, "slos": SLOS, "pods": PODS}
UPSERT = st.one_of(*(st.tuples(st.just(kind), items) for kind, items in KINDS.items())).map(
    lambda found: ((found[0], found[1].name), found[1])
)
REMOVAL = st.tuples(st.tuples(st.sampled_from(list(KINDS)), NAMES), st.none())
BATCHES = st.lists(st.lists(UPSERT | REMOVAL, max_size=4).map(dict), max_size=12)


@given(BATCHES)
def test_changes_one_by_one_give_the_same_fleet_as_all_at_once(batches):
    step, held = FleetStore(), {}
    for batch in batches:
        step.apply(batch)
        held |= batch
    whole = FleetStore()
    parts = {
        kind: tuple(v for (of, _), v in held.items() if of == kind and v) for kind in [*KINDS, "autoscalingPolicies"]
    }
    whole.apply_snapshot(snapshot_of(1, parts))
    assert list(step.fleet.served.items()) == list(whole.fleet.served.items())
    assert step.fleet.pods == whole.fleet.pods
    assert step.fleet.ready == whole.fleet.ready
    assert step.declared.snapshot(1) == whole.declared.snapshot(1)


@given(BATCHES)
def test_watchers_are_told_all_that_differs_and_an_old_view_never_changes(batches):
    store, told, seen = FleetStore(), [], []
    store.watch(told.append)
    for batch in batches:
        before = store.fleet
        seen.append((before, dict(before.served), dict(before.pods), dict(before.ready)))
        store.apply(batch)
        change = told[-1]
        after = store.fleet
        names = {n for n in {*before.served, *after.served} if before.served.get(n) != after.served.get(n)}
        models = {m for m in {*before.pods, *after.pods} if before.pods_of(m) != after.pods_of(m)}
        assert change.names == names
        assert change.models >= models
        assert change.shape or not (names or models)
    for view, served, pods, ready in seen:
        assert (dict(view.served), dict(view.pods), dict(view.ready)) == (served, pods, ready)


def made(*pods: PodSnapshot) -> FleetStore:
    store = FleetStore()
    store.apply({("models", "a"): Model.model_validate(model("a")), **{("pods", p.name): p for p in pods}})
    return store


def report(**parts) -> AgentState:
    return AgentState.model_validate({"engine": "Ready", **parts})


def watched(store: FleetStore) -> list[Change]:
    told: list[Change] = []
    store.watch(told.append)
    return told


def test_load_is_no_change_of_shape():
    store = made(pod("p"))
    shapes, told = [], watched(store)
    store.listen(shapes.append)
    store.apply_state("p", report())
    store.apply_state("p", report(load={"running": 3}))
    assert [change.models for change in told] == [{"a"}]
    assert shapes == []
    store.apply_state("p", report(engineEpoch=2))
    store.apply_state("p", report(engineEpoch=2, draining=True))
    assert len(shapes) == 2


def test_a_report_that_says_nothing_new_tells_nobody():
    store = made(pod("p"))
    store.apply_state("p", report(load={"running": 3}))
    told = watched(store)
    store.apply_state("p", report(load={"running": 3}, version=9))
    assert told == []


def test_an_unchanged_pod_is_no_change():
    store = made(pod("p"))
    told = watched(store)
    store.apply({("pods", "p"): pod("p")})
    assert told[0].models == frozenset()
    assert told[0].keys == frozenset()


def test_the_version_grows_with_every_change():
    store = made()
    version = store.fleet.version
    store.apply({("pods", "p"): pod("p")})
    assert store.snapshot.version == store.fleet.version == version + 1


def test_a_suspect_is_not_ready_while_another_pod_is():
    store = made(pod("p"), pod("q"))
    store.suspect(["p", "unknown"])
    assert [(p.name, p.ready) for p in store.fleet.pods_of("a")] == [("p", False), ("q", True)]
    assert store.fleet.ready == {"a": 1}
    store.suspect(["q"])
    assert [p.ready for p in store.fleet.pods_of("a")] == [True, True]
    store.apply_state("q", report())
    assert [p.ready for p in store.fleet.pods_of("a")] == [False, True]
    store.apply_state("p", report())
    assert [p.ready for p in store.fleet.pods_of("a")] == [True, True]
    assert store.suspects == set()


def test_a_pod_that_is_not_ready_does_not_speak_for_a_suspect():
    store = made(pod("p"), pod("q", ready=False))
    store.suspect(["p"])
    assert store.fleet.ready == {"a": 1}


def test_a_pod_that_is_told_to_be_ready_again_gets_another_chance():
    store = made(pod("p", ready=False), pod("q"))
    store.suspect(["p"])
    store.apply({("pods", "p"): pod("p")})
    assert store.fleet.ready == {"a": 2}


def test_a_pod_of_a_silent_node_is_suspect_until_its_agent_answers_or_the_node_does():
    store = made(pod("p"), pod("q"))
    store.apply_state("p", report())
    store.apply({("pods", "p"): pod("p", unheard=True)})
    assert store.suspects == {"p"}
    store.apply_state("p", report(version=2))
    assert (store.suspects, store.fleet.ready) == (set(), {"a": 2})
    store.apply({("pods", "q"): pod("q", unheard=True)})
    store.apply({("pods", "q"): pod("q")})
    assert store.suspects == set()


def test_a_suspect_that_is_gone_is_forgotten():
    store = made(pod("p"), pod("q"))
    store.suspect(["p"])
    store.apply({("pods", "p"): None})
    assert store.suspects == set()
    store.apply({("pods", "p"): pod("p", uid="new")})
    assert store.fleet.ready == {"a": 2}


def test_a_pod_may_come_back_for_another_model():
    store = made(pod("p"))
    store.apply({("pods", "p"): pod("p", base="b")})
    assert set(store.fleet.pods) == {"b"}


def test_a_pod_without_an_address_is_never_ready():
    store = made(pod("p", engineUrl="", agentUrl=""))
    assert store.fleet.ready == {"a": 0}
    assert store.fleet.availability(store.fleet.served["a"]) == "Starting"


def test_what_is_written_is_what_was_read():
    document = {"version": 4, "models": [model("a")], "adapters": [adapter("x", "a")], "pods": [pod("p").to_wire()]}
    read, problems = read_snapshot(document)
    again, _ = read_snapshot(
        {"version": 4, **{k: [i.to_wire() for i in getattr(read, k)] for k in ("models", "adapters", "pods")}}
    )
    assert problems == ()
    assert again == read
