"""The engine: steps with their durations.

Source of continuous batching: Yu et al., Orca, OSDI 2022; of chunked prefill: Agrawal et al., Sarathi-Serve, OSDI 2024.
What is decided in a step is in :mod:`sheaf_engine.timing.scheduling`; the formula is in docs/timing-model.md.
"""

from __future__ import annotations

from typing import TypeVar

from sheaf_engine.timing.adapters import AdapterSlots
from sheaf_engine.timing.batch import Sequence
from sheaf_engine.timing.blocks import Pool
from sheaf_engine.timing.profiles import TimingProfile
from sheaf_engine.timing.scheduling import Scheduler, Step
from sheaf_engine.timing.values import Adapter, Request, RequestId, StepResult

T = TypeVar("T")


class Engine:
    """One engine in virtual time. Deterministic; every call is told the time by its caller.

    Call :meth:`step` when the engine is free: it returns at once with what happens until ``result.end``. Requests added
    or aborted before then count from the next step on, as in vLLM.

    Attributes:
        profile: speed and capacity.
        trace: whether results carry `emitted`, `stored` and `removed`; a simulator saves time without them.
    """

    def __init__(self, profile: TimingProfile, *, trace: bool = True, pool: Pool | None = None) -> None:
        self.profile = profile
        self.trace = trace
        self._scheduler = Scheduler(profile, trace=trace, pool=pool)
        self._batch = self._scheduler.batch
        self._stall = 0.0

    @property
    def adapters(self) -> AdapterSlots:
        """Where adapters are. Read only."""
        return self._scheduler.adapters

    @property
    def pool(self) -> Pool:
        """The KV blocks. Read only."""
        return self._scheduler.pool

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self._batch.members or self._scheduler.waiting or self._scheduler.partial)

    @property
    def running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._batch.members) + (self._scheduler.partial is not None)

    @property
    def waiting(self) -> int:
        """Sequences that wait to be admitted."""
        return len(self._scheduler.waiting)

    @property
    def waiting_adapters(self) -> tuple[str, ...]:
        """Distinct adapters of waiting sequences, in order."""
        found = (waiting.request.adapter for waiting in self._scheduler.waiting.values())
        return tuple(dict.fromkeys(adapter.name for adapter in found if adapter))

    @property
    def cache_usage(self) -> float:
        """Share of the KV blocks that running sequences hold, 0 to 1."""
        return 1.0 - self.pool.available / self.pool.num_blocks

    @property
    def prompt_tokens_queried(self) -> int:
        """Tokens looked up in the prefix cache by new requests."""
        return self._scheduler.prompt_tokens_queried

    @property
    def prompt_tokens_hit(self) -> int:
        """Tokens found in the prefix cache by new requests."""
        return self._scheduler.prompt_tokens_hit

    @property
    def preemptions(self) -> int:
        """Sequences preempted so far."""
        return self._scheduler.preemptions

    def sequences(self) -> tuple[Sequence, ...]:
        """Running sequences in the order of admission. Read only; for checks and explanations."""
        partial = () if self._scheduler.partial is None else (self._scheduler.partial,)
        return (*self._batch.members.values(), *partial)

    def add_request(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ValueError: when it cannot be served, or its id is in use.
        """
        self._check(request)
        self._scheduler.add(request)

    def abort(self, request_id: RequestId) -> bool:
        """Drop a request wherever it is (also the way to end one early); False when the engine does not have it."""
        return self._scheduler.drop(request_id)

    def load_adapter(self, adapter: Adapter) -> float:
        """Load an adapter ahead of requests; the next step is longer by the seconds returned."""
        seconds = self.adapters.load(adapter)
        self._stall += seconds
        return seconds

    def clear_prefix_cache(self) -> bool:
        """Empty the prefix cache; refused (False) while a sequence runs."""
        return self.pool.clear()

    def step(self, now: float) -> StepResult:
        """Take the step that begins at `now`; with nothing to do, an empty result that ends at once."""
        if not self.busy:
            return StepResult(now, now)
        step = Step(self._stall)
        self._stall = 0.0
        self._scheduler.schedule(step)
        end = now + step.seconds + self._seconds(step.rank_tokens, step.tokens, step.pairs)
        return self._commit(now, end, step)

    def advance(self, now: float, until: float) -> StepResult:
        """Take the step that begins at `now`, and in the same call decode steps after it that begin before `until`.

        Steps are only taken together where nothing but decoding happens in them and nobody finishes before the last,
        so a caller that knows of no event before `until` gets exactly what repeated calls of :meth:`step` give, with
        the tokens of `steps` steps in one result. Needs requests whose `block_hashes` do not grow.
        """
        if self._stall or not self._scheduler.steady:
            return self.step(now)
        end, steps = now, 0
        finished: tuple[RequestId, ...] = ()
        emitted = tuple(self._batch.members) if self.trace else ()
        while not finished and (not steps or end < until) and self._scheduler.coast():
            end += self._seconds()
            steps += 1
            finished = self._scheduler.finish_decodes()
        return StepResult(now, end, steps, emitted=emitted, finished=finished) if steps else self.step(now)

    def _check(self, request: Request) -> None:
        total = request.prompt_tokens + request.max_tokens
        if request.prompt_tokens < 1 or request.max_tokens < 1:
            raise ValueError(f"request {request.id!r} needs at least one prompt token and one token to generate")
        if total > self.profile.max_model_len:
            raise ValueError(f"request {request.id!r} needs {total} tokens, max_model_len={self.profile.max_model_len}")
        if request.id in self._scheduler.waiting or self._scheduler.find_running(request.id):
            raise ValueError(f"request id {request.id!r} is in use; ids must be unique while a request is served")

    def _commit(self, now: float, end: float, step: Step) -> StepResult:
        finished = self._scheduler.finish_decodes()
        completed = self._scheduler.complete_prefills(step)
        return StepResult(
            now,
            end,
            1,
            emitted=step.decoding + tuple(sequence.request.id for sequence in completed) if self.trace else (),
            first_tokens=tuple(sequence.request.id for sequence in completed if sequence.generated == 1),
            finished=finished + self._scheduler.start_decoding(completed),
            admitted=tuple(step.admitted),
            preempted=tuple(step.preempted),
            stored=tuple(step.stored),
            removed=_drain(self.pool.removed),
            adapters_loaded=_drain(self.adapters.loaded),
            adapters_activated=_drain(self.adapters.activated),
        )

    def _seconds(self, rank_tokens: int = 0, prefill_tokens: int = 0, pairs: int = 0) -> float:
        profile, batch = self.profile, self._batch
        decoding = len(batch.members)
        return (
            profile.step_overhead_s
            + prefill_tokens * profile.prefill_token_s
            + pairs * profile.prefill_attention_s
            + decoding * profile.decode_sequence_s
            + (batch.context + decoding) * profile.kv_token_s
            + len(self.adapters.running) * profile.lora_adapter_s
            + (batch.ranks + rank_tokens) * profile.lora_rank_token_s
        )


def _drain(items: list[T]) -> tuple[T, ...]:
    if not items:
        return ()
    drained = tuple(items)
    items.clear()
    return drained
