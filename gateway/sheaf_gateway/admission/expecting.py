"""What a request that waits is expected to take where most of its prompt is cached: pure."""

from collections.abc import Sequence

from sheaf_gateway.admission.terms import Work
from sheaf_gateway.routing.cost import Coefficients, compute, pairs, tokens
from sheaf_gateway.routing.prefix import BLOCK


def expected(prompt: float, chain: Sequence[int], depth: int, price: Coefficients) -> Work:
    """The work of a request.

    Args:
        prompt: tokens of its prompt.
        chain: the prompt's blocks (see `routing.prefix`); requests that begin with the same one are of one kin.
        depth: how many leading blocks the pod with most of them holds.
        price: the pool's prices.
    """
    cached = min(tokens(depth * BLOCK), prompt)
    uncached = prompt - cached
    prefill_ms = price.base_ms + compute(uncached, pairs(uncached, cached), price)
    return Work(uncached, cached, prefill_ms / 1000.0, chain[0] if chain else 0)
