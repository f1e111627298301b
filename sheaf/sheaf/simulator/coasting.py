"""The engine of the timing model, with stretches of pure decoding taken at once.

Same results as :class:`sheaf_engine.timing.Engine` to the last bit (a test compares them); what is saved is the
bookkeeping of each step and, above all, an event for each step: while nobody can finish, be preempted or be admitted,
nobody outside needs to look.
"""

from __future__ import annotations

from collections.abc import Sequence as Row

from sheaf_engine.timing import Admission, Engine, TimingProfile
from sheaf_engine.timing.batch import Sequence
from sheaf_engine.timing.scheduling import Step
from sheaf_engine.timing.values import RequestId

from sheaf.simulator.runs import RunPool


class Seen:
    """What anybody outside sees of a step: its end, who was admitted, whose first token came, who is done."""

    __slots__ = ("admitted", "end", "finished", "first_tokens")

    def __init__(
        self, end: float, admitted: Row[Admission], first_tokens: Row[RequestId], finished: Row[RequestId]
    ) -> None:
        self.end, self.admitted, self.first_tokens, self.finished = end, admitted, first_tokens, finished


class CoastingEngine(Engine):
    """An engine whose decode steps need no result. Requests must hash blocks of their prompt only."""

    def __init__(self, profile: TimingProfile) -> None:
        self._blocks = RunPool(profile.num_blocks)
        super().__init__(profile, trace=False, pool=self._blocks)

    def generated(self, sequence: Sequence) -> int:
        """Tokens that a running sequence has emitted."""
        batch = self._batch
        steps = batch.counter - sequence.joined if sequence.ticket >= 0 else 0
        return sequence.generated + steps

    def produced(self, early: int) -> dict[RequestId, int]:
        """Tokens of each request that are out, where the last `early` of those that run are not yet."""
        out = {sequence.request.id: max(0, self.generated(sequence) - early) for sequence in self.sequences()}
        out.update({name: sequence.generated for name, sequence in self._scheduler.waiting.items()})
        return out

    def look(self, now: float) -> Seen:
        """Take the step that begins at `now`, as `step` does; there must be something to do."""
        step, scheduler = Step(self._stall), self._scheduler
        self._stall = 0.0
        scheduler.schedule(step)
        end = now + step.seconds + self._seconds(step.rank_tokens, step.tokens, step.pairs)
        finished = scheduler.finish_decodes()
        first: list[RequestId] = []
        if step.prefills:
            completed = scheduler.complete_prefills(step)
            first = [sequence.request.id for sequence in completed if sequence.generated == 1]
            finished += scheduler.start_decoding(completed)
        self.adapters.loaded.clear()
        self.adapters.activated.clear()
        return Seen(end, step.admitted, first, finished)

    def quiet_steps(self) -> int:
        """Steps that certainly only decode, with nobody finishing; 0 when the next one may do more."""
        batch = self._batch
        if self._stall or not batch.members or not self._scheduler.steady:
            return 0
        steps = batch.soonest() - batch.counter - 1
        growth = len(batch.members) * (steps // self.profile.block_size + 1)
        return steps if growth <= self._blocks.available else 0

    def quiet_until(self, now: float) -> float:
        """A time before which nothing but quiet steps begins, when the next begins `now`; `now` where there are none.

        Steps only grow longer while all sequences decode, so the first one's duration bounds the rest from below.
        """
        steps = self.quiet_steps()
        return now + steps * self._seconds() if steps > 0 else now

    def coast(self, now: float, until: float) -> float:
        """Take the quiet steps that begin from `now` on and before `until`.

        Returns:
            When the last of them is over; `now` where there was none.
        """
        left = most = self.quiet_steps()
        if left <= 0 or now >= until:
            return now
        profile, batch = self.profile, self._batch
        count, context, kv = len(batch.members), batch.context, profile.kv_token_s
        base = profile.step_overhead_s + 0 * profile.prefill_token_s + 0 * profile.prefill_attention_s
        base += count * profile.decode_sequence_s
        adapters = len(self.adapters.running) * profile.lora_adapter_s
        ranks = batch.ranks * profile.lora_rank_token_s
        while left and now < until:
            context += count
            now += base + context * kv + adapters + ranks
            left -= 1
        batch.context = context
        self._grow(batch.counter, batch.counter + most - left)
        return now

    def _grow(self, begin: int, end: int) -> None:
        """Take the blocks that members begin in the steps from one counter up to another."""
        batch, size, total = self._batch, self.profile.block_size, 0
        buckets = batch.buckets
        for counter in range(begin, min(end, begin + size)):
            if due := buckets[counter % size]:
                blocks = (end - 1 - counter) // size + 1
                total += blocks * len(due)
                for sequence in due.values():
                    sequence.private += blocks
        self._blocks.take(total)
        batch.counter = end
