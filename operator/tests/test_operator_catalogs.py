"""Catalogs: all adapters of the Model, pinned where placed; a restarted operator knows from the number what an agent holds."""

from operator_world import NOW, World, make_adapter, make_model, make_pod, of_kind, resident
from sheaf_crds.agent_api import AdapterState, AgentState, Catalog
from sheaf_operator.planning import ClusterSnapshot, SetCatalog, plan
from sheaf_operator.planning.catalogs import FINGERPRINT_BITS, Catalogs
from sheaf_operator.planning.pinning import pinning


def catalog_of(adapters, pinned, agent) -> Catalog:
    catalogs = Catalogs(adapters)
    return catalogs.catalog(pinned, catalogs.generation(pinned, agent))


def placements(model, adapters, pods):
    return pinning(model, adapters, pods).by_pod


def test_every_pod_gets_every_adapter_and_keeps_its_own_loaded():
    model = make_model(replicas=2)
    adapters = (make_adapter("a"), make_adapter("b", replicas=2), make_adapter("c", replicas=0))
    seen = ClusterSnapshot((model,), adapters, pods=(make_pod(model, "p"), make_pod(model, "q")))
    catalogs = {action.pod: action.catalog for action in of_kind(plan(seen, NOW).actions, SetCatalog)}
    assert {pod: [entry.name for entry in c.adapters] for pod, c in catalogs.items()} == {
        "p": ["a", "b", "c"],
        "q": ["a", "b", "c"],
    }
    pinned = {pod: {e.name for e in c.adapters if e.pinned} for pod, c in catalogs.items()}
    assert "b" in pinned["p"] & pinned["q"]
    assert sum("a" in names for names in pinned.values()) == 1
    assert not any("c" in names for names in pinned.values())


def test_the_entry_says_what_the_agent_must_check():
    adapter = make_adapter("a", digest="sha256:" + "0" * 64, rank=8, priority=5, sizeLimit="1Gi")
    (entry,) = catalog_of([adapter], frozenset(), AgentState()).adapters
    assert (entry.source, entry.digest, entry.rank, entry.priority, entry.size_limit, entry.pinned) == (
        "s3://bucket/a",
        "sha256:" + "0" * 64,
        8,
        5,
        2**30,
        False,
    )


def test_a_catalog_that_is_held_already_keeps_its_generation():
    first = catalog_of([make_adapter("a")], frozenset({"a"}), AgentState())
    again = catalog_of([make_adapter("a")], frozenset({"a"}), AgentState(catalog_generation=first.generation))
    assert again == first


def test_generations_grow_with_every_change_even_back_to_an_old_content():
    adapters, generation = [make_adapter("a")], 0
    for pinned in (frozenset[str](), frozenset({"a"}), frozenset[str](), frozenset({"a"})):
        catalog = catalog_of(adapters, pinned, AgentState(catalog_generation=generation))
        assert catalog.generation > generation
        generation = catalog.generation
    assert generation >> FINGERPRINT_BITS == 4


def test_an_agent_without_a_catalog_gets_even_an_empty_one():
    assert catalog_of([], frozenset(), AgentState()).generation > 0


def test_an_adapter_leaves_a_serving_pod_only_for_one_that_serves():
    model = make_model(replicas=2, lora={"slots": 2, "maxAdapters": 4})
    adapters = [make_adapter(name) for name in ("a", "b", "c", "d")]
    serving = make_pod(model, "p")
    starting = make_pod(model, "q", ready=False, phase="Starting")
    placed = placements(model, adapters, [serving, starting])
    assert placed["p"] == {"a", "b", "c", "d"}
    assert len(placed["q"]) == 2
    both = placements(model, adapters, [serving, make_pod(model, "q")])
    assert len(both["p"]) == len(both["q"]) == 2


def test_the_agents_own_capacity_counts_where_it_says_one():
    model = make_model(lora={"slots": 4})
    adapters = [make_adapter(name) for name in ("a", "b", "c")]
    assert len(placements(model, adapters, [make_pod(model, "p", agent=AgentState(capacity=2))])["p"]) == 2


def test_a_pod_has_settled_when_each_pinned_adapter_is_loaded_as_declared_or_failed():
    model, wanted = make_model(), "sha256:" + "1" * 64
    catalogs, pinned = Catalogs([make_adapter("a", digest=wanted), make_adapter("b")]), frozenset({"a", "b"})
    generation = catalogs.generation(pinned, AgentState())

    def pod(*states: AdapterState, generation: int = generation):
        return make_pod(model, "p", agent=AgentState(engine="Ready", catalog_generation=generation, adapters=states))

    loaded = AdapterState(name="a", state="Resident", digest=wanted)
    stale = AdapterState(name="a", state="Resident", digest="sha256:old")
    failed = AdapterState(name="b", state="Failed")
    loading = AdapterState(name="b", state="Loading")
    assert catalogs.settled(pod(loaded, failed), pinned)
    assert not catalogs.settled(pod(loaded, loading), pinned)
    assert not catalogs.settled(pod(stale, failed), pinned)
    assert not catalogs.settled(pod(loaded), pinned)
    assert catalogs.settled(pod(loaded, failed, generation=generation + 1), pinned)
    assert not catalogs.settled(pod(loaded, failed, generation=0), pinned)
    assert not catalogs.settled(make_pod(model, "p", agent=None), pinned)


def test_adding_and_removing_an_adapter_touches_catalogs_and_statuses_only():
    world = World(ClusterSnapshot((make_model(replicas=2),), (make_adapter("a"),)))
    world.settle()
    before = set(world.pods)
    world.snapshot = ClusterSnapshot(
        world.snapshot.models, (make_adapter("b"),), world.snapshot.slos, world.snapshot.policies, world.snapshot.pods
    )
    world.settle()
    assert set(world.pods) == before
    assert {s.name for pod in world.pods.values() for s in pod.agent.adapters} == {"b"}


def test_draining_pods_and_pods_without_an_agent_get_no_catalog():
    model = make_model(replicas=2)
    leaving = make_pod(model, "p", agent=resident(draining=True, drain_deadline=NOW + 30))
    mute = make_pod(model, "q", agent=None)
    seen = ClusterSnapshot((model,), (make_adapter("a"),), pods=(leaving, mute))
    assert of_kind(plan(seen, NOW).actions, SetCatalog) == []
