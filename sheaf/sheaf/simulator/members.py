"""Pods as the simulated cluster knows them, and as the operator sees them; and what was paid for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sheaf_crds.agent_api import AdapterState, AgentState, CatalogEntry, EngineLoad
from sheaf_engine.agent.activity import Activity, observe
from sheaf_operator.planning import Notice, PodFacts

from sheaf.simulator.flights import Flight
from sheaf.simulator.pods import Pod


@dataclass(slots=True)
class Member:
    """One pod as the cluster knows it; times are virtual seconds, `epoch` the Unix seconds of their 0."""

    name: str
    uid: str
    model: str
    owner_uid: str
    template_hash: str
    created_at: float
    spot: bool
    zone: str
    epoch: float
    engine: Pod[Flight] | None = None
    agent: AgentState | None = None
    notice: Notice | None = None
    pending: bool = False
    asked: str = ""
    paid_from: float = 0.0
    scheduled_at: float = 0.0
    entries: Sequence[CatalogEntry] = ()
    activity: Mapping[str, Activity] = field(default_factory=dict)
    looked_at: float = 0.0

    @property
    def stays(self) -> bool:
        """Whether nothing says that it has to go."""
        return self.notice is None and not (self.agent is not None and self.agent.draining)

    @property
    def leaves_at(self) -> float:
        """When it has to go."""
        told = [self.notice.deadline] if self.notice else []
        told += [self.agent.drain_deadline] if self.agent and self.agent.draining else []
        return min((deadline - self.epoch for deadline in told if deadline is not None), default=float("inf"))

    def look(self, now: float) -> None:
        """Tell as the agent does which adapters are resident, and how much of the time each is used."""
        if self.engine is None or self.agent is None or not self.entries:
            return
        engine = self.engine.engine
        active = (*engine.adapters.running, *engine.waiting_adapters)
        self.activity = observe(self.activity, active, now - (self.looked_at or now))
        self.looked_at, here = now, frozenset(engine.adapters.in_host_memory)
        states = tuple(self._state(entry) for entry in self.entries if entry.pinned or entry.name in here)
        if states != self.agent.adapters:
            self.agent = self.agent.model_copy(update={"adapters": states})

    def _state(self, entry: CatalogEntry) -> AdapterState:
        told = self.activity[entry.name].told if entry.name in self.activity else 0.0
        digest, rank = entry.digest or "", entry.rank or 0
        return AdapterState(name=entry.name, state="Resident", digest=digest, rank=rank, activity=told)

    def facts(self) -> PodFacts:
        """As the operator sees it."""
        ready = self.engine is not None
        agent = self.agent
        if agent is not None and self.engine is not None:
            agent = agent.model_copy(update={"load": _load(self.engine)})
        return PodFacts(
            self.name,
            self.uid,
            self.model,
            self.owner_uid,
            self.template_hash,
            phase="Ready" if ready else ("Pending" if self.pending else "Starting"),
            ready=ready,
            created_at=self.epoch + self.created_at,
            reason="Unschedulable" if self.pending else "",
            node="" if self.pending else f"node-{self.uid}",
            zone=self.zone or self.asked,
            spot=self.spot,
            agent=agent,
            notice=self.notice,
            scheduled_at=0.0 if self.pending else self.epoch + self.scheduled_at,
        )


@dataclass(slots=True)
class Bill:
    """What was paid for."""

    money: float = 0.0
    pod_seconds: float = 0.0
    spot_seconds: float = 0.0
    preemptions: int = 0


def replicas(members: Mapping[str, Member]) -> tuple[int, int]:
    """Pods that are ready, and those of them on spot."""
    ready = [member for member in members.values() if member.engine is not None]
    return len(ready), sum(member.spot for member in ready)


def _load(pod: Pod[Flight]) -> EngineLoad:
    """What an agent reads in its engine's metrics; what is done and not told yet still runs."""
    waiting = pod.engine.waiting
    return EngineLoad(running=max(0, len(pod.flights) - waiting), waiting=waiting, kv_usage=pod.engine.cache_usage)
