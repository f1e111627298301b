"""Who is served next among tenants: pure books of service received, in virtual tokens.

A prompt token that had to be computed costs `PROMPT_PRICE`, an output token `OUTPUT_PRICE`, both divided by the
tenant's weight. Each policy keeps one number for each tenant:

- **VTC** (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024): a counter of what was charged; the
  backlogged tenant with the lowest goes first. A tenant that comes back is lifted to the counter of the tenant that
  was served last, so that idling saves up nothing. Between two backlogged tenants of equal weight the service differs
  by at most 2 * max(PROMPT_PRICE * longest prompt, OUTPUT_PRICE * tokens in flight).
- **DLPM** (Cao et al., Locality-aware Fair Scheduling in LLM Serving, 2025): a deficit that charges lower; whoever's
  is above zero may go, the longest match in a cache first. When nobody's is, a round begins and everybody is given one
  quantum, never above one quantum in all, so that idling saves up at most that. The bound is VTC's plus one quantum
  for each side.
- **None**: nobody is charged; the earliest deadline goes first.

Books are bounded: tenants that wait for nothing leave when there are too many, those first that are owed nothing.
"""

import math
from collections.abc import Iterable

from sheaf_gateway.admission.terms import Policy

PROMPT_PRICE = 1.0
OUTPUT_PRICE = 2.0
QUANTUM = 8192.0
MAX_TENANTS = 10_000


class Tenant:
    """One tenant's books: `level` is VTC's counter or DLPM's deficit, `waiting` its requests in the queue."""

    __slots__ = ("level", "name", "round", "served", "waiting", "weight")

    def __init__(self, name: str, weight: float, level: float, started: int) -> None:
        self.name = name
        self.weight = weight
        self.level = level
        self.round = started
        self.waiting = 0
        self.served = 0.0


class Books:
    """The policy None, and what all policies share: the tenants' books, bounded. `plain` says that arriving and
    entering mean nothing, and that a charge only adds to what was served."""

    policy: Policy = "None"
    plain: bool = True

    def __init__(self, max_tenants: int = MAX_TENANTS) -> None:
        self.tenants: dict[str, Tenant] = {}
        self._max = max_tenants

    def tenant(self, name: str, weight: float) -> Tenant:
        """The books of a tenant, with the weight that it has now."""
        found = self.tenants.get(name)
        if found is None:
            if len(self.tenants) >= self._max:
                self._make_room()
            found = self.tenants[name] = self._opened(name, weight)
        found.weight = weight
        return found

    def arrive(self, tenant: Tenant) -> None:
        """A request of the tenant is at the door; call before `waiting` counts it."""

    def enter(self, tenant: Tenant) -> None:
        """A request of the tenant begins to be served; call before it is charged."""

    def charge(self, tenant: Tenant, cost: float) -> None:
        """The tenant was served `cost`; a negative one corrects."""
        tenant.served += cost

    def hear(self, tenant: Tenant, cost: float) -> None:
        """Another gateway served the tenant `cost`: it counts for whose turn it is, not for what was served here."""

    def eligible(self, backlogged: Iterable[Tenant]) -> list[Tenant]:
        """Those of the backlogged tenants among whom the next request is chosen; never empty for some."""
        return list(backlogged)

    def _opened(self, name: str, weight: float) -> Tenant:
        return Tenant(name, weight, 0.0, 0)

    def _make_room(self) -> None:
        idle = [tenant for tenant in self.tenants.values() if not tenant.waiting]
        for tenant in sorted(idle, key=self._owing)[: max(1, self._max // 10)]:
            del self.tenants[tenant.name]

    def _owing(self, tenant: Tenant) -> float:
        return tenant.served


class TokenCounters(Books):
    """VTC."""

    policy: Policy = "VTC"
    plain = False

    def __init__(self, max_tenants: int = MAX_TENANTS) -> None:
        super().__init__(max_tenants)
        self.floor = 0.0

    def arrive(self, tenant: Tenant) -> None:
        """Lift a tenant that waited for nothing to the counter of who was served last."""
        if not tenant.waiting and tenant.level < self.floor:
            tenant.level = self.floor

    def enter(self, tenant: Tenant) -> None:
        """Who is served now had the lowest counter of all."""
        self.floor = max(self.floor, tenant.level)

    def charge(self, tenant: Tenant, cost: float) -> None:
        """Raise the counter."""
        tenant.served += cost
        tenant.level += cost / tenant.weight

    def hear(self, tenant: Tenant, cost: float) -> None:
        """Raise the counter alone."""
        tenant.level += cost / tenant.weight

    def eligible(self, backlogged: Iterable[Tenant]) -> list[Tenant]:
        """The one with the lowest counter; of equal ones the first by name."""
        lowest = min(backlogged, key=_level_and_name, default=None)
        return [] if lowest is None else [lowest]

    def _opened(self, name: str, weight: float) -> Tenant:
        return Tenant(name, weight, self.floor, 0)

    def _owing(self, tenant: Tenant) -> float:
        return tenant.level


class Deficits(Books):
    """DLPM. Rounds are counted for all and worked into a tenant's deficit when it is looked at."""

    policy: Policy = "DLPM"
    plain = False

    def __init__(self, max_tenants: int = MAX_TENANTS, quantum: float = QUANTUM) -> None:
        super().__init__(max_tenants)
        self.quantum = quantum
        self.round = 0

    def arrive(self, tenant: Tenant) -> None:
        """Work in the rounds that passed while it was away."""
        self._settle(tenant)

    def enter(self, tenant: Tenant) -> None:
        """Who is served alone begins rounds for all: debts are paid and nobody saves up."""
        self._settle(tenant)
        if tenant.level <= 0.0:
            self._begin_rounds([tenant])

    def charge(self, tenant: Tenant, cost: float) -> None:
        """Lower the deficit."""
        tenant.served += cost
        self.hear(tenant, cost)

    def hear(self, tenant: Tenant, cost: float) -> None:
        """Lower the deficit alone."""
        if tenant.round != self.round:
            self._settle(tenant)
        level = tenant.level - cost / tenant.weight
        tenant.level = min(self.quantum, level)

    def eligible(self, backlogged: Iterable[Tenant]) -> list[Tenant]:
        """Those above zero, after as many rounds as it takes for one to be."""
        waiting = list(backlogged)
        for tenant in waiting:
            self._settle(tenant)
        able = [tenant for tenant in waiting if tenant.level > 0.0]
        if able or not waiting:
            return able
        self._begin_rounds(waiting)
        return [tenant for tenant in waiting if tenant.level > 0.0] or waiting

    def _begin_rounds(self, tenants: list[Tenant]) -> None:
        nearest = max(tenant.level for tenant in tenants)
        self.round += math.floor(-nearest / self.quantum) + 1
        for tenant in tenants:
            self._settle(tenant)

    def _settle(self, tenant: Tenant) -> None:
        passed = self.round - tenant.round
        if passed:
            tenant.round = self.round
            tenant.level = min(self.quantum, tenant.level + passed * self.quantum)

    def _opened(self, name: str, weight: float) -> Tenant:
        return Tenant(name, weight, self.quantum, self.round)

    def _owing(self, tenant: Tenant) -> float:
        self._settle(tenant)
        return -tenant.level


def _level_and_name(tenant: Tenant) -> tuple[float, str]:
    return tenant.level, tenant.name


_POLICIES: dict[Policy, type[Books]] = {"None": Books, "VTC": TokenCounters, "DLPM": Deficits}


def books(policy: Policy) -> Books:
    """Empty books of a policy."""
    return _POLICIES[policy]()
