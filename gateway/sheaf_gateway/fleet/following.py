"""Where a gateway's fleet comes from: the file that someone else writes, or the API server with the file as its last
copy."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from sheaf_gateway.config import GatewayConfig, KubernetesConfig
from sheaf_gateway.fleet import source
from sheaf_gateway.fleet.kubernetes.client import KubeApi
from sheaf_gateway.fleet.kubernetes.source import KubernetesSource
from sheaf_gateway.fleet.memory import spare_collector
from sheaf_gateway.fleet.persist import SnapshotFile
from sheaf_gateway.fleet.residency import Residency
from sheaf_gateway.fleet.store import FleetStore

log = structlog.get_logger(__name__)

AGAIN_S = 1.0
FIRST_ROUND_S = 1.0


class Following(Protocol):
    """How a gateway follows its fleet. `begin` comes before it listens, `run` lasts until cancelled, then `end`."""

    async def begin(self) -> None:
        """Get ready; raises `ConfigError` where that is impossible."""

    async def run(self) -> None:
        """Keep the store up to date."""

    async def end(self) -> None:
        """Leave everything in order."""


class FileFollowing:
    """The fleet file of an owner on this machine."""

    def __init__(self, config: GatewayConfig, store: FleetStore) -> None:
        self._path = config.fleet_file
        self._store = store

    async def begin(self) -> None:
        """Nothing is needed."""

    async def run(self) -> None:
        """Follow the file."""
        await source.follow(self._path, self._store)

    async def end(self) -> None:
        """Nothing is held."""


class KubernetesFollowing:
    """The API server. A persisted snapshot is in force until it answers; pods in it are doubted until their agents
    have."""

    def __init__(
        self,
        config: GatewayConfig,
        kubernetes: KubernetesConfig,
        store: FleetStore,
        residency: Residency,
        seed: int,
        *,
        writes: bool = True,
    ) -> None:
        self._path = config.fleet_file
        self._kubernetes = kubernetes
        self._store = store
        self._residency = residency
        self._seed = seed
        self._writes = writes
        self._api: KubeApi | None = None
        self._file: SnapshotFile | None = None

    async def begin(self) -> None:
        """Find the API server's address and take up the persisted snapshot, if there is a good one."""
        self._api = await KubeApi.open(self._kubernetes)
        if await source.load(self._path, self._store):
            self._store.suspect(name for name, pod in self._store.declared.pods.items() if pod.agent_url)
            spare_collector()
            await self._residency.first_round(FIRST_ROUND_S)
        self._file = SnapshotFile(self._path, self._store) if self._writes else None

    async def run(self) -> None:
        """Follow the API server, and persist what it says."""
        if self._api is None:
            raise RuntimeError("`begin` comes first")
        cluster = KubernetesSource(self._api, self._store, seed=self._seed)
        async with asyncio.TaskGroup() as group:
            group.create_task(_without_end("cluster", cluster.run))
            if self._file is not None:
                group.create_task(_without_end("snapshot", self._file.run))

    async def end(self) -> None:
        """Write what is not written yet."""
        if self._file is not None:
            await self._file.write()
        if self._api is not None:
            await self._api.close()


async def _without_end(part: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run a part again when it fails by an error of its own: neither may end the other, or the gateway."""
    while True:
        try:
            await run()
        except Exception:
            log.exception("following_failed", part=part)
        await asyncio.sleep(AGAIN_S)


def following(
    config: GatewayConfig, store: FleetStore, residency: Residency, seed: int, *, writes: bool = True
) -> Following:
    """What the configuration asks for; of several workers one `writes` the last copy."""
    if config.kubernetes is not None and config.kubernetes.enabled:
        return KubernetesFollowing(config, config.kubernetes, store, residency, seed, writes=writes)
    return FileFollowing(config, store)
