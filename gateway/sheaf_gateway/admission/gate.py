"""One Model's gate: what runs, who waits, what is owed, and what has been learnt of how long things take."""

import math

import msgspec

from sheaf_gateway.admission.fairness import OUTPUT_PRICE, PROMPT_PRICE, Tenant, books
from sheaf_gateway.admission.line import Line
from sheaf_gateway.admission.terms import Ask, Policy, Terms, Work

_PRIOR_SERVICE_S = 1.0
_SMOOTHING = 0.1
_SIZES_SMOOTHING = 0.003
_RATE_WINDOW_S = 30.0


class Rate:
    """Arrivals a second, the older the less: an exponential window of half a minute."""

    __slots__ = ("_at", "_count")

    def __init__(self) -> None:
        self._count = 0.0
        self._at = 0.0

    def count(self, now: float) -> None:
        """One arrival."""
        passed = now - self._at
        if passed > 0.0:
            self._count *= math.exp(-passed / _RATE_WINDOW_S)
            self._at = now
        self._count += 1.0

    def read(self, now: float) -> float:
        """Arrivals a second."""
        return self._decayed(now) / _RATE_WINDOW_S

    def _decayed(self, now: float) -> float:
        passed = now - self._at
        return self._count * math.exp(-passed / _RATE_WINDOW_S) if passed > 0.0 else self._count


class Sizes:
    """Tokens of requests that went well: means, of which about the last three hundred count."""

    __slots__ = ("_contexts", "_count", "_squares", "output", "prompt", "square", "uncached")

    def __init__(self) -> None:
        self._count = 0
        self.prompt = self.uncached = self.output = self.square = 0.0
        self._contexts = self._squares = 0.0

    def learn(self, prompt: float, uncached: float, output: float) -> None:
        """Note one request: tokens of its prompt, those of them that were computed, tokens of the answer."""
        self._count += 1
        weight = max(1.0 / self._count, _SIZES_SMOOTHING)
        self.prompt += weight * (prompt - self.prompt)
        self.uncached += weight * (uncached - self.uncached)
        self.square += weight * (uncached * uncached - self.square)
        self.output += weight * (output - self.output)
        contexts = output * (prompt + output / 2.0)
        squares = output * (prompt * prompt + prompt * output + output * output / 3.0)
        self._contexts += weight * (contexts - self._contexts)
        self._squares += weight * (squares - self._squares)

    @property
    def context(self) -> float:
        """Mean tokens of context of a sequence that decodes: every token of an answer counts as one look at it."""
        return self._contexts / self.output if self.output else 0.0

    @property
    def context_spread(self) -> float:
        """Squared coefficient of variation of that context."""
        return (
            max(0.0, self._squares * self.output / (self._contexts * self._contexts) - 1.0) if self._contexts else 0.0
        )

    @property
    def spread(self) -> float:
        """Squared coefficient of variation of the tokens computed."""
        return max(0.0, self.square / (self.uncached * self.uncached) - 1.0) if self.uncached else 0.0


class Bill(msgspec.Struct):
    """What a request under way has been charged, in tokens; `crowd` were under way when it came in, with itself."""

    tenant: Tenant
    crowd: int = 1
    prompt: float = 0.0
    output: float = 0.0


class Gate:
    """The state of one Model's door."""

    __slots__ = (
        "_charged",
        "among",
        "arrivals",
        "bills",
        "busy_at",
        "first_s",
        "learnt",
        "line",
        "refused",
        "service_s",
        "sizes",
        "slots",
    )

    def __init__(self, policy: Policy) -> None:
        self.service_s = _PRIOR_SERVICE_S
        self.first_s = 0.0
        self.learnt = False
        self.line = Line(books(policy))
        self.bills: dict[str, Bill] = {}
        self.arrivals = Rate()
        self.refused = 0
        self.sizes = Sizes()
        self.busy_at = 0.0
        self.slots = 0
        self.among = 0.0
        self._charged: dict[str, Tenant] | None = None

    def let_in(self, slots: int) -> bool:
        """So many may be under way from now on: whether there is room for one more. Times that were learnt among twice
        as many say nothing any more."""
        self.slots = slots
        if 0 < slots < self.among / 2.0:
            self.first_s = self.among = 0.0
            self.learnt = False
        return len(self.bills) < slots

    @property
    def running(self) -> int:
        """Requests that were admitted and are not over."""
        return len(self.bills)

    def adopt(self, terms: Terms) -> None:
        """Begin new books where the SLO names another policy now and nobody waits under the old one."""
        if terms.policy != self.line.books.policy and not self.line.size:
            self.line = Line(books(terms.policy))

    def enter(self, ask: Ask, tenant: Tenant, prompt: float) -> None:
        """A request begins to be served."""
        if not self.line.books.plain:
            self.line.books.enter(tenant)
        bill = self.bills[ask.request_id] = Bill(tenant, len(self.bills) + 1)
        self.charge(bill, prompt, 0.0)

    def charge(self, bill: Bill, prompt: float, output: float) -> None:
        """Bring a bill to these tokens in all."""
        cost = (prompt - bill.prompt) * PROMPT_PRICE + (output - bill.output) * OUTPUT_PRICE
        bill.prompt, bill.output = prompt, output
        if cost:
            books = self.line.books
            if books.plain:
                bill.tenant.served += cost
            else:
                books.charge(bill.tenant, cost)
            if self._charged is not None:
                self._charged[bill.tenant.name] = bill.tenant

    def tell(self, *, on: bool) -> None:
        """Note from now on who is charged, for `told`; or note nothing any more."""
        self._charged = {} if on else None

    def told(self) -> list[tuple[str, float, float]]:
        """Who was charged since the last time: tenant, what it was served here since the beginning, its weight."""
        if not self._charged:
            return []
        charged, self._charged = self._charged, {}
        return [(name, tenant.served, tenant.weight) for name, tenant in charged.items()]

    def learn(self, bill: Bill, service_s: float | None, first_s: float | None) -> None:
        """Note how long a request that went well was served, and how long its first token took; not of one that came in
        among more than twice as many as are let in now, for it waited where nobody will have to."""
        if bill.crowd > 2 * self.slots:
            return
        self.among += (_SMOOTHING if self.among else 1.0) * (bill.crowd - self.among)
        if service_s is not None:
            self.service_s += (_SMOOTHING if self.learnt else 1.0) * (service_s - self.service_s)
            self.learnt = True
        if first_s is not None:
            self.first_s += (_SMOOTHING if self.first_s else 1.0) * (first_s - self.first_s)

    def expected_wait(self, places: float, slots: int) -> float:
        """Seconds until that many requests have gone, each slot serving one after the other (Little's law)."""
        return places * self.service_s / max(1, slots)

    def expected_first(self, work: Work) -> float:
        """Seconds from admission to the first token."""
        return max(self.first_s, work.prefill_s)
