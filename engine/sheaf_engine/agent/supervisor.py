"""The agent's life: look at the engine, plan, start what the plan says, tell the state.

`reconcile` is synchronous and runs after everything that happened (a look, a catalog, a request, the end of an
operation). Operations run as tasks, at most one an adapter; when one ends it notes its outcome and reconciles. The
engine is changed by one operation at a time.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path

import structlog
from sheaf_crds.agent_api import AdapterState, AgentNotice, AgentState, Catalog, Drain

from sheaf_engine.agent.background import in_thread
from sheaf_engine.agent.engine_client import EngineClient, EngineDown
from sheaf_engine.agent.errors import AdapterError, CallError, Reason
from sheaf_engine.agent.memory import Board, Memory, describe
from sheaf_engine.agent.metrics import Metrics
from sheaf_engine.agent.plan import Load, Plan, Prepare, Resident, Unload, Work, failed, keepers, make_plan, over, waits
from sheaf_engine.agent.prepare import Preparer
from sheaf_engine.agent.run_dir import Shelf
from sheaf_engine.agent.vocabulary import UnknownVocabularyError, read_vocabulary
from sheaf_engine.agent.watch import Watch

LINGER = 600.0
MOST_REQUESTED = 256
_STATUS = {
    Reason.SOURCE_UNREACHABLE: 502,
    Reason.ENGINE_REFUSED: 502,
    Reason.ENGINE_UNREACHABLE: 503,
    Reason.CAPACITY_EXCEEDED: 503,
    Reason.DISK_FULL: 507,
    Reason.AGENT_ERROR: 500,
}
log = structlog.get_logger()


class Supervisor:
    """Keeps the engine's adapters as the catalog wants them."""

    def __init__(
        self,
        client: EngineClient,
        preparer: Preparer,
        memory: Memory,
        *,
        poll_interval: float,
        startup_timeout: float,
        catalog_patience: float = 0.0,
        shelf: Shelf | None = None,
        model_dir: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.memory = memory
        self._shelf = shelf or Shelf(None)
        self._model_dir = model_dir
        self.vocabulary = b""
        self._patience = catalog_patience
        self._opened = 0
        self._ready_since = 0.0
        self.board = Board()
        self.metrics = Metrics()
        self._client = client
        self._preparer = preparer
        self._store = preparer.store
        self._clock = clock
        self._poll_interval = poll_interval
        self._watch = Watch(client, memory, began=clock(), startup_timeout=startup_timeout)
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: Counter[str] = Counter()
        self._pulse = asyncio.Event()
        self._leaving: dict[Path, float] = {}
        self._holding: set[Path] = set()

    async def run(self) -> None:
        """Look and reconcile until cancelled; then end what is under way."""
        kept = self._shelf.kept()
        if kept is not None:
            self.memory.take(kept)
        if self._model_dir is not None:
            learning = asyncio.create_task(self._learn(self._model_dir))
            self._tasks.add(learning)
            learning.add_done_callback(self._tasks.discard)
        try:
            while True:
                await self._watch.look(self._clock())
                self.reconcile()
                await asyncio.sleep(self._poll_interval)
        finally:
            await self._end()

    async def _end(self) -> None:
        self._preparer.stop.set()
        self.board.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._store.close()

    async def _learn(self, folder: Path) -> None:
        try:
            found = await in_thread(lambda: read_vocabulary(folder))
        except UnknownVocabularyError as error:
            log.info("the model's tokens are not told in bytes", reason=str(error))
            return
        except Exception:
            log.exception("reading the model's vocabulary failed unexpectedly")
            return
        if found.rendering.problem:
            log.info("the chat template is not told", reason=found.rendering.problem)
        self.vocabulary = found.model_dump_json(by_alias=True).encode()
        self.memory.vocabulary = found.digest
        self.reconcile()

    def reconcile(self) -> None:
        """Start what is due now and tell the state."""
        now = self._clock()
        self._settle_holds(now)
        facts = self.memory.facts(now)
        plan = make_plan(facts)
        self.memory.short, self.memory.over = frozenset(plan.short), over(facts)
        self._start_all(plan)
        self._tell()

    def _tell(self) -> None:
        self.board.post(describe(self.memory))
        self._pulse.set()
        self._pulse = asyncio.Event()

    def _start_all(self, plan: Plan) -> None:
        for step in plan.prepare:
            self._start(step.name, "Preparing", self._prepare(step))
        if isinstance(plan.engine, Load):
            self._start(plan.engine.name, "Loading", self._load(plan.engine))
        elif isinstance(plan.engine, Unload):
            self._start(plan.engine.name, "Unloading", self._unload(plan.engine))

    def _start(self, name: str, work: Work, operation: Coroutine[None, None, None]) -> None:
        self.memory.working[name] = work
        task = asyncio.create_task(self._operate(name, work, operation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _operate(self, name: str, work: Work, operation: Coroutine[None, None, None]) -> None:
        began, result = time.monotonic(), "ok"
        try:
            await operation
        except AdapterError as error:
            result = self._note(name, error)
        except EngineDown as down:
            result = self._note(name, AdapterError(Reason.ENGINE_UNREACHABLE, str(down)))
        except Exception as error:
            log.exception("operation failed unexpectedly", adapter=name, operation=work)
            result = self._note(name, AdapterError(Reason.AGENT_ERROR, f"{type(error).__name__}: {error}"[:300]))
        finally:
            self.memory.working.pop(name, None)
        self.metrics.operations.labels(work, result).inc()
        self.metrics.seconds.labels(work).observe(time.monotonic() - began)
        self.reconcile()

    def _note(self, name: str, error: AdapterError) -> str:
        failure = failed(error, self.memory.failures.get(name), self._clock())
        if name in self.memory.index.by_name:
            self.memory.failures[name] = failure
        log.warning("adapter failed", adapter=name, reason=error.reason, message=error.message)
        return error.reason

    async def _prepare(self, step: Prepare) -> None:
        entry = self.memory.index.by_name[step.name]
        try:
            files = await in_thread(lambda: self._preparer.prepare(entry, cached_only=step.cached_only))
        except AdapterError:
            if self._current(step.name, entry):
                raise
            return
        if self._current(step.name, entry):
            self.memory.files[step.name] = files
            self.memory.failures.pop(step.name, None)

    def _current(self, name: str, entry: object) -> bool:
        return self.memory.index.by_name.get(name) == entry

    async def _load(self, step: Load) -> None:
        path = Path(step.path)
        if not self._hold(path):
            self.memory.files.pop(step.name, None)
            return
        if step.replaces:
            await self._take_out(step.name)
            self._tell()
        await self._change(self._client.load(step.name, step.path))
        listed = (await self._client.listing()).adapters.get(step.name, "")
        if listed != step.path:
            raise AdapterError(Reason.ENGINE_REFUSED, f"the engine took the adapter but lists {listed or 'nothing'}")
        self.memory.resident[step.name] = Resident(listed, self._clock())
        self.memory.failures.pop(step.name, None)
        log.info("adapter loaded", adapter=step.name, path=step.path)

    async def _unload(self, step: Unload) -> None:
        await self._take_out(step.name)
        log.info("adapter unloaded", adapter=step.name, why=step.why)

    async def _take_out(self, name: str) -> None:
        await self._change(self._client.unload(name))
        self.memory.resident.pop(name, None)

    async def _change(self, call: Coroutine[None, None, None]) -> None:
        self._watch.changes += 1
        try:
            await call
        finally:
            self._watch.changes += 1

    def _hold(self, path: Path) -> bool:
        held = self._store.hold(path)
        if held:
            self._holding.add(path)
        return held

    def _settle_holds(self, now: float) -> None:
        """Keep the files of what is loaded, and for a while those of what was: running requests may read them again."""
        here = {Path(resident.path) for resident in self.memory.resident.values()}
        for path in here - self._holding:
            if self._store.owns(path):
                self._hold(path)
        loading = any(work == "Loading" for work in self.memory.working.values())
        for path in self._holding - here:
            if now >= self._leaving.setdefault(path, now + LINGER) and not loading:
                self._store.release(path)
                self._holding.discard(path)
        self._leaving = {path: due for path, due in self._leaving.items() if path in self._holding - here}

    def take(self, catalog: Catalog) -> AgentState:
        """Take a catalog; CallError 409 where it is older than the last one."""
        if not self.memory.take(catalog):
            known = self.memory.index.generation
            raise CallError(
                409, "older_generation", f"generation {catalog.generation} is older than {known}, taken before"
            )
        try:
            self._shelf.keep(catalog)
        except OSError as error:
            log.warning("the catalog cannot be kept for a new start", error=str(error))
        self.reconcile()
        return self.board.state

    def drain(self, request: Drain) -> AgentState:
        """Stop taking adapters on demand and tell everyone the deadline; a second call can only bring it nearer."""
        memory = self.memory
        memory.drain(self._clock() + request.deadline, until_restart=request.until_restart)
        log.info("draining", deadline=memory.drain_deadline, reason=request.reason)
        self._tell()
        return self.board.state

    def notice(self, found: AgentNotice | None) -> None:
        """Tell everyone what the cloud says of this machine now; None: nothing."""
        if found != self.memory.notice:
            self.memory.notice = found
            log.info("notice", **(found.model_dump() if found else {"reason": "", "message": "it was taken back"}))
            self._tell()

    def ready(self) -> str:
        """Why the pod should not get requests yet; empty if it should.

        Once a catalog is known (or none came in time) and its pinned adapters were tried in this start of the engine,
        it stays ready:
        adapters pinned later load beside the requests, and a drain shows in the state while running streams go on.
        """
        memory = self.memory
        if memory.engine.phase != "Ready":
            self._opened, self._ready_since = 0, 0.0
            return f"the engine is {memory.engine.phase}"
        if self._opened == memory.engine.epoch:
            return ""
        now = self._clock()
        self._ready_since = self._ready_since or now
        if not memory.index.known and now < self._ready_since + self._patience:
            return "the operator has not sent a catalog yet"
        kept = keepers(memory.facts(now))
        missing = [name for name in kept if not memory.correct(name) and name not in memory.failures]
        if missing:
            return f"{len(missing)} pinned adapters are still loading"
        self._opened = memory.engine.epoch
        return ""

    async def load(self, name: str, seconds: float) -> AdapterState:
        """Load an adapter of the catalog and return when it is resident; CallError says why it is not."""
        if name not in self.memory.index.by_name:
            raise CallError(404, "not_in_catalog", "no adapter of that name is in this pod's catalog")
        if not self.memory.correct(name):
            await self._wait_for(name, seconds)
        return next(adapter for adapter in self.board.state.adapters if adapter.name == name)

    async def _wait_for(self, name: str, seconds: float) -> None:
        self._check_possible(name)
        if len(self.memory.requested) >= MOST_REQUESTED and name not in self.memory.requested:
            raise CallError(503, "busy", f"{MOST_REQUESTED} adapters are being loaded already", 1.0)
        self._waiting[name] += 1
        self.memory.requested.setdefault(name, self._clock())
        try:
            self.reconcile()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while not self.memory.correct(name):
                        self._check_slot(name)
                        await self._pulse.wait()
                        self._check_possible(name)
                    return
            raise CallError(504, "load_timeout", f"the adapter was not resident within {seconds:g} s", 1.0)
        finally:
            self._waiting[name] -= 1
            if self._waiting[name] == 0:
                del self._waiting[name]
                self.memory.requested.pop(name, None)

    def _check_possible(self, name: str) -> None:
        memory, now = self.memory, self._clock()
        failure = memory.failures.get(name)
        if name not in memory.index.by_name:
            raise CallError(404, "not_in_catalog", "the adapter left the catalog meanwhile")
        if memory.draining or self.board.closed:
            raise CallError(503, "draining", "the pod drains and loads nothing any more")
        if memory.engine.phase != "Ready":
            raise CallError(503, "engine_not_ready", f"the engine is {memory.engine.phase}", 1.0)
        if failure is not None and waits(memory.facts(now), name):
            raise CallError(_STATUS.get(failure.reason, 422), failure.reason, failure.message, failure.retry_at - now)

    def _check_slot(self, name: str) -> None:
        if name in self.memory.short and name not in self.memory.working:
            raise CallError(503, Reason.CAPACITY_EXCEEDED, "pinned adapters fill every slot of this pod")
