"""The third implementation of a cluster, in virtual time: it holds pods and carries out the operator's plan.

The operator's own planner decides, on every change and when it says that time alone will change its plan. Pods start
after a cold start, load what they are told to, drain, and are taken by the spot market.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sheaf_crds import Adapter, KubeObject, Model
from sheaf_crds.agent_api import AgentState
from sheaf_operator.planning import (
    Action,
    CreatePod,
    DeletePod,
    DrainPod,
    FleetIndex,
    Key,
    Notice,
    SetCatalog,
    UpdateStatus,
    plan_key,
)
from sheaf_operator.planning.market.settings import MarketSettings, Prices

from sheaf.simulator.clock import Clock
from sheaf.simulator.flights import Flight
from sheaf.simulator.market import Market
from sheaf.simulator.members import Bill, Member
from sheaf.simulator.pods import Pod
from sheaf.simulator.profiles import accelerator

PASS_S = 0.1


class Fleet:
    """All pods of all Models.

    Args:
        objects: what the manifests declare.
        market: capacity and prices.
        clock: the virtual time.
        cold_start_s: from creation to readiness.
        start: makes the engine of a pod that is ready.
        changed: told the Model whose routable pods changed.
        lost: told the requests of a pod that ended, with the tokens that each had generated.
    """

    def __init__(
        self,
        objects: Iterable[KubeObject],
        market: Market,
        clock: Clock,
        cold_start_s: float,
        start: Callable[[str, str], Pod[Flight]],
        changed: Callable[[str], None],
        lost: Callable[[list[tuple[Flight, int]]], None],
    ) -> None:
        self.members: dict[str, Member] = {}
        self._of: dict[str, dict[str, Member]] = {}
        self.bill = Bill()
        self.index = FleetIndex(market=_market_settings(market, cold_start_s))
        self._clock, self._market, self._cold_start = clock, market, cold_start_s
        self._start, self._changed, self._lost = start, changed, lost
        self._dirty: set[Key] = set()
        self._due = False
        self._uids = 0
        self._models: dict[str, Model] = {}
        self._ranks: dict[str, int] = {}
        for item in objects:
            self._dirty |= self.index.upsert(item)  # type: ignore[arg-type]
            if isinstance(item, Model):
                self._models[item.name] = item
            elif isinstance(item, Adapter):
                self._ranks[item.name] = item.spec.rank or 16
        self._watch_market()
        self._soon()

    def routable(self, model: str) -> list[Pod[Flight]]:
        """Engines of a Model that take requests, by rising name: those that stay, where there are none all."""
        serving = [one for _, one in sorted(self._of.get(model, {}).items()) if one.engine is not None]
        return [one.engine for one in [one for one in serving if one.stays] or serving if one.engine is not None]

    def engines(self, model: str) -> list[Pod[Flight]]:
        """All engines of a Model that serve."""
        return [one.engine for one in self._of.get(model, {}).values() if one.engine is not None]

    def leaving(self, model: str) -> list[tuple[Pod[Flight], float]]:
        """Engines of a Model that have to go, with when, where others stay."""
        serving = [one for one in self._of.get(model, {}).values() if one.engine is not None]
        going = [one for one in serving if not one.stays]
        return [(one.engine, one.leaves_at) for one in going if one.engine] if len(going) < len(serving) else []

    def wanted(self, model: str) -> int:
        """Pods of a Model that are there or coming."""
        return len(self._of.get(model, ()))

    def refresh(self) -> None:
        """Show the operator how busy pods are, and their adapters."""
        for member in self.members.values():
            member.look(self._clock.now)
            self._dirty |= self.index.upsert(member.facts())

    def plan_again(self, keys: Iterable[Key]) -> None:
        """Something else than pods says that these may have another plan."""
        self._dirty |= set(keys)
        if self._dirty:
            self._soon()

    def idle(self, pod: str) -> None:
        """A pod has nothing left to do: if it drains, it may go."""
        member = self.members.get(pod)
        if member is not None and member.agent is not None and member.agent.draining:
            self._touch(member)

    def owed(self) -> float:
        """Money for all pods so far."""
        return self.bill.money + sum(self._cost(member) for member in self.members.values())

    def settle_anew(self) -> None:
        """Forget what was paid for until now: the time that counts begins."""
        self.bill = Bill()
        for member in self.members.values():
            member.paid_from = max(member.paid_from, self._clock.now)

    def settle(self) -> None:
        """Pay for what still runs."""
        for member in self.members.values():
            self._pay(member)

    def _soon(self) -> None:
        if not self._due:
            self._due = True
            self._clock.at(self._clock.now + PASS_S, self._pass)

    def _wake(self, key: Key) -> None:
        self._dirty.add(key)
        self._soon()

    def _touch(self, member: Member) -> None:
        self._dirty |= self.index.upsert(member.facts())
        self._soon()

    def _pass(self, _: object) -> None:
        self._due = False
        dirty, self._dirty = sorted(self._dirty), set()
        now = self._clock.epoch + self._clock.now
        for key in dirty:
            plan = plan_key(self.index, key, now)
            for action in plan.actions:
                self._act(action)
            if plan.wake_at is not None:
                self._clock.at(max(plan.wake_at - self._clock.epoch, self._clock.now) + PASS_S, self._wake, key)

    def _act(self, action: Action) -> None:
        match action:
            case CreatePod():
                self._create(action)
            case DeletePod():
                self._delete(action)
            case DrainPod():
                self._drain(action)
            case SetCatalog():
                self._set_catalog(action)
            case UpdateStatus():
                self._status(action)

    def _status(self, action: UpdateStatus) -> None:
        """Remember what was written, so that it is not written again."""
        found = {
            "Model": self.index.model,
            "Adapter": self.index.adapter,
            "SLO": self.index.slo,
            "AutoscalingPolicy": self.index.policy,
        }.get(action.kind)
        item = found(action.name) if found is not None else None
        if item is not None:
            self.index.upsert(item.model_copy(update={"status": action.status}))

    def _create(self, action: CreatePod) -> None:
        if action.name in self.members:
            return
        template, now = action.template, self._clock.now
        self._uids += 1
        spot, zone = self._place(template.model, wanted=template.spot, asked=action.zone)
        member = Member(
            action.name,
            f"uid-{self._uids}",
            template.model,
            template.owner_uid,
            template.hash,
            now,
            spot,
            zone or "",
            self._clock.epoch,
        )
        member.paid_from = now
        self.members[action.name] = member
        self._of.setdefault(template.model, {})[action.name] = member
        member.asked = action.zone
        self._begin(member, waits=zone is None)

    def _begin(self, member: Member, *, waits: bool) -> None:
        member.pending = waits
        if not waits:
            member.scheduled_at = self._clock.now
            self._clock.at(self._clock.now + self._cold_start, self._ready, member)
        self._touch(member)

    def _place(self, model: str, *, wanted: bool, asked: str) -> tuple[bool, str | None]:
        """Whether a new pod of the Model runs on spot, and in which zone (None: there is no room for it now).

        The planner says so where there are zones to choose from.
        """
        spec = self._models[model].spec.spot
        if len(self.index.market.zones) > 1:
            return wanted, self._room_in(asked) if wanted else ""
        if not wanted and spec.policy == "Never":
            return False, ""
        firm = sum(not member.spot for member in self._of.get(model, {}).values())
        if firm < spec.on_demand_floor:
            return False, ""
        zone = self._free_zone()
        if zone is None and spec.policy != "Required":
            return False, ""
        return True, zone

    def _room_in(self, zone: str) -> str | None:
        here = next((one for one in self._market.zones if one.name == zone), None)
        free = here is not None and here.at(self._clock.now) > self._held(zone)
        return zone if free else None

    def _free_zone(self) -> str | None:
        """The zone with most spot capacity left, the fewest of our pods where equal."""
        now = self._clock.now
        free = [(zone.at(now) - self._held(zone.name), zone.name) for zone in self._market.zones]
        best = max(free, key=lambda item: item[0], default=(0, ""))
        return best[1] if best[0] > 0 else None

    def _held(self, zone: str) -> int:
        return sum(member.spot and member.zone == zone for member in self.members.values())

    def _ready(self, member: Member) -> None:
        if self.members.get(member.name) is not member:
            return
        member.engine = self._start(member.name, member.model)
        member.agent = AgentState(
            version=1,
            model=member.model,
            engine="Ready",
            capacity=member.engine.engine.profile.max_cpu_loras,
            max_model_len=member.engine.engine.profile.max_model_len,
        )
        self._touch(member)
        self._changed(member.model)

    def _set_catalog(self, action: SetCatalog) -> None:
        member = self.members.get(action.pod)
        if member is None or member.uid != action.uid or member.agent is None or member.engine is None:
            return
        pinned = [entry for entry in action.catalog.adapters if entry.pinned]
        for entry in pinned:
            member.engine.load_adapter(entry.name, entry.rank or self._ranks.get(entry.name, 16))
        member.agent = member.agent.model_copy(update={"catalog_generation": action.catalog.generation, "adapters": ()})
        member.entries = action.catalog.adapters
        member.look(self._clock.now)
        self._touch(member)

    def _drain(self, action: DrainPod) -> None:
        member = self.members.get(action.name)
        if member is not None and member.uid == action.uid and member.agent is not None:
            deadline = self._clock.epoch + self._clock.now + action.seconds
            member.agent = member.agent.model_copy(update={"draining": True, "drain_deadline": deadline})
            self._touch(member)
            self._changed(member.model)

    def _delete(self, action: DeletePod) -> None:
        member = self.members.get(action.name)
        if member is not None and member.uid == action.uid:
            self._end(member)

    def _end(self, member: Member) -> None:
        del self.members[member.name]
        del self._of[member.model][member.name]
        self._pay(member)
        self._dirty |= self.index.remove("Pod", member.name)
        self._soon()
        lost = member.engine.stop() if member.engine is not None else []
        self._changed(member.model)
        if lost:
            self._lost(lost)

    def _pay(self, member: Member) -> None:
        if member.pending:
            return
        self.bill.money += self._cost(member)
        seconds = self._clock.now - member.paid_from
        member.paid_from = self._clock.now
        self.bill.pod_seconds += seconds
        self.bill.spot_seconds += seconds if member.spot else 0.0

    def _cost(self, member: Member) -> float:
        if member.pending:
            return 0.0
        kind, count = accelerator(self._models[member.model])
        hours = (self._clock.now - member.paid_from) / 3600.0
        return hours * count * self._market.price(kind, spot=member.spot)

    def _watch_market(self) -> None:
        for zone in self._market.zones:
            for time, count in zone.changes():
                self._clock.at(time, self._capacity_changed, (zone.name, count))

    def _capacity_changed(self, change: tuple[str, int]) -> None:
        zone, count = change
        there = [one for one in self.members.values() if one.spot and one.zone == zone and one.notice is None]
        youngest = sorted(there, key=lambda one: (-one.created_at, one.name))
        for member in youngest[: max(0, len(there) - count)]:
            self._preempt(member)
        for member in [one for one in self.members.values() if one.pending]:
            free = self._room_in(member.asked) if member.asked else self._free_zone()
            if free is not None:
                member.zone, member.paid_from = free, self._clock.now
                self._begin(member, waits=False)

    def _preempt(self, member: Member) -> None:
        self.bill.preemptions += 1
        if not self._market.notice_s:
            self._end(member)
            return
        deadline = self._clock.epoch + self._clock.now + self._market.notice_s
        member.notice = Notice("market", "SpotInterruption", "taken by the spot market", deadline)
        self._touch(member)
        self._changed(member.model)
        self._clock.at(self._clock.now + self._market.notice_s, self._taken, member)

    def _taken(self, member: Member) -> None:
        if self.members.get(member.name) is member:
            self._end(member)


def _market_settings(market: Market, cold_start_s: float) -> MarketSettings:
    """The market as the operator's configuration would tell of it; zones have their files' names, whatever they are."""
    prices = {kind: Prices(on_demand=price.on_demand, spot=price.spot) for kind, price in market.prices.items()}
    zones = tuple(zone.name for zone in market.zones)
    return MarketSettings.model_construct(zones=zones if len(zones) > 1 else (), prices=prices, cold_start=cold_start_s)
