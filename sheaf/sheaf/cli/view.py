"""The live view of `sheaf up`: models, adapters, pods, requests a second, and what happened last."""

import asyncio
import time

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from sheaf_crds import Adapter, Model

from sheaf.cli.table import age
from sheaf.local.readiness import wanted_replicas
from sheaf.local.up import LocalSheaf

REFRESH = 0.5
EVENTS = 8
MOST_ROWS = 20
REQUESTS = "sheaf_gateway_requests_total"


class View:
    """Draws a running local cluster until cancelled."""

    def __init__(self, sheaf: LocalSheaf, console: Console | None = None) -> None:
        self._sheaf, self._console = sheaf, console or Console()
        self._rate = 0.0
        self._counted: tuple[float, float] | None = None

    async def run(self) -> None:
        """Draw twice a second."""
        async with httpx.AsyncClient(base_url=self._sheaf.options.url, timeout=1.0, trust_env=False) as client:
            with Live(self.draw(), console=self._console, auto_refresh=False, transient=False) as live:
                while True:
                    await self._count(client)
                    live.update(self.draw(), refresh=True)
                    await asyncio.sleep(REFRESH)

    def draw(self) -> RenderableType:
        """Everything at this moment."""
        state = "stopping" if self._sheaf.stopping else "serving" if self._sheaf.gateway.healthy else "starting"
        title = f"Sheaf  {self._sheaf.options.url}  {state}  {self._rate:.1f} requests/s  (Ctrl-C stops)"
        return Panel(Group(self._models(), self._adapters(), self._pods(), self._events()), title=title)

    def _models(self) -> Table:
        table = _table("MODEL", "REPLICAS", "READY", "REASON")
        for model in self._sheaf.store.of(Model)[:MOST_ROWS]:
            ready = model.status.condition("Ready")
            count = f"{model.status.ready_replicas}/{wanted_replicas(model)}"
            table.add_row(model.name, count, _light(ready.status if ready else ""), ready.reason if ready else "")
        return table

    def _adapters(self) -> Table:
        adapters = self._sheaf.store.of(Adapter)
        table = _table("ADAPTER", "MODEL", "RESIDENT", "READY", "REASON")
        for adapter in adapters[:MOST_ROWS]:
            ready, status = adapter.status.condition("Ready"), adapter.status
            count = f"{status.ready_replicas}/{status.desired_replicas}"
            light, reason = (_light(ready.status), ready.reason) if ready else (_light(""), "")
            table.add_row(adapter.name, adapter.spec.model_ref.name, count, light, reason)
        if len(adapters) > MOST_ROWS:
            table.add_row(f"and {len(adapters) - MOST_ROWS} more", "", "", "", "")
        return table

    def _pods(self) -> Table:
        table = _table("POD", "PHASE", "RESTARTS", "AGE", "MESSAGE")
        for name, pod in sorted(self._sheaf.cluster.pods.items())[:MOST_ROWS]:
            facts = pod.facts()
            phase = "Draining" if facts.draining else facts.phase
            table.add_row(name, phase, str(facts.restarts), age(facts.created_at), Text(facts.message))
        return table

    def _events(self) -> Text:
        recent = list(self._sheaf.journal.recent)[-EVENTS:]
        return Text("\n").join(Text(str(event), style="yellow" if event.warning else "dim") for event in recent)

    async def _count(self, client: httpx.AsyncClient) -> None:
        """Requests a second since the last look."""
        try:
            total = requests_total((await client.get("/metrics")).text)
        except (httpx.HTTPError, ValueError):
            return
        now = time.monotonic()
        if self._counted is not None and now > self._counted[0]:
            self._rate = max(0.0, (total - self._counted[1]) / (now - self._counted[0]))
        self._counted = (now, total)


def requests_total(metrics: str) -> float:
    """All requests that a gateway counted, from its metrics text."""
    families = text_string_to_metric_families(metrics)
    return sum(sample.value for family in families for sample in family.samples if sample.name == REQUESTS)


def _table(*headings: str) -> Table:
    table = Table(box=None, expand=True, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, no_wrap=True, overflow="ellipsis")
    return table


def _light(status: str) -> Text:
    styles = {"True": "green", "False": "yellow"}
    return Text(status or "-", style=styles.get(status, "dim"))
