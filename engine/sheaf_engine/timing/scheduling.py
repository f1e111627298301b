"""What vLLM's V1 scheduler decides in each step, without the time that it takes.

Follows ``vllm/v1/core/sched/scheduler.py`` (vLLM 0.32, FCFS): running sequences first, each decoding one token; then
the one unfinished prefill; then waiting requests while the token budget, max_num_seqs, adapter slots and blocks allow,
a request that waits for an adapter slot being passed over. A request is admitted only when its whole prompt fits. When
no block is left for a running sequence, the latest one is preempted and later recomputed.
"""

from __future__ import annotations

from collections import OrderedDict

from sheaf_engine.timing.adapters import AdapterSlots
from sheaf_engine.timing.batch import DecodeBatch, Sequence
from sheaf_engine.timing.blocks import BlockPool, Pool
from sheaf_engine.timing.profiles import TimingProfile
from sheaf_engine.timing.values import Admission, BlocksStored, Request, RequestId


class Step:
    """What the step under way has done so far."""

    __slots__ = ("admitted", "decoding", "pairs", "preempted", "prefills", "rank_tokens", "seconds", "stored", "tokens")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.decoding: tuple[RequestId, ...] = ()
        self.prefills: list[Sequence] = []
        self.tokens = 0
        self.pairs = 0
        self.rank_tokens = 0
        self.admitted: list[Admission] = []
        self.preempted: list[RequestId] = []
        self.stored: list[BlocksStored] = []


class Scheduler:
    """The queues, the blocks and the adapters of one engine.

    Attributes:
        adapters: where adapters are.
        pool: the KV blocks.
        batch: the sequences that decode.
        waiting: the sequences that wait, in order.
        partial: the one sequence whose prompt is computed in part.
        admission_open: whether a waiting sequence might be admitted: something changed since the last attempt.
        prompt_tokens_queried: tokens looked up in the prefix cache by new requests.
        prompt_tokens_hit: tokens of those found.
        preemptions: sequences preempted.
    """

    def __init__(self, profile: TimingProfile, *, trace: bool, pool: Pool | None = None) -> None:
        self.adapters = AdapterSlots(profile)
        self.pool: Pool = pool or BlockPool(profile.num_blocks)
        self.batch = DecodeBatch(profile.block_size)
        self.waiting: OrderedDict[RequestId, Sequence] = OrderedDict()
        self.partial: Sequence | None = None
        self.admission_open = True
        self.prompt_tokens_queried = 0
        self.prompt_tokens_hit = 0
        self.preemptions = 0
        self._profile = profile
        self._trace = trace

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.waiting[request.id] = Sequence(request)
        self.admission_open = True

    def find_running(self, request_id: RequestId) -> Sequence | None:
        """The running sequence of that id."""
        if self.partial and self.partial.request.id == request_id:
            return self.partial
        return self.batch.members.get(request_id)

    def drop(self, request_id: RequestId) -> bool:
        """Forget a request wherever it is; False when it is nowhere."""
        if self.waiting.pop(request_id, None) is None:
            sequence = self.find_running(request_id)
            if sequence is None:
                return False
            self._stop(sequence)
        self.admission_open = True
        return True

    @property
    def steady(self) -> bool:
        """Whether the next step can be nothing but decoding."""
        return self.partial is None and not (self.waiting and self.admission_open)

    def schedule(self, step: Step) -> None:
        """Decide what the step computes."""
        self._schedule_decodes(step)
        self._schedule_partial(step)
        if self.admission_open and not step.preempted:
            self._admit_waiting(step)

    def coast(self) -> bool:
        """Schedule a step of nothing but decoding, in which no cached block changes; False when there is more to do."""
        due = self.batch.due()
        if not self.batch.members or len(due) > self.pool.empty:
            return False
        if any(map(_caches_more, self.batch.completing().values())):
            return False
        self._take_for(due)
        return True

    def finish_decodes(self) -> tuple[RequestId, ...]:
        """One step is over: count the tokens and end the sequences that have them all."""
        self.batch.advance()
        finished = self.batch.finished()
        for sequence in finished:
            self._end(sequence)
        return tuple(sequence.request.id for sequence in finished)

    def complete_prefills(self, step: Step) -> list[Sequence]:
        """One step is over: the sequences whose prompt is now computed, with their next token counted."""
        if self.partial in step.prefills:
            self.partial = None
        completed = []
        for sequence in step.prefills:
            if sequence.computed < sequence.tokens:
                self.partial = sequence
            else:
                sequence.generated += 1
                completed.append(sequence)
        return completed

    def start_decoding(self, completed: list[Sequence]) -> tuple[RequestId, ...]:
        """Let completed prefills decode; those that need no further token end and are returned."""
        finished = []
        for sequence in completed:
            if sequence.generated < sequence.request.max_tokens:
                self.batch.join(sequence)
            else:
                self._end(sequence)
                finished.append(sequence.request.id)
        return tuple(finished)

    def _stop(self, sequence: Sequence) -> None:
        if sequence is self.partial:
            self.partial = None
        elif sequence.ticket >= 0:
            self.batch.leave(sequence)
        self.pool.release_first(sequence.request.block_hashes, sequence.held, sequence.private)
        if sequence.request.adapter:
            self.adapters.end(sequence.request.adapter)

    def _end(self, sequence: Sequence) -> None:
        self._stop(sequence)
        self.admission_open = True

    def _preempt_last(self, step: Step) -> Sequence:
        victim = self.partial or self.batch.members[next(reversed(self.batch.members))]
        self._stop(victim)
        victim.computed = victim.private = victim.sealed = victim.held = 0
        victim.resumed = True
        self.waiting[victim.request.id] = victim
        self.waiting.move_to_end(victim.request.id, last=False)
        self.admission_open = True
        self.preemptions += 1
        step.preempted.append(victim.request.id)
        return victim

    def _schedule_decodes(self, step: Step) -> None:
        due = self.batch.due()
        if len(due) <= self.pool.available:
            self._take_for(due)
        else:
            self._take_under_pressure(step)
        for sequence in filter(_caches_more, self.batch.completing().values()):
            self._seal(sequence, self.batch.computed(sequence) + 1, step)
        if self._trace:
            step.decoding = tuple(self.batch.members)

    def _take_for(self, due: dict[RequestId, Sequence]) -> None:
        self.pool.take(len(due))
        for sequence in due.values():
            sequence.private += 1

    def _take_under_pressure(self, step: Step) -> None:
        due = self.batch.due()
        for sequence in tuple(self.batch.members.values()):
            if sequence.request.id in due and self._make_room(sequence, step):
                self.pool.take(1)
                sequence.private += 1

    def _make_room(self, sequence: Sequence, step: Step) -> bool:
        while not self.pool.available:
            if self._preempt_last(step) is sequence:
                return False
        return True

    def _schedule_partial(self, step: Step) -> None:
        sequence = self.partial
        if sequence is None:
            return
        count = self._chunk(sequence, step)
        if self._blocks_for(sequence, count) > self.pool.available:
            self._preempt_last(step)
        else:
            self._prefill(sequence, count, step)

    def _admit_waiting(self, step: Step) -> None:
        started = []
        for sequence in self.waiting.values():
            if self._full(step):
                break
            adapter = sequence.request.adapter
            if adapter and not self.adapters.fits(adapter):
                continue
            if not self._admit(sequence, step):
                break
            started.append(sequence.request.id)
        for request_id in started:
            del self.waiting[request_id]
        self.admission_open = bool(started) or self._budget(step) == 0

    def _admit(self, sequence: Sequence, step: Step) -> bool:
        hits = self._hits(sequence)
        hashes = sequence.request.block_hashes
        size = self._profile.block_size
        needed = -(-sequence.tokens // size) - hits + self.pool.idle_among(hashes, hits)
        if needed > self.pool.available:
            return False
        self._hold(sequence, hits)
        self._note_admission(sequence, step)
        if sequence.request.adapter:
            step.seconds += self.adapters.begin(sequence.request.adapter)
        self._prefill(sequence, self._chunk(sequence, step), step)
        return True

    def _hits(self, sequence: Sequence) -> int:
        if not self._profile.prefix_caching:
            return 0
        return self.pool.match(sequence.request.block_hashes, (sequence.tokens - 1) // self._profile.block_size)

    def _hold(self, sequence: Sequence, hits: int) -> None:
        self.pool.hold_first(sequence.request.block_hashes, hits)
        sequence.sealed = sequence.held = hits
        sequence.computed = hits * self._profile.block_size

    def _note_admission(self, sequence: Sequence, step: Step) -> None:
        step.admitted.append(Admission(sequence.request.id, sequence.computed, sequence.resumed))
        if not sequence.resumed:
            self.prompt_tokens_queried += sequence.tokens
            self.prompt_tokens_hit += sequence.computed

    def _full(self, step: Step) -> bool:
        sequences = len(self.batch.members) + len(step.prefills)
        return sequences >= self._profile.max_num_seqs or self._budget(step) == 0

    def _budget(self, step: Step) -> int:
        return self._profile.max_num_batched_tokens - len(self.batch.members) - step.tokens

    def _chunk(self, sequence: Sequence, step: Step) -> int:
        return min(self._budget(step), sequence.tokens - sequence.computed)

    def _blocks_for(self, sequence: Sequence, count: int) -> int:
        total = -(-(sequence.computed + count) // self._profile.block_size)
        return total - sequence.held - sequence.private

    def _prefill(self, sequence: Sequence, count: int, step: Step) -> None:
        needed = self._blocks_for(sequence, count)
        self.pool.take(needed)
        sequence.private += needed
        step.tokens += count
        step.pairs += count * sequence.computed + count * (count + 1) // 2
        step.rank_tokens += count * sequence.rank
        sequence.computed += count
        self._seal(sequence, sequence.computed, step)
        step.prefills.append(sequence)

    def _seal(self, sequence: Sequence, computed: int, step: Step) -> None:
        full = computed // self._profile.block_size
        last = min(full, len(sequence.request.block_hashes))
        if self._profile.prefix_caching and sequence.sealed < last:
            fresh = self.pool.store_between(sequence.request.block_hashes, sequence.sealed, last)
            sequence.private -= last - sequence.sealed
            sequence.held = last
            self._note_stored(sequence, fresh, step)
        sequence.sealed = full

    def _note_stored(self, sequence: Sequence, fresh: list[tuple[int, int]], step: Step) -> None:
        if not fresh:
            return
        self.admission_open = True
        if not self._trace:
            return
        hashes = sequence.request.block_hashes
        for first, last in fresh:
            parent = hashes[first - 1] if first else None
            run = tuple(hashes[index] for index in range(first, last + 1))
            step.stored.append(BlocksStored(sequence.request.id, first, run, parent))


def _caches_more(sequence: Sequence) -> bool:
    return sequence.sealed < len(sequence.request.block_hashes)
