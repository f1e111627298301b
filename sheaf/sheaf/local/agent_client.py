"""One pod's agent, called as the operator calls agents in a cluster."""

from pathlib import Path

from sheaf_crds.agent_api import AgentState, Catalog
from sheaf_operator.cluster.agent_calls import AgentCalls


class AgentClient:
    """Every call raises ClusterError where the agent does not answer as it should; made while a loop runs."""

    def __init__(self, url: str, token_file: Path) -> None:
        self._url, self._calls = url, AgentCalls(token_file)

    async def state(self, after: int, wait: float) -> AgentState:
        """The state as soon as its version differs from `after`, or after `wait` seconds."""
        return await self._calls.state(self._url, after, wait)

    async def put_catalog(self, catalog: Catalog) -> None:
        """Give it the adapters that it may serve; one that has a newer catalog keeps that."""
        await self._calls.put_catalog(self._url, catalog)

    async def drain(self, seconds: float, reason: str) -> AgentState:
        """Let it admit nothing new and finish within so many seconds."""
        return await self._calls.drain(self._url, seconds, reason)

    async def is_ready(self) -> bool:
        """Whether the engine is up and the adapters to keep loaded are."""
        return await self._calls.answers(f"{self._url}/readyz")

    async def is_alive(self) -> bool:
        """Whether it answers at all."""
        return await self._calls.answers(f"{self._url}/healthz")

    async def close(self) -> None:
        """Close its connections."""
        await self._calls.close()
