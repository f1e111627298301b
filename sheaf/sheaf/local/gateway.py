"""The gateway as a supervised child: fed by the fleet file; at the end running streams get DRAIN seconds to finish."""

import asyncio
import contextlib
import sys
from collections.abc import Mapping

import httpx
import orjson
from sheaf_operator.planning.manifest.troubles import clean

from sheaf.local.journal import Journal
from sheaf.local.layout import Layout, write_private
from sheaf.local.options import Options
from sheaf.local.process import Command
from sheaf.local.supervisor import Supervisor, Task, restart_delay

STARTUP = 30.0
DRAIN = 12.0
GRACE = DRAIN + 3.0


class GatewayError(Exception):
    """The gateway cannot start; says why."""


class Gateway:
    """One gateway process over the fleet file of a local cluster."""

    def __init__(self, layout: Layout, options: Options, marks: Mapping[str, str], journal: Journal) -> None:
        self._layout, self._options, self._marks, self._journal = layout, options, marks, journal
        self._http: httpx.AsyncClient | None = None
        self._served = False
        self._failed: asyncio.Future[None] | None = None
        self._work: asyncio.Task[None] | None = None
        task = Task("gateway", self._command, self._answers, STARTUP, GRACE)
        self._supervisor = Supervisor(task, self._changed)

    @property
    def healthy(self) -> bool:
        """Whether it answers."""
        return self._supervisor.healthy

    async def run(self) -> None:
        """Keep it running; raises GatewayError where it ends before it ever answered."""
        self._failed = asyncio.get_running_loop().create_future()
        self._work = asyncio.create_task(self._supervisor.run())
        async with httpx.AsyncClient(base_url=self._options.url, timeout=5.0, trust_env=False) as self._http:
            await asyncio.wait([self._work, self._failed], return_when=asyncio.FIRST_COMPLETED)
        for ended in (self._failed, self._work):
            if ended.done() and not ended.cancelled():
                ended.result()

    async def stop(self) -> None:
        """Drain it and end it."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])

    def _command(self) -> Command:
        options = self._options
        config = {
            "listen": options.address,
            "fleetFile": str(self._layout.fleet),
            "agentTokenFile": str(self._layout.token_file),
            "times": {"shutdown": f"{DRAIN}s"},
            **({"keysFile": str(options.keys)} if options.keys else {}),
        }
        write_private(self._layout.gateway_config, orjson.dumps(config).decode())
        argv = (sys.executable, "-m", "sheaf_gateway", "--config", str(self._layout.gateway_config))
        return Command(argv, self._layout.logs / "gateway.log", self._marks)

    async def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return self._http is not None and (await self._http.get("/healthz")).status_code == 200
        return False

    def _changed(self) -> None:
        self._served = self._served or self.healthy
        trouble = self._supervisor.trouble
        if not trouble:
            return
        if not self._served and self._failed is not None and not self._failed.done():
            self._failed.set_exception(GatewayError(f"the gateway cannot start: {clean(trouble)}"))
        wait = restart_delay(self._supervisor.crashes)
        self._journal.say("gateway", f"{trouble}; it starts again in {wait:.0f} s", warning=True)
