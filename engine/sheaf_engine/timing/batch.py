"""The sequences that decode: each computes one token in every step.

Because all of them move in lockstep, their state is kept as a distance from one step counter: a step costs a few
additions, and only the sequences that cross a block boundary or finish are touched.
"""

from __future__ import annotations

import heapq

from sheaf_engine.timing.values import Request, RequestId


class Sequence:
    """A request inside the engine.

    Attributes:
        request: what was asked.
        generated: tokens emitted when it last joined or left the batch.
        computed: tokens with KV when it last joined or left the batch.
        held: how many cached blocks it holds: its first.
        private: its other blocks.
        sealed: its leading full blocks whose caching has been decided.
        resumed: whether it was preempted.
        ticket: number of its current stay in the batch, -1 when outside.
        joined: the batch's counter when it joined.
        finish_at: the batch's counter when it will have emitted max_tokens.
    """

    __slots__ = (
        "computed",
        "finish_at",
        "generated",
        "held",
        "joined",
        "private",
        "request",
        "resumed",
        "sealed",
        "ticket",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.generated = 0
        self.computed = 0
        self.held = 0
        self.private = 0
        self.sealed = 0
        self.resumed = False
        self.ticket = -1
        self.joined = 0
        self.finish_at = 0

    @property
    def tokens(self) -> int:
        """Tokens known: the prompt and what was generated (outside the batch)."""
        return self.request.prompt_tokens + self.generated

    @property
    def rank(self) -> int:
        """Rank of its adapter, 0 for the base model."""
        return 0 if self.request.adapter is None else self.request.adapter.rank


class DecodeBatch:
    """The decoding sequences, in the order in which they were admitted.

    Attributes:
        members: by request id.
        counter: decode steps taken.
        buckets: members by the counter, modulo the block size, at which they need a new block.
        context: sum of the members' computed tokens.
        ranks: sum of the members' adapter ranks.
    """

    __slots__ = ("_finishes", "_size", "_tickets", "buckets", "context", "counter", "members", "ranks")

    def __init__(self, block_size: int) -> None:
        self.members: dict[RequestId, Sequence] = {}
        self.counter = 0
        self.context = 0
        self.ranks = 0
        self._size = block_size
        self.buckets: list[dict[RequestId, Sequence]] = [{} for _ in range(block_size)]
        self._finishes: list[tuple[int, int, Sequence]] = []
        self._tickets = 0

    def join(self, sequence: Sequence) -> None:
        """Take in a sequence whose prompt is computed and whose next token is known."""
        self._tickets += 1
        sequence.ticket = self._tickets
        sequence.joined = self.counter
        sequence.finish_at = self.counter + sequence.request.max_tokens - sequence.generated
        self.members[sequence.request.id] = sequence
        self._bucket(sequence)[sequence.request.id] = sequence
        self._count(sequence, 1)
        heapq.heappush(self._finishes, (sequence.finish_at, sequence.ticket, sequence))

    def leave(self, sequence: Sequence) -> None:
        """Let a sequence go, with its `generated` and `computed` brought up to date."""
        del self.members[sequence.request.id]
        del self._bucket(sequence)[sequence.request.id]
        steps = self.counter - sequence.joined
        sequence.generated += steps
        sequence.computed += steps
        sequence.ticket = -1
        self._count(sequence, -1)
        if not self.members:
            self._finishes.clear()

    def due(self) -> dict[RequestId, Sequence]:
        """Members that need a new block for this step."""
        return self.buckets[self.counter % self._size]

    def completing(self) -> dict[RequestId, Sequence]:
        """Members that fill a block in this step."""
        return self.buckets[(self.counter + 1) % self._size]

    def advance(self) -> None:
        """One step: each member's context grows by a token."""
        self.counter += 1
        self.context += len(self.members)

    def soonest(self) -> int:
        """The counter at which the first of the members, of which there is one at least, will have all its tokens."""
        finishes = self._finishes
        while finishes[0][2].ticket != finishes[0][1]:
            heapq.heappop(finishes)
        return finishes[0][0]

    def finished(self) -> list[Sequence]:
        """Members that have now emitted all their tokens, in order; they stay until they `leave`."""
        found = []
        while self._finishes and self._finishes[0][0] <= self.counter:
            _, ticket, sequence = heapq.heappop(self._finishes)
            if sequence.ticket == ticket:
                found.append(sequence)
        return found

    def computed(self, sequence: Sequence) -> int:
        """A member's tokens with KV."""
        return sequence.computed + self.counter - sequence.joined

    def _bucket(self, sequence: Sequence) -> dict[RequestId, Sequence]:
        return self.buckets[(sequence.joined - sequence.computed) % self._size]

    def _count(self, sequence: Sequence, sign: int) -> None:
        self.context += sign * sequence.computed
        self.ranks += sign * sequence.rank
