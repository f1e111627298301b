"""Where the other replicas are: names that are resolved again and again, or the gateways' own pods by their labels."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import orjson
import structlog

from sheaf_gateway.config import KubernetesConfig, PeersConfig, parse_listen
from sheaf_gateway.fleet.kubernetes.client import ApiError, KubeApi
from sheaf_gateway.peers.links import Address

log = structlog.get_logger(__name__)

MAX_ADDRESSES = 256
EVERY_S = 5.0

Find = Callable[[], Awaitable[set[Address]]]


class Finder:
    """Tells `found` the addresses of the replicas whenever it has looked; what cannot be found stays as it was."""

    def __init__(self, peers: PeersConfig, kubernetes: KubernetesConfig | None, port: int) -> None:
        self._peers = peers
        self._kubernetes = kubernetes
        self._port = peers.port or port
        self._api: KubeApi | None = None
        self._known: dict[str, set[Address]] = {}

    async def run(self, found: Callable[[set[Address]], None]) -> None:
        """Look until cancelled."""
        try:
            while True:
                for name in self._peers.dns:
                    await self._keep(name, partial(self._resolved, name))
                if self._peers.pods:
                    await self._keep("pods", self._pods)
                every = sorted(set().union(*self._known.values()))
                found(set(every[:MAX_ADDRESSES]))
                await asyncio.sleep(EVERY_S)
        finally:
            if self._api is not None:
                await self._api.close()

    async def _keep(self, name: str, find: Find) -> None:
        try:
            self._known[name] = await find()
        except (OSError, ApiError, ValueError) as error:
            if name not in self._known:
                log.warning("gateways_not_found", where=name, reason=str(error))
            self._known.setdefault(name, set())

    async def _resolved(self, name: str) -> set[Address]:
        host, port = parse_listen(name) if ":" in name.rpartition("]")[2] else (name.strip("[]"), self._port)
        loop = asyncio.get_running_loop()
        answers = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        return {(str(address[0]), int(address[1])) for *_, address in answers}

    async def _pods(self) -> set[Address]:
        if self._api is None:
            self._api = await KubeApi.open(self._kubernetes or KubernetesConfig())
        path = f"/api/v1/namespaces/{self._api.namespace}/pods"
        query = {"labelSelector": self._peers.pods or "", "resourceVersion": "0", "limit": str(MAX_ADDRESSES)}
        return {(ip, self._port) for ip in pod_addresses(orjson.loads(await self._api.get(path, query)))}


def pod_addresses(listed: Any) -> set[str]:
    """The addresses of the pods in a list that run.

    Raises:
        ValueError: It is no list of pods.
    """
    try:
        states = [item.get("status") or {} for item in listed["items"]]
        return {str(state["podIP"]) for state in states if state.get("podIP") and state.get("phase") == "Running"}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a list of pods: {error!r}") from None
