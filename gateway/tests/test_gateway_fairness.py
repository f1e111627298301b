"""Fair shares: the bounds of VTC and DLPM hold for any load, idling saves up nothing, and no slot is left empty."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_gateway.admission.admission import Admission, Admit, Ask
from sheaf_gateway.admission.fairness import OUTPUT_PRICE, PROMPT_PRICE, QUANTUM, Books, Deficits, TokenCounters, books
from sheaf_gateway.admission.terms import Terms, Work

QUICK = settings(max_examples=20, deadline=None)


class Engine:
    """A virtual engine behind the door: `slots` requests at once, one output token of each in a step."""

    def __init__(self, terms: Terms, slots: int, seed: int, longest: tuple[int, int]) -> None:
        self.door = Admission()
        self.terms = terms
        self.slots = slots
        self.random = random.Random(seed)
        self.longest = longest
        self.running: dict[str, tuple[Ask, int, int]] = {}
        self.lengths: dict[str, tuple[int, int]] = {}
        self.service: dict[str, float] = {}
        self.now = 0.0
        self.count = 0

    def submit(self, tenant: str) -> None:
        self.count += 1
        prompt, output = (self.random.randint(1, most) for most in self.longest)
        asked = Ask(
            request_id=str(self.count),
            model="m",
            availability="Ready",
            slots=self.slots,
            tenant=tenant,
            terms=self.terms,
            prompt=float(prompt),
            max_queue=10_000,
        )
        self.lengths[asked.request_id] = prompt, output
        if isinstance(self.door.decide(asked, self.now, lambda: Work(float(prompt))), Admit):
            self.enter(asked)

    def enter(self, asked: Ask) -> None:
        prompt, output = self.lengths.pop(asked.request_id)
        self.running[asked.request_id] = asked, 0, output
        self.served(asked.tenant, prompt * PROMPT_PRICE)

    def served(self, tenant: str, cost: float) -> None:
        weight = self.terms.weights.get(tenant, 1)
        self.service[tenant] = self.service.get(tenant, 0.0) + cost / weight

    def step(self) -> None:
        self.now += 1.0
        for name, (asked, done, output) in list(self.running.items()):
            self.running[name] = asked, done + 1, output
            self.served(asked.tenant, OUTPUT_PRICE)
            self.door.produced(asked, done + 1.0)
            if done + 1 >= output:
                del self.running[name]
                self.door.release(asked, self.now)
        while (asked := self.door.next_waiter("m", self.slots, self.now)) is not None:
            self.enter(asked)
        assert len(self.running) == self.slots or not self.door.waiting("m")

    def backlog(self, tenant: str) -> int:
        gate = self.door._gates.get("m")
        found = gate.line.books.tenants.get(tenant) if gate is not None else None
        return 0 if found is None else found.waiting


def gap(engine: Engine, steps: int, light: int, third: int) -> float:
    """The largest difference of service between `heavy` and `light` over any span in which both always waited."""
    widest, low, high = 0.0, None, None
    for step in range(steps):
        for _ in range(10 * light - engine.backlog("heavy")):
            engine.submit("heavy")
        for _ in range(light - engine.backlog("light")):
            engine.submit("light")
        if third and step % third == 0:
            engine.submit("third")
        engine.step()
        difference = engine.service.get("heavy", 0.0) - engine.service.get("light", 0.0)
        low = difference if low is None else min(low, difference)
        high = difference if high is None else max(high, difference)
        widest = max(widest, high - low)
    return widest


loads = given(
    seed=st.integers(0, 10_000),
    slots=st.integers(1, 6),
    prompt=st.integers(1, 400),
    output=st.integers(1, 30),
    third=st.integers(0, 9),
    weight=st.integers(1, 4),
)


@QUICK
@loads
def test_two_backlogged_tenants_get_the_same_service_within_vtcs_bound(seed, slots, prompt, output, third, weight):
    """One at ten times the load; the same with weights, in service divided by weight."""
    terms = Terms(policy="VTC", weights={"light": weight})
    engine = Engine(terms, slots, seed, (prompt, output))
    bound = 2 * max(PROMPT_PRICE * prompt, OUTPUT_PRICE * slots * (prompt + output))
    assert gap(engine, 80, 8, third) <= bound


@QUICK
@loads
def test_two_backlogged_tenants_get_the_same_service_within_dlpms_bound(seed, slots, prompt, output, third, weight):
    terms = Terms(policy="DLPM", weights={"light": weight})
    engine = Engine(terms, slots, seed, (prompt, output))
    bound = 2 * (max(PROMPT_PRICE * prompt, OUTPUT_PRICE * slots * (prompt + output)) + QUANTUM)
    assert gap(engine, 80, 8, third) <= bound


def shares(policy: str, steps: int = 1500) -> dict[str, float]:
    engine = Engine(Terms(policy=policy, weights={"light": 3} if policy != "None" else {}), 4, 7, (300, 20))
    gap(engine, steps, 8, 0)
    return engine.service


def test_without_fairness_the_heavy_tenant_takes_nearly_all():
    found = shares("None")
    assert found["heavy"] > 5 * found["light"]


@pytest.mark.parametrize("policy", ["VTC", "DLPM"])
def test_weights_divide_the_service(policy):
    found = shares(policy)
    assert found["heavy"] == pytest.approx(found["light"], rel=0.15)


def test_one_tenant_alone_uses_everything():
    for policy in ("VTC", "DLPM"):
        engine = Engine(Terms(policy=policy), 3, 1, (50, 5))
        for _ in range(60):
            engine.submit("only")
        for _ in range(200):
            engine.step()
        assert engine.door.waiting("m") == engine.door.running("m") == 0


def test_a_counter_is_lifted_on_arrival_so_that_idling_saves_up_nothing():
    found = TokenCounters()
    busy, idle = found.tenant("busy", 1), found.tenant("idle", 1)
    for _ in range(10):
        found.enter(busy)
        found.charge(busy, 1000.0)
    found.arrive(idle)
    assert idle.level == 9000.0
    idle.waiting = 1
    found.charge(idle, -500.0)
    found.arrive(idle)
    assert idle.level == 8500.0
    assert found.eligible([busy, idle]) == [idle]


def test_a_newcomer_begins_where_the_others_are():
    found = TokenCounters()
    found.enter(found.tenant("old", 1))
    found.charge(found.tenant("old", 1), 5000.0)
    found.enter(found.tenant("old", 1))
    assert found.tenant("new", 1).level == 5000.0


def test_a_deficit_never_saves_up_more_than_one_quantum_and_old_debts_are_paid_by_rounds():
    found = Deficits(quantum=100.0)
    busy, idle = found.tenant("busy", 1), found.tenant("idle", 1)
    found.charge(idle, 450.0)
    for _ in range(50):
        found.charge(busy, 60.0)
        assert found.eligible([busy]) == [busy]
    found.arrive(idle)
    assert idle.level == 100.0
    found.charge(idle, -1000.0)
    assert idle.level == 100.0


def test_a_charge_that_comes_late_finds_the_rounds_that_passed_worked_in():
    found = Deficits(quantum=100.0)
    slow, busy = found.tenant("slow", 1), found.tenant("busy", 1)
    found.charge(slow, 250.0)
    found.charge(busy, 150.0)
    assert found.eligible([busy]) == [busy]
    found.charge(slow, 10.0)
    assert slow.level == -60.0


def test_service_while_nobody_waits_leaves_no_debt_to_a_newcomer():
    found = Deficits(quantum=100.0)
    alone = found.tenant("alone", 1)
    for _ in range(1000):
        found.enter(alone)
        found.charge(alone, 90.0)
    assert alone.level > -90.0
    assert found.tenant("new", 1).level == 100.0


@QUICK
@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=6), st.floats(0.1, 1e6))
def test_somebody_is_always_eligible(levels, quantum):
    found = Deficits(quantum=quantum)
    tenants = [found.tenant(str(place), 1) for place in range(len(levels))]
    for tenant, level in zip(tenants, levels, strict=True):
        tenant.level = min(level, quantum)
    assert found.eligible(tenants)
    assert all(tenant.level <= quantum for tenant in tenants)


@pytest.mark.parametrize("policy", ["None", "VTC", "DLPM"])
def test_nobody_backlogged_means_nobody_eligible(policy):
    assert books(policy).eligible([]) == []


@pytest.mark.parametrize(("kind", "stays"), [(Books, "b"), (TokenCounters, "b"), (Deficits, "b")])
def test_books_are_bounded_and_who_is_owed_nothing_leaves_first(kind, stays):
    found = kind(max_tenants=3)
    waiting = found.tenant("a", 1)
    waiting.waiting = 1
    found.charge(found.tenant("b", 1), 10_000.0)
    found.tenant("c", 1)
    found.tenant("d", 1)
    assert set(found.tenants) == {"a", stays, "d"}
    for name in "abd":
        found.tenant(name, 1).waiting = 1
    found.tenant("e", 1)
    assert len(found.tenants) == 4


class Locality:
    """One engine that holds the three prefixes used last, and a queue of two tenants with twelve prefixes."""

    def __init__(self, policy: str, quantum: float = QUANTUM) -> None:
        self.door = Admission()
        self.terms = Terms(policy=policy)
        self.random = random.Random(3)
        self.resident: list[str] = []
        self.prefixes: dict[str, str] = {}
        self.running: list[Ask] = []
        self.hits = self.total = 0
        self.submit(0)
        if policy == "DLPM":
            self.door._gates["m"].line.books.quantum = quantum

    def submit(self, number: int) -> None:
        tenant = "heavy" if number % 11 else "light"
        prefix = f"{tenant}/{self.random.randrange(6)}"
        asked = Ask(
            request_id=str(number),
            model="m",
            availability="Ready",
            slots=1,
            tenant=tenant,
            terms=self.terms,
            prompt=600.0,
            max_queue=9999,
        )
        self.prefixes[asked.request_id] = prefix
        if isinstance(self.door.decide(asked, 0.0, lambda: self.work(prefix)), Admit):
            self.running.append(asked)

    def work(self, prefix: str) -> Work:
        hit = 500.0 if prefix in self.resident else 0.0
        return Work(600.0 - hit, hit, kin=int.from_bytes(prefix.encode()))

    def serve(self) -> None:
        asked = self.running.pop()
        prefix = self.prefixes[asked.request_id]
        self.total += 1
        self.hits += prefix in self.resident
        uncached = self.work(prefix).uncached
        self.resident = [prefix, *(name for name in self.resident if name != prefix)][:3]
        self.door.release(asked, 0.0, uncached=uncached, output=20.0)
        called = self.door.next_waiter("m", 1, 0.0)
        assert called is not None
        self.running.append(called)

    def hit_rate(self) -> float:
        for number in range(1, 100):
            self.submit(number)
        for number in range(100, 900):
            self.serve()
            self.submit(number)
        return self.hits / self.total


def test_dlpm_keeps_nine_tenths_of_the_hits_that_locality_alone_would_have():
    alone = Locality("DLPM", quantum=1e15).hit_rate()
    fair = Locality("DLPM").hit_rate()
    assert alone > 0.8
    assert fair >= 0.9 * alone
    assert fair > 1.5 * Locality("VTC").hit_rate()


def test_a_larger_quantum_keeps_more_locality():
    rates = [Locality("DLPM", quantum=quantum).hit_rate() for quantum in (100.0, 2000.0, 50_000.0)]
    assert rates == sorted(rates)
