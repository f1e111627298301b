"""What is lost when a pod goes: the streams that run there, what its caches save, the adapters that it holds.

The unit is one running stream, which has to be finished within the drain or continued elsewhere, its prompt computed
again. A full KV cache of prefixes counts as CACHE streams: what would have to be computed again when their users come
back. An adapter that is resident costs one load elsewhere.
"""

from sheaf_operator.planning.snapshot import PodFacts

CACHE = 8.0
ADAPTER = 0.5


def loss(pod: PodFacts) -> float:
    """In streams; 0 of a pod whose agent is silent."""
    if pod.agent is None:
        return 0.0
    load = pod.agent.load
    resident = sum(state.state == "Resident" for state in pod.agent.adapters)
    return load.running + load.waiting + CACHE * load.kv_usage + ADAPTER * resident
