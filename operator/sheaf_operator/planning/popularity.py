"""How many replicas should hold an adapter that is asked for more than declared.

Agents report the share of recent time in which the engine ran requests of an adapter; over all pods these add up to the
replicas that it keeps busy. An adapter that keeps RISE of each of its replicas busy gets one more, one that would keep
less than FALL of each busy with one fewer loses one; between the two the number stays what it was, as the Adapter's
status tells it, so that it does not flutter and survives a restart of the operator. The sum does not change where the
same requests spread over more pods, so a replica more does not make itself superfluous.
"""

from collections.abc import Iterable

from sheaf_crds import Adapter
from sheaf_crds.agent_api import AdapterState

RISE_TENTHS = 8
FALL_TENTHS = 5


def wished_replicas(adapter: Adapter, states: Iterable[AdapterState]) -> int:
    """Replicas that should hold the adapter where there is room: the declared ones at least.

    Args:
        adapter: the Adapter; one that declares 0 replicas is loaded on demand only, and stays so.
        states: what the agents of the pods that serve say of it.
    """
    declared = adapter.spec.replicas
    busy = sum(round(state.activity * 10) for state in states)
    if not declared or not busy:
        return declared
    least = busy // RISE_TENTHS + 1 if busy >= RISE_TENTHS else 1
    most = -(-busy // FALL_TENTHS)
    return max(declared, min(max(adapter.status.desired_replicas, least), most))
