"""The router knows what a pod of each Model holds: slots as declared, KV tokens as agents report."""

from gateway_fixtures import model
from sheaf_crds import Model
from sheaf_crds.agent_api import AgentState
from sheaf_gateway.fleet.capacities import Capacities
from sheaf_gateway.fleet.snapshot import PodSnapshot
from sheaf_gateway.fleet.store import FleetStore
from sheaf_gateway.routing.router import Capacity, Router


def pod(name: str) -> PodSnapshot:
    return PodSnapshot.model_validate(
        {"name": name, "model": "m", "engineUrl": "http://127.0.0.1:1", "agentUrl": "http://127.0.0.1:2", "ready": True}
    )


def report(kv_tokens: int, epoch: int = 1) -> AgentState:
    return AgentState(engine="Ready", engine_epoch=epoch, kv_tokens=kv_tokens)


def fleet(*pods: str) -> tuple[FleetStore, Router]:
    store, router = FleetStore(), Router()
    store.following = Capacities(store, router)
    store.apply({("models", "m"): Model.model_validate(model("m", lora={"slots": 4}))})
    store.apply({("pods", name): pod(name) for name in pods})
    return store, router


def test_slots_are_known_at_once_and_tokens_from_the_first_report():
    store, router = fleet("p1")
    assert router.capacities["m"] == Capacity(slots=4, kv_tokens=0)
    store.apply_state("p1", report(64_000))
    assert router.capacities["m"] == Capacity(slots=4, kv_tokens=64_000)


def test_the_smallest_pod_counts_and_those_that_do_not_say_do_not():
    store, router = fleet("p1", "p2", "p3")
    for name, tokens in (("p1", 64_000), ("p2", 32_000), ("p3", 0)):
        store.apply_state(name, report(tokens))
    assert router.capacities["m"].kv_tokens == 32_000


def test_an_edited_model_and_a_restarted_engine_are_noticed():
    store, router = fleet("p1")
    store.apply_state("p1", report(64_000))
    store.apply({("models", "m"): Model.model_validate(model("m", lora={"slots": 8}))})
    store.apply_state("p1", report(16_000, epoch=2))
    assert router.capacities["m"] == Capacity(slots=8, kv_tokens=16_000)


def test_a_pool_without_pods_is_forgotten():
    store, router = fleet("p1")
    store.apply({("pods", "p1"): None})
    assert router.capacities == {}
