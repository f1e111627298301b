"""The values that go into the timing model and come out of it. Times are seconds, sizes are tokens, blocks or bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RequestId = str | int


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter as the engine sees it.

    Attributes:
        name: identity; two adapters of one name are the same adapter.
        rank: LoRA rank.
        size_bytes: bytes read when it is loaded; None takes the profile's bytes per rank.
    """

    name: str
    rank: int
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One sequence to generate.

    Attributes:
        id: unique among the requests that the engine holds.
        prompt_tokens: prompt length, at least 1.
        max_tokens: tokens after which the sequence ends, at least 1; a caller that sees an earlier end (EOS, a stop
            string) calls :meth:`Engine.abort`.
        block_hashes: chained hash of each full block of the prompt and then of the output, in order. Blocks beyond the
            end of this sequence are private: never shared, never announced. Read lazily, so it may grow on demand.
        adapter: None is the base model.
    """

    id: RequestId
    prompt_tokens: int
    max_tokens: int
    block_hashes: Sequence[int] = ()
    adapter: Adapter | None = None


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """A run of full blocks that entered the prefix cache.

    Attributes:
        request_id: the request that computed them.
        first_block: index of the first of them in that request.
        block_hashes: one hash for each block.
        parent: hash of the block before the run, None at the start of a request.
    """

    request_id: RequestId
    first_block: int
    block_hashes: tuple[int, ...]
    parent: int | None


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that began to run in this step.

    Attributes:
        request_id: which.
        cached_tokens: tokens of it found in the prefix cache.
        resumed: whether it had been preempted before.
    """

    request_id: RequestId
    cached_tokens: int
    resumed: bool


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one engine step does, or `steps` equal decode steps in a row.

    Attributes:
        start: when the (first) step began, seconds.
        end: when the (last) step is over and its tokens are out, seconds.
        steps: how many steps; 0 when there was nothing to do.
        emitted: the requests that emit one token in each of these steps, in running order; empty when the engine was
            made with ``trace=False``.
        first_tokens: those of them whose first token this is.
        finished: requests that reached max_tokens at `end`.
        admitted: requests that began to run.
        preempted: requests that lost their blocks and will be recomputed.
        stored: prefix cache insertions, in order; empty with ``trace=False``.
        removed: hashes of evicted blocks, in order; evictions come before the insertions of the same step. Empty with
            ``trace=False``.
        adapters_loaded: adapters read from storage.
        adapters_activated: adapters copied into a slot.
    """

    start: float
    end: float
    steps: int = 0
    emitted: tuple[RequestId, ...] = ()
    first_tokens: tuple[RequestId, ...] = ()
    finished: tuple[RequestId, ...] = ()
    admitted: tuple[Admission, ...] = ()
    preempted: tuple[RequestId, ...] = ()
    stored: tuple[BlocksStored, ...] = ()
    removed: tuple[int, ...] = ()
    adapters_loaded: tuple[str, ...] = ()
    adapters_activated: tuple[str, ...] = ()

    @property
    def duration(self) -> float:
        """Seconds from start to end."""
        return self.end - self.start
