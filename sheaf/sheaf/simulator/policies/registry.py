"""Every routing policy by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sheaf.simulator.policies.balance import BoundedHash, LeastRequest, LeastTokens, RoundRobin, Session
from sheaf.simulator.policies.base import Policy
from sheaf.simulator.policies.product import Product
from sheaf.simulator.policies.scorers import Dynamo, LlmD, Oracle
from sheaf.simulator.policies.trees import CacheAware, Preble, PrefixAware, PrefixCache

POLICIES: Mapping[str, Callable[[int], Policy]] = {
    "sheaf": Product,
    "sheaf-events": lambda seed: Product(seed, hears=True),
    "round-robin": RoundRobin,
    "least-request": LeastRequest,
    "least-tokens": LeastTokens,
    "session": Session,
    "prod-stack-prefix": PrefixAware,
    "chwbl": BoundedHash,
    "sglang-cache-aware": CacheAware,
    "aibrix-prefix-cache": PrefixCache,
    "llm-d": LlmD,
    "llm-d-lora": lambda seed: LlmD(seed, lora=True),
    "llm-d-precise-lora": lambda seed: LlmD(seed, lora=True, precise=True),
    "preble-e2": Preble,
    "dynamo": Dynamo,
    "oracle": Oracle,
}
