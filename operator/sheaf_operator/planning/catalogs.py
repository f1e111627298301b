"""The catalog of each pod: all adapters of its Model, with those pinned that are placed there.

A catalog's generation is a counter over a fingerprint of its content: `counter << 40 | fingerprint`. So an operator
that has just started, and remembers nothing, sees from the generation that an agent holds whether its content is the
wanted one, and which number is newer than every one sent before. An agent without a catalog reports 0, which no
catalog has. The fingerprint is a sum over the entries, so that of a Model with many pods only what differs between
them is counted for each.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence

from sheaf_crds import Adapter
from sheaf_crds.agent_api import AdapterState, AgentState, Catalog, CatalogEntry

from sheaf_operator.planning.snapshot import PodFacts

FINGERPRINT_BITS = 40
_FINGERPRINT = (1 << FINGERPRINT_BITS) - 1


class Catalogs:
    """The catalogs of one Model's pods."""

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self._adapters = {adapter.name: adapter for adapter in sorted(adapters, key=_name)}
        self._unpinned = {name: _mark(adapter, pinned=False) for name, adapter in self._adapters.items()}
        self._base = sum(self._unpinned.values())
        self._entries: dict[tuple[str, bool], CatalogEntry] = {}

    def generation(self, pinned: Collection[str], agent: AgentState) -> int:
        """The generation that the agent should hold: its own where it holds that content already."""
        pins = sum(_mark(self._adapters[name], pinned=True) - self._unpinned[name] for name in pinned)
        fingerprint = (self._base + pins) % _FINGERPRINT + 1
        if agent.catalog_generation & _FINGERPRINT == fingerprint:
            return agent.catalog_generation
        counter = agent.catalog_generation >> FINGERPRINT_BITS
        return (counter + 1) << FINGERPRINT_BITS | fingerprint

    def catalog(self, pinned: Collection[str], generation: int) -> Catalog:
        """The catalog itself."""
        entries = tuple(self._entry(adapter, pinned=name in pinned) for name, adapter in self._adapters.items())
        return Catalog(generation=generation, adapters=entries)

    def settled(self, pod: PodFacts, pinned: Collection[str]) -> bool:
        """Whether the pod serves, and its agent has a catalog and has done all that it can for what is pinned there.

        Any catalog will do: where adapters come and go all the time, a pod is not always at the newest one.
        """
        agent = pod.agent
        if not pod.serving or agent is None or not agent.catalog_generation:
            return False
        states = {state.name: state for state in agent.adapters}
        return all(_done(self._adapters[name], states) for name in pinned)

    def _entry(self, adapter: Adapter, *, pinned: bool) -> CatalogEntry:
        """The same entry for every pod, made once."""
        key = adapter.name, pinned
        if key not in self._entries:
            self._entries[key] = _entry(adapter, pinned=pinned)
        return self._entries[key]


def holds(state: AdapterState, digest: str | None) -> bool:
    """Whether the adapter is loaded, with the content that was declared (any, where none was)."""
    return state.state == "Resident" and digest in (None, state.digest)


def _done(adapter: Adapter, states: Mapping[str, AdapterState]) -> bool:
    state = states.get(adapter.name)
    return state is not None and (state.state == "Failed" or holds(state, adapter.spec.digest))


def _mark(adapter: Adapter, *, pinned: bool) -> int:
    """A number that stands for the entry."""
    spec = adapter.spec
    fields = adapter.name, spec.source, spec.digest, spec.rank, spec.size_limit, spec.priority, pinned
    return int.from_bytes(hashlib.blake2b(repr(fields).encode(), digest_size=16).digest(), "big")


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
