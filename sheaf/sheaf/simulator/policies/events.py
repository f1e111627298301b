"""What an engine's KV events would have told the gateway by now, read from the engine: none is late, none is lost."""

from __future__ import annotations

from collections.abc import Sequence

from sheaf_engine.timing.blocks import Pool
from sheaf_gateway.routing.blocks import NOTHING, Block, Blocks, Depth
from sheaf_gateway.routing.index import PodKey, PrefixIndex
from sheaf_gateway.routing.prefix import BLOCK

from sheaf.simulator.calls import GATEWAY_TOKENS
from sheaf.simulator.policies.base import Pods
from sheaf.simulator.runs import INDEX_BITS

_INDEX = (1 << INDEX_BITS) - 1


def listen(index: PrefixIndex, pods: Pods) -> None:
    """Let the index hear of every engine whose blocks divide the gateway's; the others are predicted."""
    for pod in pods:
        key: PodKey = (pod.name, 0)
        if key not in index.announced and not GATEWAY_TOKENS % pod.engine.profile.block_size:
            index.announce(key)
            index.announced[key].blocks = Told(pod.engine.pool, pod.engine.profile.block_size)


class Told(Blocks):
    """The blocks of one engine, whose KV blocks have `block_size` tokens."""

    def __init__(self, pool: Pool, block_size: int) -> None:
        super().__init__()
        self.marks = _Marks(pool, GATEWAY_TOKENS // block_size)

    def depth(self, chain: Sequence[int], prompt: bytes) -> Depth:  # noqa: ARG002
        """How far a prompt is held, to the gateway's block."""
        count = self.matched(chain)
        return Depth(count * GATEWAY_TOKENS, count * BLOCK) if count else NOTHING


class _Marks(dict[int, list[Block]]):
    """The gateway's hashes that the engine holds: one ends with the KV block of the same end (see `calls`)."""

    def __init__(self, pool: Pool, share: int) -> None:
        super().__init__()
        self._pool, self._share = pool, share

    def __contains__(self, mark: int) -> bool:  # type: ignore[override]
        place = mark & _INDEX
        return self._pool.holders(mark - place + (place + 1) * self._share - 1) is not None
