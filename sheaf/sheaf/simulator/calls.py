"""What callers ask: requests of a trace, and the identity of their prompts' prefixes.

A prompt is a row of segments, each an id and a length in tokens. Two prompts share a prefix as far as their segments
have equal ids from the start; a shorter last segment is the beginning of a longer one of the same id. From the segments
follow both the engine's block hashes and the chain that the gateway's index reads, without any text.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from sheaf_gateway.routing import prefix

from sheaf.simulator.runs import INDEX_BITS, Runs

BYTES_PER_TOKEN = 4
GATEWAY_TOKENS = prefix.BLOCK // BYTES_PER_TOKEN
LONGEST = 1 << INDEX_BITS
_KEY = (1 << 45) - 1
_ODD = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

Segment = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One request of a trace.

    Attributes:
        arrival: seconds from the start.
        model: name of the Model.
        segments: the prompt, see the module; its lengths sum up to `input_tokens`.
        input_tokens: prompt length.
        output_tokens: tokens to generate.
        adapter: name of the Adapter, None for the base model.
        tenant: who asks; empty for everyone.
        session: number of the conversation or program.
        named: whether the caller names it (`x-session-id`).
    """

    arrival: float
    model: str
    segments: tuple[Segment, ...]
    input_tokens: int
    output_tokens: int
    adapter: str | None = None
    tenant: str = ""
    session: int = 0
    named: bool = False

    def at(self, arrival: float) -> Call:
        """The same at another time."""
        return Call(
            arrival,
            self.model,
            self.segments,
            self.input_tokens,
            self.output_tokens,
            self.adapter,
            self.tenant,
            self.session,
            self.named,
        )


@functools.lru_cache(maxsize=65_536)
def root(model: str, adapter: str | None, salt: str) -> int:
    """Where the prefixes of a Model, an adapter and a tenant's salt begin."""
    return prefix.seed(model, adapter, "", salt) & _KEY


def block_hashes(call: Call, salt: str, sizes: Sequence[int]) -> list[Runs]:
    """The hashes of the prompt's full blocks, for each block size in tokens. Equal hashes mean equal prefixes."""
    key, start = root(call.model, call.adapter, salt), 0
    chains: list[list[tuple[int, int]]] = [[] for _ in sizes]
    for name, length in call.segments:
        key = _mixed(key, name)
        end = start + length
        base = key << INDEX_BITS
        for chain, size in zip(chains, sizes, strict=True):
            first, last = start // size, end // size
            if first < last:
                chain.append((base + first, last - first))
        start = end
    return [Runs(chain) for chain in chains]


def _mixed(key: int, name: int) -> int:
    value = ((key ^ name) * _ODD) & _MASK
    value = ((value ^ (value >> 29)) * 0xBF58476D1CE4E5B9) & _MASK
    return (value ^ (value >> 32)) & _KEY
