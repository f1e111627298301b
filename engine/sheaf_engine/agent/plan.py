"""What the agent does next, decided from facts alone: no clock, no I/O.

Slots of the engine go to pinned adapters first, by priority; what is left serves adapters on demand, least recently
used out first, idle ones before busy ones. A pinned adapter is never evicted for one that is not. One engine call is
planned at a time: after it the facts are new. The catalog may hold 100,000 adapters; the cost of a plan grows only
with those that are pinned, loaded or asked for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from sheaf_crds.agent_api import Catalog, CatalogEntry

from sheaf_engine.agent.errors import PASSING, AdapterError, Reason

MOST_PREPARING = 4
LONGEST_BACKOFF = 300.0

Work = Literal["Preparing", "Loading", "Unloading"]


@dataclass(frozen=True, slots=True)
class Files:
    """An adapter that may be given to the engine: its folder, digest, highest rank, bytes, and what was not checked."""

    path: str
    digest: str
    rank: int
    size: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """A catalog, ordered once: entries by name, and the pinned ones in the order in which they get slots.

    Until the first catalog came (`known` is false) nothing that the engine holds is touched: an agent that starts anew
    beside a serving engine must not disturb it.
    """

    by_name: Mapping[str, CatalogEntry]
    pinned: tuple[str, ...]
    generation: int
    known: bool = True

    @classmethod
    def of(cls, catalog: Catalog) -> "Index":
        """Order a catalog; of entries with the same name the last one counts."""
        by_name = {entry.name: entry for entry in catalog.adapters}
        ranked = sorted((-entry.priority, name) for name, entry in by_name.items() if entry.pinned)
        return cls(by_name, tuple(name for _, name in ranked), catalog.generation)


@dataclass(frozen=True, slots=True)
class Resident:
    """An adapter that the engine lists: the path it was loaded from, when it was last seen used, requests on it now."""

    path: str
    last_used: float = 0.0
    active: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the last attempt failed, how many failed in a row, and when the next one is due (Unix seconds)."""

    reason: Reason
    message: str
    attempts: int
    retry_at: float


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a plan depends on."""

    index: Index
    capacity: int
    engine_ready: bool
    now: float
    resident: Mapping[str, Resident]
    files: Mapping[str, Files]
    failures: Mapping[str, Failure]
    requested: Mapping[str, float]
    working: Mapping[str, Work]


@dataclass(frozen=True, slots=True)
class Prepare:
    """Get the files of an adapter checked and onto the disk."""

    name: str
    cached_only: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """Load an adapter into the engine; `replaces`: another version of it is loaded and goes first."""

    name: str
    path: str
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class Unload:
    """Take an adapter out of the engine."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do next. `short`: wanted adapters that find no slot."""

    prepare: tuple[Prepare, ...] = ()
    engine: Load | Unload | None = None
    short: tuple[str, ...] = ()


def failed(error: AdapterError, before: Failure | None, now: float) -> Failure:
    """The failure to remember: waits double from one second; a lasting verdict waits longest at once."""
    attempts = (before.attempts if before else 0) + 1
    wait = LONGEST_BACKOFF if error.lasting else min(LONGEST_BACKOFF, 2.0 ** min(attempts - 1, 16))
    return Failure(error.reason, error.message, attempts, now + wait)


def waits(facts: Facts, name: str) -> bool:
    """Whether an adapter's next attempt is not due yet."""
    failure = facts.failures.get(name)
    return failure is not None and facts.now < failure.retry_at


def over(facts: Facts) -> frozenset[str]:
    """The adapters whose failure is no news: it was a passing one, its wait is over, and nobody wants them now."""
    wanted = {*facts.index.pinned, *facts.requested}
    due = (name for name, failure in facts.failures.items() if failure.reason in PASSING and not waits(facts, name))
    return frozenset(due) - wanted


def keepers(facts: Facts) -> tuple[str, ...]:
    """The pinned adapters that have a slot to themselves."""
    return facts.index.pinned[: facts.capacity]


def make_plan(facts: Facts) -> Plan:
    """The next steps from these facts."""
    kept = keepers(facts)
    wanted = _wanted(facts, kept)
    engine, short = _engine(facts, kept, wanted) if facts.engine_ready else (None, ())
    without_slot = tuple(
        name
        for name in facts.index.pinned[facts.capacity :]
        if name not in facts.resident.keys() | facts.requested.keys()
    )
    return Plan(tuple(_prepare(facts, wanted)), engine, tuple(dict.fromkeys((*without_slot, *short))))


def _wanted(facts: Facts, kept: tuple[str, ...]) -> tuple[str, ...]:
    asked = sorted(facts.requested, key=lambda name: (facts.requested[name], name))
    active = sorted(name for name, resident in facts.resident.items() if resident.active)
    order = [*(n for n in asked if n in set(kept)), *asked, *kept, *active]
    return tuple(name for name in dict.fromkeys(order) if name in facts.index.by_name)


def _prepare(facts: Facts, wanted: tuple[str, ...]) -> Iterator[Prepare]:
    free = MOST_PREPARING - sum(work == "Preparing" for work in facts.working.values())
    to_verify = sorted(name for name in facts.resident if name in facts.index.by_name and name not in set(wanted))
    for name in (*wanted, *to_verify):
        if free > 0 and name not in facts.files and name not in facts.working and not waits(facts, name):
            free -= 1
            yield Prepare(name, cached_only=name not in wanted)


def _engine(
    facts: Facts, kept: tuple[str, ...], wanted: tuple[str, ...]
) -> tuple[Load | Unload | None, tuple[str, ...]]:
    if any(work in {"Loading", "Unloading"} for work in facts.working.values()):
        return None, ()
    stray = _stray(facts, set(wanted))
    if stray is not None:
        return stray, ()
    short: list[str] = []
    for name in wanted:
        step = _step(facts, kept, name)
        if step is not None:
            return step, tuple(short)
        if _missing(facts, name):
            short.append(name)
    return None, tuple(short)


def _stray(facts: Facts, wanted: set[str]) -> Unload | None:
    for name in sorted(facts.resident) if facts.index.known else ():
        files = facts.files.get(name)
        if name not in facts.index.by_name:
            return Unload(name, "it is not in the catalog any more")
        if name not in wanted and files is None and waits(facts, name):
            return Unload(name, "what is loaded is not known to be what the catalog declares")
        if name not in wanted and files is not None and files.path != facts.resident[name].path:
            return Unload(name, "the catalog declares another version")
    return None


def _missing(facts: Facts, name: str) -> bool:
    files = facts.files.get(name)
    if files is None or name in facts.working or waits(facts, name):
        return False
    resident = facts.resident.get(name)
    return resident is None or resident.path != files.path


def _step(facts: Facts, kept: tuple[str, ...], name: str) -> Load | Unload | None:
    if not _missing(facts, name):
        return None
    path = facts.files[name].path
    if name in facts.resident:
        return Load(name, path, replaces=True)
    if _has_room(facts, kept, name):
        return Load(name, path)
    victim = _victim(facts, kept, name)
    return None if victim is None else Unload(victim, f"its slot is needed for {name}")


def _has_room(facts: Facts, kept: tuple[str, ...], name: str) -> bool:
    if name in kept:
        return len(facts.resident) < facts.capacity
    return len(facts.resident) < facts.capacity and _on_demand(facts, kept) < _open_slots(facts, kept)


def _on_demand(facts: Facts, kept: tuple[str, ...]) -> int:
    return len(facts.resident.keys() - set(kept))


def _open_slots(facts: Facts, kept: tuple[str, ...]) -> int:
    reserved = sum(1 for name in kept if name in facts.resident or not waits(facts, name))
    return facts.capacity - reserved


def _victim(facts: Facts, kept: tuple[str, ...], name: str) -> str | None:
    if name not in kept and _open_slots(facts, kept) < 1:
        return None
    others = [one for one in facts.resident if one not in set(kept)]
    return min(others, key=lambda one: _keep_order(facts, one), default=None)


def _keep_order(facts: Facts, name: str) -> tuple[bool, bool, float, str]:
    resident = facts.resident[name]
    return name in facts.requested, resident.active, resident.last_used, name
