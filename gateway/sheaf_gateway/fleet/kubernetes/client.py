"""Reading from one API server with Kubernetes' own client: raw bytes, bounded, every failure one kind of error.

The client is imported when a gateway is told to use Kubernetes, because it takes a second and 60 MB.
"""

import asyncio
import importlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from sheaf_gateway.config import ConfigError, KubernetesConfig

MAX_PAGE = 64 * 2**20
MAX_LINE = 16 * 2**20
CONNECT_S = 5.0
READ_S = 30.0
_MAX_ERROR = 64 * 2**10
_MAX_TEXT = 1024
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

Query = Mapping[str, str]


class ApiError(Exception):
    """A call to the API server that did not succeed. `status` is 0 where there was no answer; `retry_after` is what
    the server asked for, in seconds."""

    def __init__(self, status: int, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class SilenceError(ApiError):
    """A long answer that was silent for too long: the connection may be dead."""


class NonsenseError(ApiError):
    """An answer that came but cannot be used."""


class KubeApi:
    """One API server and the namespace that is read."""

    def __init__(self, client: Any, namespace: str) -> None:
        self._client = client
        self.namespace = namespace

    @classmethod
    async def open(cls, config: KubernetesConfig) -> "KubeApi":
        """The API server of a kubeconfig, or the one of the cluster that this runs in.

        Raises:
            ConfigError: Neither can be used.
        """
        library = await asyncio.to_thread(importlib.import_module, "kubernetes.aio.client")
        settings = library.Configuration()
        try:
            found = await _configure(config.kubeconfig, settings)
            return cls(library.ApiClient(settings), config.namespace or found)
        except Exception as error:  # noqa: BLE001
            where = config.kubeconfig or "this is not a pod with a service account; name a kubeconfig"
            raise ConfigError(f"kubernetes: {where}: {str(error)[:_MAX_TEXT]}") from None

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    async def get(self, path: str, query: Query) -> bytes:
        """The body of a successful GET.

        Raises:
            ApiError: There was none.
        """
        times = aiohttp.ClientTimeout(total=READ_S, connect=CONNECT_S)
        async with self._answer(path, query, times) as response:
            return await _bounded(response, MAX_PAGE)

    @asynccontextmanager
    async def lines(
        self, path: str, query: Query, *, idle_s: float, total_s: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of a long answer, as they come; silence of `idle_s` is an error.

        Raises:
            ApiError: It could not be had, also while iterating.
        """
        times = aiohttp.ClientTimeout(total=total_s, connect=CONNECT_S, sock_read=idle_s)
        async with self._answer(path, query, times) as response:
            try:
                yield _lines(response)
            except TimeoutError:
                raise SilenceError(0, f"nothing came for {idle_s:g} s") from None

    @asynccontextmanager
    async def _answer(
        self, path: str, query: Query, times: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        response = await self._call(path, query, times)
        try:
            if response.status != 200:
                raise await _refusal(response)
            yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, _said(error)) from error
        finally:
            response.close()

    async def _call(self, path: str, query: Query, times: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        try:
            found: aiohttp.ClientResponse = await self._client.call_api(
                path,
                "GET",
                query_params=list(query.items()),
                header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=times,
            )
        except Exception as error:
            raise ApiError(0, _said(error)) from error
        return found


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    held = b""
    async for piece in response.content.iter_any():
        *whole, held = (held + piece).split(b"\n")
        if max(map(len, (held, *whole))) > MAX_LINE:
            raise NonsenseError(0, f"an event of more than {MAX_LINE} bytes")
        for line in whole:
            if line.strip():
                yield line


async def _bounded(response: aiohttp.ClientResponse, most: int) -> bytes:
    pieces, size = [], 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > most:
            raise NonsenseError(0, f"an answer of more than {most} bytes")
        pieces.append(piece)
    return b"".join(pieces)


async def _refusal(response: aiohttp.ClientResponse) -> ApiError:
    body = await response.content.read(_MAX_ERROR)
    asked = response.headers.get("retry-after", "")
    seconds = float(asked) if asked.isascii() and asked.isdigit() else 0.0
    return ApiError(response.status, said(body) or str(response.reason), seconds)


def said(body: bytes) -> str:
    """What a `Status` object says; empty where it is none."""
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    message = document.get("message") if isinstance(document, dict) else None
    return str(message)[:_MAX_TEXT] if message else ""


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:_MAX_TEXT]


async def _configure(kubeconfig: Path | None, settings: Any) -> str:
    """Fill the client's settings; the namespace that belongs to them."""
    loading = importlib.import_module("kubernetes.aio.config")
    if kubeconfig is None:
        loading.load_incluster_config(client_configuration=settings)
        return (await asyncio.to_thread(_NAMESPACE_FILE.read_text, "ascii")).strip()
    await loading.load_kube_config(str(kubeconfig), client_configuration=settings)
    _, active = loading.list_kube_config_contexts(str(kubeconfig))
    return str(active["context"].get("namespace") or "default")
