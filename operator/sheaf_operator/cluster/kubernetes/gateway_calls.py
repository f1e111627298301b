"""Where the gateways of a namespace are, and calls to their management API, opened by the agents' token.

A gateway that is ending counts until its grace is over, which is what its deletionTimestamp says, and STUCK_S more for
clocks that differ. Afterwards it is a pod that nobody ends, as on a node that is lost, and nothing waits for its word.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

from sheaf_operator.cluster.gateways import GatewayError
from sheaf_operator.cluster.kubernetes.client import ApiServer
from sheaf_operator.cluster.kubernetes.resources import Raw, Resource
from sheaf_operator.cluster.protocol import ClusterError
from sheaf_operator.planning.manifest.wire import parse_time

GATEWAYS = Resource("", "v1", "pods", "Pod", selector="app.kubernetes.io/name=sheaf-gateway")
PORT = 8000
TIMEOUT = aiohttp.ClientTimeout(total=3.0, sock_connect=1.0)
LARGEST = 16 * 2**20
STUCK_S = 10.0


class GatewayCalls:
    """Calls over one bounded session."""

    def __init__(
        self, api: ApiServer, token_file: Path, port: int = PORT, clock: Callable[[], float] = time.time
    ) -> None:
        self._api, self._token_file, self._port, self._clock = api, token_file, port, clock
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=64, keepalive_timeout=60.0), timeout=TIMEOUT, trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def find(self) -> Mapping[str, str]:
        """The URL of every gateway pod that has an address and takes requests, by the pod's UID."""
        found: dict[str, str] = {}
        now = self._clock()
        try:
            async for items, _ in self._api.pages(GATEWAYS):
                found |= {
                    str(raw["metadata"].get("uid")): url for raw in items if (url := url_of(raw, self._port, now))
                }
        except ClusterError as error:
            raise GatewayError(f"gateways cannot be listed: {error}") from error
        return found

    async def fetch(self, url: str) -> Any:
        """The JSON at a URL."""
        try:
            token = (await asyncio.to_thread(self._token_file.read_text)).strip()
            headers = {"Authorization": f"Bearer {token}"}
            async with self._http.get(url, headers=headers, allow_redirects=False) as answer:
                if answer.status != 200:
                    raise GatewayError(f"{url} answered {answer.status}")
                text = await _read(answer)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise GatewayError(f"{url} does not answer: {error or type(error).__name__}") from error
        return parsed(url, text)


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    text = b""
    async for piece in answer.content.iter_any():
        text += piece
        if len(text) > LARGEST:
            break
    return text


def url_of(raw: Raw, port: int, now: float) -> str:
    """Where a gateway pod listens; empty where it has no address, has ended, or takes no requests yet.

    One that is ending still has requests; one that is not ready never had any, or is missed for a while (`Gateways`).

    Args:
        raw: the pod.
        port: where gateways listen.
        now: Unix seconds.
    """
    status = raw.get("status") or {}
    ip = str(status.get("podIP") or "")
    ready = any(one.get("type") == "Ready" and one.get("status") == "True" for one in status.get("conditions") or [])
    if not ip or status.get("phase") != "Running" or not (ready or _ending(raw, now)):
        return ""
    return f"http://[{ip}]:{port}" if ":" in ip else f"http://{ip}:{port}"


def _ending(raw: Raw, now: float) -> bool:
    ends = raw["metadata"].get("deletionTimestamp")
    return ends is not None and now <= parse_time(ends) + STUCK_S


def parsed(url: str, text: bytes) -> Any:
    """The JSON in an answer; GatewayError where it is none, or too large."""
    if len(text) > LARGEST:
        raise GatewayError(f"{url} answers more than {LARGEST} bytes")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise GatewayError(f"{url} does not answer in JSON") from error
