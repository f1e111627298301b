"""The engine of the timing model, with stretches of pure decoding taken at once.

Same results as :class:`sheaf_engine.timing.Engine` to the last bit (a test compares them); what is saved is the
bookkeeping of each step and, above all, an event for each step: while nobody can finish, be preempted or be admitted,
nobody outside needs to look.
"""

from __future__ import annotations

from sheaf_engine.timing import Engine, TimingProfile
from sheaf_engine.timing.batch import Sequence
from sheaf_engine.timing.values import RequestId

from sheaf.simulator.runs import RunPool


class CoastingEngine(Engine):
    """An engine whose decode steps need no result. Requests must hash blocks of their prompt only."""

    def __init__(self, profile: TimingProfile) -> None:
        super().__init__(profile, trace=False, pool=RunPool(profile.num_blocks))

    def generated(self, sequence: Sequence) -> int:
        """Tokens that a running sequence has emitted."""
        batch = self._batch
        steps = batch.counter - sequence.joined if sequence.ticket >= 0 else 0
        return sequence.generated + steps

    def quiet_steps(self) -> int:
        """Steps that certainly only decode, with nobody finishing; 0 when the next one may do more."""
        batch = self._batch
        if self._stall or not batch.members or not self._scheduler.steady:
            return 0
        steps = min([member.finish_at for member in batch.members.values()]) - batch.counter - 1
        growth = len(batch.members) * (steps // self.profile.block_size + 1)
        return steps if growth <= self.pool.available else 0

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
        left = self.quiet_steps()
        if left <= 0 or now >= until:
            return now
        profile, batch = self.profile, self._batch
        count, counter, context = len(batch.members), batch.counter, batch.context
        base = profile.step_overhead_s + 0 * profile.prefill_token_s + 0 * profile.prefill_attention_s
        base += count * profile.decode_sequence_s
        adapters = len(self.adapters.running) * profile.lora_adapter_s
        ranks = batch.ranks * profile.lora_rank_token_s
        kv, buckets = profile.kv_token_s, batch.buckets
        size = len(buckets)
        while left and now < until:
            if due := buckets[counter % size]:
                self._grow(due)
            now += base + (context + count) * kv + adapters + ranks
            counter += 1
            context += count
            left -= 1
        batch.counter, batch.context = counter, context
        return now

    def _grow(self, due: dict[RequestId, Sequence]) -> None:
        self.pool.take(len(due))
        self.pool.removed.clear()
        for sequence in due.values():
            sequence.private += 1
