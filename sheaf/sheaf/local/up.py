"""`sheaf up`: operator, pods and gateway on this machine, from the first manifest to the last process's end."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
from sheaf_crds import Model
from sheaf_operator.handlers.reconcile import run as reconcile

from sheaf.local.cluster import LocalCluster
from sheaf.local.fleet import FleetFile
from sheaf.local.gateway import Gateway
from sheaf.local.journal import Journal
from sheaf.local.layout import Layout
from sheaf.local.manifests import find_files, read_files, require_files
from sheaf.local.options import Options
from sheaf.local.pod import Site
from sheaf.local.ports import PortLease
from sheaf.local.programs import Programs
from sheaf.local.readiness import Readiness
from sheaf.local.resources import Machine
from sheaf.local.scaling import autoscaling
from sheaf.local.store import Store
from sheaf.local.watch import ManifestWatch

PERIOD = 2.0
READY_POLL = 0.1
MARK = "SHEAF_RUN"


class LocalSheaf:
    """A running local cluster. `on_ready` is called once, when everything declared serves or says why it cannot."""

    def __init__(
        self,
        options: Options,
        journal: Journal,
        on_ready: Callable[[], None],
        programs: Callable[[Layout, Mapping[str, str]], Programs] = Programs,
    ) -> None:
        self.options, self.journal = options, journal
        self.run_id = uuid.uuid4().hex
        self.layout = Layout(options.state_dir)
        self.store = Store()
        self.cluster = LocalCluster(self.store, FleetFile(self.layout.fleet, int(time.time() * 1000)))
        marks = {MARK: self.run_id}
        self._programs = programs(self.layout, marks)
        self.gateway = Gateway(self.layout, options, marks, journal)
        self._on_ready = on_ready
        self._readiness = Readiness(time.monotonic)
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Begin to end everything; `run` returns when nothing is left."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether it is coming to its end."""
        return self._stop.is_set()

    async def run(self) -> None:
        """Serve until stopped.

        Raises:
            NoManifestsError: A path is missing or holds no manifest.
            PortInUseError: Somebody listens there already.
            LayoutError: The state directory cannot be used.
            GatewayError: The gateway cannot start.
        """
        require_files(self.options.paths)
        lease = PortLease(self.options.host, self.options.port)
        try:
            with self.layout.open():
                self.layout.note_run(self.run_id, self.options.url)
                await self._serve()
        finally:
            lease.close()

    async def _serve(self) -> None:
        self.cluster.site = Site(self.layout, self._programs, Machine(), self.journal, self.cluster.poke)
        watch = ManifestWatch(self.options.paths)
        self.load()
        self.cluster.publish()
        scaling = autoscaling(self.cluster, self.layout, self.options.url)
        works = (self._operate(), scaling.run(), self._follow_files(watch), self.gateway.run(), self._announce())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            await self._until_stopped(tasks)
        finally:
            await self._end(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def _until_stopped(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Return when told to stop, or when one of the tasks has failed."""
        stopped = asyncio.create_task(self._stop.wait())
        pending: set[asyncio.Task[Any]] = {stopped, *tasks}
        while not stopped.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if any(task.exception() for task in done):
                break
        stopped.cancel()

    async def _end(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """The gateway first, so that no request meets an engine that is gone; then the pods."""
        self.journal.say("sheaf", "stopping")
        await self.gateway.stop()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self.cluster.stop()

    def load(self) -> None:
        """Read every manifest file, and say what is wrong with them."""
        reading = read_files(find_files(self.options.paths))
        for problem in reading.problems:
            self.journal.say("manifest", problem, warning=True)
        self.store.load(reading.files, time.time())
        self.cluster.poke()

    async def _operate(self) -> None:
        await reconcile(self.cluster, time.time, resync=PERIOD)

    async def _follow_files(self, watch: ManifestWatch) -> None:
        while True:
            await watch.changed()
            self.load()
            self.journal.say("manifests", f"read again: {len(self.store.objects)} objects")

    async def _announce(self) -> None:
        while True:
            if self.gateway.healthy and self._settled() and await self._gateway_knows():
                break
            await asyncio.sleep(READY_POLL)
        self._on_ready()

    def _settled(self) -> bool:
        return self._readiness.reached(self.store.of(Model), [pod.facts() for pod in self.cluster.pods.values()])

    async def _gateway_knows(self) -> bool:
        """Whether the gateway has seen the pods that serve; where it asks for a key its word is not needed."""
        async with httpx.AsyncClient(base_url=self.options.url, timeout=5.0, trust_env=False) as client:
            with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
                answer = await client.get("/sheaf/v1/objects/pods")
                known = answer.status_code != 200 or {p["name"] for p in answer.json()["items"] if p["ready"]}
                return known is True or known >= {pod.name for pod in self.cluster.pods.values() if pod.ready}
        return False
