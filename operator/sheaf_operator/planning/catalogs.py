"""The catalog of each pod: all adapters of its Model, with those pinned that are placed there.

A catalog's generation is a counter over a fingerprint of its content: `counter << 40 | fingerprint`. So an operator
that has just started, and remembers nothing, sees from the generation that an agent holds whether its content is the
wanted one, and which number is newer than every one sent before. An agent without a catalog reports 0, which no
catalog has.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from sheaf_crds import Adapter, Model
from sheaf_crds.agent_api import AdapterState, AgentState, Catalog, CatalogEntry

from sheaf_operator.planning.engine import lora_capacity
from sheaf_operator.planning.placement import Want, place
from sheaf_operator.planning.snapshot import PodFacts

FINGERPRINT_BITS = 40
_FINGERPRINT = (1 << FINGERPRINT_BITS) - 1


def placements(model: Model, adapters: Sequence[Adapter], pods: Iterable[PodFacts]) -> dict[str, frozenset[str]]:
    """Adapters to keep loaded on each live pod.

    Pods that serve share the adapters among themselves; a pod that is still starting prepares its share of the whole.
    So an adapter leaves a serving pod only when the pod that takes it over serves too.
    """
    wants = [Want(adapter.name, adapter.spec.replicas, adapter.spec.priority) for adapter in adapters]
    live = [pod for pod in pods if pod.live]
    everywhere = place(wants, _capacities(model, live))
    return everywhere | place(wants, _capacities(model, [pod for pod in live if pod.serving]))


def catalog_of(adapters: Iterable[Adapter], pinned: frozenset[str], agent: AgentState) -> Catalog:
    """The catalog that the agent should hold; its generation is the agent's own where it holds it already."""
    entries = tuple(_entry(adapter, pinned=adapter.name in pinned) for adapter in sorted(adapters, key=_name))
    mark = fingerprint(entries)
    same = agent.catalog_generation & _FINGERPRINT == mark
    counter = agent.catalog_generation >> FINGERPRINT_BITS
    generation = agent.catalog_generation if same else (counter + 1) << FINGERPRINT_BITS | mark
    return Catalog(generation=generation, adapters=entries)


def fingerprint(entries: Iterable[CatalogEntry]) -> int:
    """A number from 1 to 2**40 - 1 that stands for the content."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(entry.model_dump_json().encode() + b"\n")
    return int.from_bytes(digest.digest()[:8], "big") % _FINGERPRINT + 1


def settled(pod: PodFacts, catalog: Catalog) -> bool:
    """Whether the pod serves and its agent has done all that it can with the wanted catalog."""
    if not pod.serving or pod.agent is None or pod.agent.catalog_generation != catalog.generation:
        return False
    states = {state.name: state for state in pod.agent.adapters}
    return all(_done(entry, states.get(entry.name)) for entry in catalog.adapters if entry.pinned)


def _done(entry: CatalogEntry, state: AdapterState | None) -> bool:
    return state is not None and (state.state == "Failed" or holds(state, entry.digest))


def holds(state: AdapterState, digest: str | None) -> bool:
    """Whether the adapter is loaded, with the content that was declared (any, where none was)."""
    return state.state == "Resident" and digest in (None, state.digest)


def _capacities(model: Model, pods: Iterable[PodFacts]) -> Mapping[str, int]:
    declared = lora_capacity(model.spec)
    return {pod.name: pod.agent.capacity if pod.agent and pod.agent.capacity else declared for pod in pods}


def _entry(adapter: Adapter, *, pinned: bool) -> CatalogEntry:
    spec = adapter.spec
    return CatalogEntry(
        name=adapter.name,
        source=spec.source,
        digest=spec.digest,
        rank=spec.rank,
        size_limit=spec.size_limit,
        priority=spec.priority,
        pinned=pinned,
    )


def _name(adapter: Adapter) -> str:
    return adapter.name
