"""One pod: fetch the weights, then keep engine and agent running, and know what is so in them."""

import asyncio
import contextlib
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from sheaf_crds.agent_api import AgentState, EngineLoad
from sheaf_operator.cluster.protocol import ClusterError
from sheaf_operator.planning import EngineEndpoints, PodFacts, PodTemplate
from sheaf_operator.planning.manifest.troubles import last_words
from sheaf_operator.planning.snapshot import Phase

from sheaf.local.agent_client import AgentClient
from sheaf.local.journal import Journal
from sheaf.local.layout import Layout
from sheaf.local.ports import PortLease
from sheaf.local.process import Command, Exit, Process
from sheaf.local.programs import PodAddresses, Programs, folder_here, model_dir_in
from sheaf.local.resources import Lack, Machine
from sheaf.local.supervisor import Supervisor, Task, restart_delay

AGENT_STARTUP = 60.0
PROBE_TIMEOUT = 5.0
STATE_WAIT = 20.0
READY_POLL = 0.25
LOOK_AGAIN = 5.0
EPOCH_PATIENCE = 15.0


@dataclass(frozen=True, slots=True)
class Site:
    """What all pods of a local cluster share. `changed` tells the operator to look again."""

    layout: Layout
    programs: Programs
    machine: Machine
    journal: Journal
    changed: Callable[[], None]


class LocalPod:
    """A pod as processes on loopback; from `start` to the end of `stop`."""

    def __init__(self, name: str, template: PodTemplate, site: Site) -> None:
        self.name, self.template, self._site = name, template, site
        self.uid = str(uuid.uuid4())
        self.created_at = time.time()
        self.terminating = False
        self.agent_state: AgentState | None = None
        self._leases = [PortLease(), PortLease()]
        layout = site.layout
        at = EngineEndpoints(
            self._leases[0].port,
            kv_events=layout.socket(name, "kv"),
            kv_replay=layout.socket(name, "replay"),
        )
        self.addresses = PodAddresses(at, self._leases[1].port)
        self.client = AgentClient(self.addresses.agent_url, layout.token_file)
        self._http = httpx.AsyncClient(base_url=self.addresses.engine_url, timeout=PROBE_TIMEOUT, trust_env=False)
        self._lack: Lack | None = None
        self._model_dir = template.spec.source
        self._agent_ready = False
        self._epoch_floor = 0
        self._epoch_deadline = 0.0
        self.engine = Supervisor(self._engine_task(), self._engine_changed)
        self.agent = Supervisor(self._agent_task(), self._agent_changed)
        self._main: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; what goes wrong shows in the facts and is tried again."""
        self._main = asyncio.create_task(self._live(), name=f"pod {self.name}")

    async def stop(self) -> None:
        """End its processes and let go of everything; done when nothing is left. To be called once."""
        self.terminating = True
        self._site.changed()
        if self._main is not None:
            self._main.cancel()
            await asyncio.wait([self._main])
        await self.client.close()
        await self._http.aclose()
        self._site.machine.release(self.name)
        for lease in self._leases:
            lease.close()

    def forget(self) -> None:
        """Remove the files of a pod that will not come back."""
        shutil.rmtree(self._site.layout.adapters / self.name, ignore_errors=True)
        (self._site.layout.configs / f"{self.name}.json").unlink(missing_ok=True)

    def noted(self, state: AgentState) -> None:
        """Take the agent's answer to a call at once, so that the next observation has it."""
        self.agent_state = state
        self._site.changed()

    @property
    def ready(self) -> bool:
        """Whether it serves: the engine answers, and the agent has seen this start of it."""
        state = self.agent_state
        up = self.engine.healthy and self.agent.healthy and not self.terminating
        return up and self._agent_ready and state is not None and state.engine == "Ready"

    @property
    def restarts(self) -> int:
        """How often one of its processes was started again."""
        return self.engine.restarts + self.agent.restarts

    def facts(self) -> PodFacts:
        """What the operator sees."""
        reason, message = self._complaint()
        return PodFacts(
            name=self.name,
            uid=self.uid,
            model=self.template.model,
            owner_uid=self.template.owner_uid,
            template_hash=self.template.hash,
            phase=self._phase(),
            ready=self.ready,
            created_at=self.created_at,
            restarts=self.restarts,
            reason=reason,
            message=message,
            node="localhost",
            startup_limit=self.template.spec.startup_timeout,
            agent=self.agent_state if self.agent.healthy else None,
            engine_restarts=self.engine.restarts,
            backs_off=self.engine.reason == "CrashLoopBackOff",
        )

    def _phase(self) -> Phase:
        if self.terminating:
            return "Terminating"
        if self.ready:
            return "Ready"
        return "Starting" if self.engine.process is not None else "Pending"

    def _complaint(self) -> tuple[str, str]:
        if self.ready:
            return "", ""
        if self._lack is not None:
            return self._lack.reason, self._lack.message
        troubled = next((part for part in (self.engine, self.agent) if part.trouble), None)
        return (troubled.reason, troubled.trouble) if troubled else ("", "")

    async def _live(self) -> None:
        """Run, and begin again where something unforeseen (no more processes, no more files) ends it."""
        failures = 0
        while True:
            work = asyncio.create_task(self._run())
            try:
                await asyncio.wait([work])
            finally:
                work.cancel()
                await asyncio.wait([work])
            failures += 1
            self._lacks(Lack("PodError", f"it cannot run here: {root_cause(work.exception())}"))
            await asyncio.sleep(restart_delay(failures + 1))

    async def _run(self) -> None:
        await self._fetch()
        await self._claim()
        async with asyncio.TaskGroup() as group:
            for work in (self.engine.run(), self.agent.run(), self._follow()):
                group.create_task(work)

    async def _fetch(self) -> None:
        failures = 0
        self._model_dir = folder_here(self.template.spec.source) or self._model_dir
        while self._site.programs.needs_fetch(self.template.spec):
            found = await self._fetch_once()
            if isinstance(found, str):
                self._model_dir = found
                break
            failures += 1
            self._lacks(Lack("FetchFailed", _why_no_model(found)))
            await asyncio.sleep(restart_delay(failures + 1))
        self._lacks(None)

    async def _fetch_once(self) -> str | Exit:
        process = await Process.start(self._site.programs.fetch(self.name, self.template.spec))
        try:
            ended = await process.wait()
        finally:
            if process.running:
                await process.stop(grace=1.0)
        return (model_dir_in(ended.lines) if ended.code == 0 else None) or ended

    async def _claim(self) -> None:
        while lack := self._site.machine.claim(self.name, self.template.spec, Path(self._model_dir)):
            self._lacks(lack)
            await asyncio.sleep(LOOK_AGAIN)
        self._lacks(None)

    def _lacks(self, lack: Lack | None) -> None:
        if lack is not None:
            self._say(lack.message, warning=True)
        if lack != self._lack:
            self._lack = lack
            self._site.changed()

    async def _follow(self) -> None:
        """Keep up with the agent."""
        while True:
            try:
                await self._look()
            except ClusterError:
                self._take(None)
                await asyncio.sleep(READY_POLL)

    async def _look(self) -> None:
        if not self._agent_ready:
            self._take(await self.client.state(after=0, wait=0.0))
            self._agent_ready = self._sees_engine() and await self.client.is_ready()
            self._site.changed() if self._agent_ready else await asyncio.sleep(READY_POLL)
            return
        after = self.agent_state.version if self.agent_state else 0
        self._take(await self.client.state(after=after, wait=STATE_WAIT))

    def _sees_engine(self) -> bool:
        """Whether the agent knows its catalog, and its state is of the engine that runs now, not of the one before."""
        state = self.agent_state
        if state is None or state.engine != "Ready" or not self.engine.healthy or not state.catalog_generation:
            return False
        return state.engine_epoch >= self._epoch_floor or time.monotonic() > self._epoch_deadline

    def _take(self, state: AgentState | None) -> None:
        before, self.agent_state = self.agent_state, state
        if _quiet(before) != _quiet(state):
            self._site.changed()

    def _engine_changed(self) -> None:
        self._agent_ready = False
        if self.engine.healthy:
            self._site.machine.started(self.name)
            self._epoch_deadline = time.monotonic() + EPOCH_PATIENCE
            self._say("engine serves")
        else:
            self._epoch_floor = self.agent_state.engine_epoch + 1 if self.agent_state else 0
        self._complain(self.engine)
        self._site.changed()

    def _agent_changed(self) -> None:
        if not self.agent.healthy:
            self._agent_ready, self._epoch_floor = False, 0
        self._complain(self.agent)
        self._site.changed()

    def _complain(self, part: Supervisor) -> None:
        if part.log_error:
            subject = f"log of {self.name}.{part.task.name}"
            remedy = "lines are lost until there is space"
            self._site.journal.say(subject, f"cannot be written: {part.log_error}; {remedy}", warning=True)
        if part.trouble and not self.terminating:
            wait = restart_delay(part.crashes)
            self._say(f"{part.trouble}; it starts again {f'in {wait:.0f} s' if wait else 'now'}", warning=True)

    def _say(self, text: str, *, warning: bool = False) -> None:
        self._site.journal.say(f"pod {self.name}", text, warning=warning)

    def _engine_task(self) -> Task:
        spec = self.template.spec

        def command() -> Command:
            gpus = self._site.machine.environment(self.name)
            at = self.addresses.engine
            return self._site.programs.engine(self.name, self.template, self._model_dir, at, gpus)

        return Task("engine", command, self._engine_answers, spec.startup_timeout)

    def _agent_task(self) -> Task:
        def command() -> Command:
            return self._site.programs.agent(self.name, self.template, self._model_dir, self.addresses)

        return Task("agent", command, self._agent_answers, AGENT_STARTUP)

    async def _engine_answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return (await self._http.get("/health")).status_code == 200
        return False

    async def _agent_answers(self) -> bool:
        return await self.client.is_alive()


def _quiet(state: AgentState | None) -> AgentState | None:
    """The state without what changes all the time, unless the end of a drain is awaited."""
    if state is None or state.draining:
        return state
    return state.model_copy(update={"version": 0, "load": EngineLoad()})


def root_cause(error: BaseException | None) -> str:
    """The first error inside groups of errors, in words."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def _why_no_model(ended: Exit) -> str:
    why = last_words("\n".join(ended.lines)) or ended.how
    return f"the model cannot be fetched: {why}"
