"""What an agent reports, within what can be true: pure.

Figures end up in sums, keys and messages to other gateways. One absurd figure of one pod must not spoil them for all,
so each is brought within its bounds; the rest of the report still counts.
"""

import math

from sheaf_crds.agent_api import AgentState, EngineLoad

MOST_REQUESTS = 1_000_000
MOST = 2**53
_COUNTS = ("engine_epoch", "kv_tokens", "max_model_len", "block_size", "capacity")


def credible(state: AgentState) -> AgentState:
    """The report with every figure within its bounds; the same object where all are."""
    load, deadline = state.load, state.drain_deadline
    counts = {name: count for name in _COUNTS if not 0 <= (count := getattr(state, name)) <= MOST}
    odd_load = not (0 <= load.running <= MOST_REQUESTS and 0 <= load.waiting <= MOST_REQUESTS)
    odd_time = not 0.0 <= deadline <= MOST
    if not (counts or odd_load or odd_time or abs(state.version) > MOST):
        return state
    bounded: dict[str, object] = {name: _within(count, MOST) for name, count in counts.items()}
    bounded["version"] = max(-MOST, min(state.version, MOST))
    bounded["drain_deadline"] = min(max(deadline, 0.0), float(MOST)) if math.isfinite(deadline) else 0.0
    bounded["load"] = EngineLoad(
        running=_within(load.running, MOST_REQUESTS),
        waiting=_within(load.waiting, MOST_REQUESTS),
        kv_usage=load.kv_usage,
    )
    return state.model_copy(update=bounded)


def _within(count: int, most: int) -> int:
    return max(0, min(count, most))
