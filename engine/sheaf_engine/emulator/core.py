"""The timing model against the clock: one loop that takes engine steps and hands out their tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from sheaf_engine.emulator.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, Publisher
from sheaf_engine.emulator.generation import Generation
from sheaf_engine.emulator.metrics import Metrics
from sheaf_engine.timing import Adapter, BlocksStored, Engine, Request, StepResult, TimingProfile

_MAX_LAG = 0.25


class EngineCore:
    """One emulated engine.

    Attributes:
        profile: its speed and capacity.
        engine: its state in the timing model.
        metrics: what it tells Prometheus.
        delay: seconds added to every step, to play a slow engine.
    """

    def __init__(self, profile: TimingProfile, speed: float, metrics: Metrics, publisher: Publisher | None) -> None:
        self.profile = profile
        self.engine = Engine(profile, trace=True)
        self.metrics = metrics
        self.delay = 0.0
        self.numbers: dict[str, int] = {}
        self._speed = speed
        self._publisher = publisher
        self._generations: dict[str, Generation] = {}
        self._work = asyncio.Event()

    @property
    def unfinished(self) -> int:
        """Generations under way."""
        return len(self._generations)

    def start(self, generation: Generation) -> None:
        """Queue a generation."""
        prompt = generation.prompt
        request = Request(
            generation.id, len(prompt.tokens), generation.ending.max_tokens, generation.hashes, prompt.adapter
        )
        self.engine.add_request(request)
        self._generations[generation.id] = generation
        self._work.set()

    def abort(self, generation: Generation) -> None:
        """Drop a generation that nobody waits for any more; nothing happens when it has ended."""
        if self._generations.pop(generation.id, None):
            self.engine.abort(generation.id)
            self.metrics.finished(generation, time.monotonic())

    async def load_adapter(self, adapter: Adapter) -> None:
        """Load an adapter, which takes its time and holds up the next step."""
        self.engine.adapters.forget(adapter.name)
        await asyncio.sleep(self.engine.load_adapter(adapter) / self._speed)

    def clear_prefix_cache(self) -> bool:
        """Empty the prefix cache; False while a sequence runs."""
        cleared = self.engine.clear_prefix_cache()
        if cleared:
            self._publish([AllBlocksCleared()])
        return cleared

    async def run(self) -> None:
        """Take steps for ever, each beginning when the last one ended, so that late wake-ups do not add up."""
        loop = asyncio.get_running_loop()
        free_at = loop.time()
        while True:
            if not self.engine.busy:
                self._work.clear()
                await self._work.wait()
                free_at = loop.time()
            free_at = await self._step(loop, max(free_at, loop.time() - _MAX_LAG))

    async def _step(self, loop: asyncio.AbstractEventLoop, start: float) -> float:
        result = self.engine.step(start)
        self._note_admissions(result)
        events = self._events(result)
        free_at = start + result.duration / self._speed + self.delay
        await asyncio.sleep(max(0.0, free_at - loop.time()))
        self._publish(events)
        self._deliver(result)
        return free_at

    def _note_admissions(self, result: StepResult) -> None:
        now = time.monotonic()
        for admission in result.admitted:
            generation = self._generations[str(admission.request_id)]
            if not admission.resumed:
                generation.times.scheduled = now
                generation.cached_tokens = admission.cached_tokens
                self.metrics.admitted(len(generation.prompt.tokens), admission.cached_tokens)
        for request_id in result.preempted:
            self._generations[str(request_id)].preemptions += 1
            self.metrics.preempted()

    def _deliver(self, result: StepResult) -> None:
        now = time.monotonic()
        done = set(result.finished)
        for request_id in result.emitted:
            generation = self._generations.get(str(request_id))
            if generation is None:
                continue
            generation.emit()
            self.metrics.emitted(generation, now)
            if request_id in done and generation.finish_reason is None:
                generation.finish("length")
            if generation.finish_reason is not None:
                self._end(generation, now)
        self.metrics.stepped(len(result.emitted))

    def _end(self, generation: Generation, now: float) -> None:
        del self._generations[generation.id]
        self.engine.abort(generation.id)
        self.metrics.finished(generation, now)

    def _publish(self, events: list[Event]) -> None:
        if events and self._publisher is not None:
            self._publisher.publish(time.time(), events)

    def _events(self, result: StepResult) -> list[Event]:
        if self._publisher is None:
            return []
        removed: Iterable[Event] = (BlockRemoved([block_hash], "GPU", 0) for block_hash in result.removed)
        return [*removed, *map(self._stored, result.stored)]

    def _stored(self, run: BlocksStored) -> BlockStored:
        generation = self._generations[str(run.request_id)]
        size = self.profile.block_size
        tokens = generation.hashes.tokens[run.first_block * size : (run.first_block + len(run.block_hashes)) * size]
        name = generation.prompt.adapter.name if generation.prompt.adapter else None
        return BlockStored(
            list(run.block_hashes),
            run.parent,
            tokens.tolist(),
            size,
            self.numbers.get(name) if name else None,
            "GPU",
            name,
            [_extra_keys(generation, run.first_block + index, name) for index in range(len(run.block_hashes))],
            0,
            "full_attention",
        )


def _extra_keys(generation: Generation, block: int, name: str | None) -> list[str] | None:
    keys = [name] if name else []
    if block == 0 and generation.prompt.salt:
        keys.append(generation.prompt.salt)
    return keys or None
