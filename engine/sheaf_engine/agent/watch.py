"""Looking at the engine: is it there, is it the same process as before, what does it hold.

An engine that starts anew has lost its adapters and its caches: the epoch grows. It is the engine's start time where
its metrics tell it (so that it survives a restart of the agent), otherwise a counter, moved when its port was closed
or adapters vanished.
"""

from collections.abc import Mapping
from dataclasses import replace

from sheaf_engine.agent.activity import observe
from sheaf_engine.agent.engine_client import EngineClient, EngineDown, Listing
from sheaf_engine.agent.engine_figures import Figures
from sheaf_engine.agent.errors import Reason
from sheaf_engine.agent.memory import Engine, Memory
from sheaf_engine.agent.plan import Resident

SLOW_LOOKS = 3
_ENGINES_FAULT = frozenset({Reason.ENGINE_REFUSED, Reason.ENGINE_UNREACHABLE})


class Watch:
    """Looks at one engine and notes in the memory what it sees."""

    def __init__(self, client: EngineClient, memory: Memory, *, began: float, startup_timeout: float) -> None:
        self._client = client
        self._memory = memory
        self._give_up = began + startup_timeout
        self._slow = 0
        self._closed = True
        self._looked = 0.0
        self.changes = 0

    async def look(self, now: float) -> None:
        """One look; where the agent changed residency meanwhile, it tells the load only: the rest may be stale."""
        before = self.changes
        try:
            await self._client.check_health()
            figures = await self._client.figures()
            listing = await self._client.listing()
        except EngineDown as down:
            self._note_down(down, now)
            return
        self._slow = 0
        self._memory.engine.load = figures.load
        self._memory.activity = observe(self._memory.activity, figures.active, now - (self._looked or now))
        self._looked = now
        if self.changes == before and not self._operating():
            await self._note_up(figures, listing, now)
        elif self._is_same(figures):
            self._memory.engine.phase = "Ready"

    def _operating(self) -> bool:
        return any(work != "Preparing" for work in self._memory.working.values())

    def _note_down(self, down: EngineDown, now: float) -> None:
        engine = self._memory.engine
        self._looked = 0.0
        self._slow = self._slow + 1 if down.slow else 0
        if down.slow and self._slow < SLOW_LOOKS and engine.phase == "Ready":
            return
        self._closed = self._closed or down.gone
        if engine.phase == "Starting":
            engine.phase = "Starting" if now < self._give_up else "Unhealthy"
        elif engine.epoch:
            engine.phase = "Stopped" if down.gone else "Unhealthy"
        if down.gone:
            self._memory.resident = {}

    def _is_same(self, figures: Figures) -> bool:
        return figures.started > 0 and figures.started == self._memory.engine.started

    async def _note_up(self, figures: Figures, listing: Listing, now: float) -> None:
        engine = self._memory.engine
        vanished = bool(self._memory.resident.keys() - listing.adapters.keys())
        new = _is_new(engine, figures, closed=self._closed, vanished=vanished)
        if new:
            engine.epoch = max(engine.epoch + 1, int(figures.started))
            self._forgive()
            self._memory.restarted()
        self._memory.resident = _residents(listing, figures, self._memory.resident, now)
        self._closed = False
        engine.started = figures.started
        engine.block_size, engine.max_model_len = figures.block_size, listing.max_model_len
        engine.kernels, engine.kv_tokens = figures.kernels, figures.kv_tokens
        engine.continues = figures.continues
        engine.phase = "Ready"
        if new:
            engine.version = await self._client.version()

    def _forgive(self) -> None:
        failures = self._memory.failures
        self._memory.failures = {n: f for n, f in failures.items() if f.reason not in _ENGINES_FAULT}


def _is_new(engine: Engine, figures: Figures, *, closed: bool, vanished: bool) -> bool:
    if engine.epoch == 0:
        return True
    if figures.started and engine.started:
        return figures.started != engine.started
    return closed or vanished


def _residents(listing: Listing, figures: Figures, before: Mapping[str, Resident], now: float) -> dict[str, Resident]:
    return {
        name: _resident(path, before.get(name), active=name in figures.active, now=now)
        for name, path in listing.adapters.items()
    }


def _resident(path: str, before: Resident | None, *, active: bool, now: float) -> Resident:
    if before is None or before.path != path:
        return Resident(path, now, active)
    return replace(before, active=active, last_used=now if active else before.last_used)
