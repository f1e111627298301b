"""What the agent knows between two looks at the engine, and the state that it tells from that.

The version grows exactly when what is told changes; whoever waits for a newer one is woken then. A wait is bounded by
its caller.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Literal

from sheaf_crds.agent_api import AdapterState, AgentNotice, AgentState, Catalog, EngineLoad

from sheaf_engine.agent.activity import Activity
from sheaf_engine.agent.errors import Reason
from sheaf_engine.agent.plan import Facts, Failure, Files, Index, Resident, Work

Phase = Literal["Starting", "Ready", "Unhealthy", "Stopped"]


@dataclass(slots=True)
class Engine:
    """The engine as last seen."""

    phase: Phase = "Starting"
    epoch: int = 0
    started: float = 0.0
    version: str = ""
    max_model_len: int = 0
    block_size: int = 0
    kv_tokens: int = 0
    kernels: str = "stock"
    continues: bool = False
    load: EngineLoad = field(default_factory=EngineLoad)


@dataclass(slots=True)
class Memory:
    """Everything that the agent knows. Changed by the supervisor only."""

    model: str
    capacity: int
    index: Index = field(default_factory=lambda: Index({}, (), 0, known=False))
    engine: Engine = field(default_factory=Engine)
    resident: dict[str, Resident] = field(default_factory=dict)
    files: dict[str, Files] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    requested: dict[str, float] = field(default_factory=dict)
    working: dict[str, Work] = field(default_factory=dict)
    short: frozenset[str] = frozenset()
    over: frozenset[str] = frozenset()
    activity: dict[str, Activity] = field(default_factory=dict)
    draining: bool = False
    drain_deadline: float = 0.0
    drains_until_restart: bool = False
    notice: AgentNotice | None = None
    vocabulary: str = ""

    def facts(self, now: float) -> Facts:
        """An immutable view for the plan."""
        return Facts(
            self.index,
            self.capacity,
            self.engine.phase == "Ready",
            now,
            dict(self.resident),
            dict(self.files),
            dict(self.failures),
            dict(self.requested),
            dict(self.working),
        )

    def take(self, catalog: Catalog) -> bool:
        """Replace the catalog, forgetting what was known of changed entries; False if it is older than the last one."""
        if self.index.known and catalog.generation < self.index.generation:
            return False
        before, self.index = self.index, Index.of(catalog)
        for name in tuple(self.files.keys() | self.failures.keys()):
            old, new = before.by_name.get(name), self.index.by_name.get(name)
            if old is None or new is None or _content(old) != _content(new):
                self.files.pop(name, None)
                self.failures.pop(name, None)
        return True

    def drain(self, deadline: float, *, until_restart: bool) -> None:
        """The pod goes by then (Unix seconds), or its engine; a second drain only brings it nearer and adds the pod."""
        first = not self.draining
        self.draining = True
        self.drain_deadline = deadline if first else min(deadline, self.drain_deadline)
        self.drains_until_restart = until_restart and (first or self.drains_until_restart)

    def restarted(self) -> None:
        """The engine has started anew: a drain that was its own is over."""
        if self.drains_until_restart:
            self.draining, self.drain_deadline, self.drains_until_restart = False, 0.0, False

    def correct(self, name: str) -> bool:
        """Whether what the catalog declares is what is resident."""
        resident, files = self.resident.get(name), self.files.get(name)
        return resident is not None and files is not None and resident.path == files.path


def _content(entry: object) -> tuple[object, ...]:
    return tuple(getattr(entry, name) for name in ("source", "digest", "rank", "size_limit"))


def describe(memory: Memory) -> AgentState:
    """What is true now, with version 0."""
    engine = memory.engine
    return AgentState(
        model=memory.model,
        engine=engine.phase,
        engine_epoch=engine.epoch,
        engine_version=engine.version,
        kernels=engine.kernels,
        continues=engine.continues,
        max_model_len=engine.max_model_len,
        block_size=engine.block_size,
        kv_tokens=engine.kv_tokens,
        vocabulary=memory.vocabulary,
        capacity=memory.capacity,
        draining=memory.draining,
        drain_deadline=memory.drain_deadline,
        drains_until_restart=memory.drains_until_restart,
        notice=memory.notice,
        catalog_generation=memory.index.generation,
        load=engine.load,
        adapters=tuple(_adapter(memory, name) for name in sorted(_told(memory))),
    )


def _told(memory: Memory) -> set[str]:
    wanted = {*memory.index.pinned, *memory.requested, *memory.failures.keys() - memory.over}
    return {*memory.resident, *(name for name in wanted if name in memory.index.by_name)}


def _adapter(memory: Memory, name: str) -> AdapterState:
    files, failure, resident = memory.files.get(name), memory.failures.get(name), memory.resident.get(name)
    known = files if files is not None and (resident is None or resident.path == files.path) else None
    digest = known.digest if known else _digest(resident)
    size = (known.size, known.rank) if known else (0, 0)
    if resident is not None:
        why = (failure.reason, failure.message) if failure else ("", known.note if known else "")
        state: Literal["Resident", "Loading", "Failed"] = "Resident"
    elif failure is not None and name not in memory.working:
        why, state = (failure.reason, failure.message), "Failed"
    elif name in memory.short:
        why, state = (Reason.CAPACITY_EXCEEDED, _short(memory)), "Failed"
    else:
        why, state = ("", ""), "Loading"
    retry = failure.retry_at if failure is not None and state == "Failed" else 0.0
    return AdapterState(
        name=name, state=state, digest=digest, size_bytes=size[0], rank=size[1],
        activity=memory.activity[name].told if name in memory.activity else 0.0,
        reason=str(why[0]), message=why[1][:2000], retry_at=retry,
    )  # fmt: skip


def _digest(resident: Resident | None) -> str:
    last = resident.path.rpartition("/")[2] if resident else ""
    return f"sha256:{last}" if len(last) == 64 and set(last) <= set("0123456789abcdef") else ""


def _short(memory: Memory) -> str:
    return (
        f"the engine holds {memory.capacity} adapters, and pinned adapters of higher priority fill them; raise "
        "spec.lora.maxAdapters, spec.replicas or the priority"
    )


class Board:
    """The state that is told, with its version, and who waits for the next."""

    def __init__(self) -> None:
        self.state = AgentState()
        self._changed = asyncio.Event()
        self.closed = False

    def post(self, state: AgentState) -> None:
        """Tell a state; nothing happens if it is what was told before."""
        told = state.model_copy(update={"version": self.state.version})
        if told != self.state:
            self.state = told.model_copy(update={"version": self.state.version + 1})
            self._wake()

    def close(self) -> None:
        """End every wait."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def newer(self, version: int, seconds: float) -> AgentState:
        """The state once its version is not `version`, or after the wait."""
        try:
            async with asyncio.timeout(seconds):
                while self.state.version == version and not self.closed:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self.state
