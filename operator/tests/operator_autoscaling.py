"""Makers of what scaling decisions are made from, and a small queueing world in virtual time to run them in."""

from dataclasses import dataclass, field
from typing import Any

from sheaf_crds.autoscaling import AutoscalingPolicySpec
from sheaf_operator.planning.autoscaling import Decision, Demand, Facts, Memory, Promise, Speed, Work, decide

NOW = 1_700_000_000.0
SPEED = Speed(0.062, 2.7e-4, 1e-8, 1.5e-4, 5.5e-7, 2048, 256, 33_600)
WORK = Work(1000.0, 1000.0, 200.0, 1.0)
PROMISE = Promise(ttft=((0.95, 3.0),), tpot=((0.95, 0.25),))


def spec(**fields: Any) -> AutoscalingPolicySpec:
    return AutoscalingPolicySpec.model_validate({"maxReplicas": 50, **fields})


def asked(rate: float = 5.0, present: int | None = None, **fields: Any) -> Demand:
    """Demand of so many arrivals a second, of which as many run as that takes."""
    running = round(rate * 20) if present is None else present
    return Demand(running=running, rate=rate, work=WORK, **fields)


def known(**fields: Any) -> Facts:
    return Facts(**{"speed": SPEED, "promise": PROMISE, "ready": 1, **fields})


@dataclass
class Days:
    """One Model's decisions one after the other, every `step` seconds; what is decided serves at once."""

    policy: AutoscalingPolicySpec
    facts: Facts = field(default_factory=known)
    memory: Memory = field(default_factory=Memory)
    now: float = NOW
    step: float = 5.0
    numbers: list[int] = field(default_factory=list)

    def look(self, demand: Demand | None) -> Decision:
        ready = self.numbers[-1] if self.numbers else self.facts.ready
        facts = Facts(
            self.facts.declared, self.facts.low, self.facts.high, ready, self.facts.speed, self.facts.promise,
            self.facts.cold_start_s,
        )  # fmt: skip
        decision = decide(self.policy, facts, demand, self.now, self.memory)
        self.memory = decision.memory
        self.numbers.append(decision.replicas)
        self.now += self.step
        return decision

    def run(self, demand: Demand | None, seconds: float) -> Decision:
        for _ in range(int(seconds / self.step)):
            decision = self.look(demand)
        return decision
