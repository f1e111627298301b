"""Calls to the agents in the pods (wire types: sheaf_crds.agent_api), over one bounded HTTP session."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from pydantic import ValidationError
from sheaf_crds.agent_api import AgentState, Catalog, Drain

from sheaf_operator.cluster.protocol import ClusterError

CONNECT_TIMEOUT = 3.0
CALL_TIMEOUT = 10.0
LARGEST = 64 * 2**20
TOKEN_KEPT = 1.0


class AgentError(ClusterError):
    """The agent of a pod did not answer as it should."""


class AgentCalls:
    """Every pod's agent, reached with one token that is read anew each second, as Secrets change."""

    def __init__(self, token_file: Path, ticks: Callable[[], float] = time.monotonic) -> None:
        self._token_file, self._ticks = token_file, ticks
        self._token, self._token_ends = "", float("-inf")
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0),
            timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT, sock_connect=CONNECT_TIMEOUT),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the session."""
        await self._http.close()

    async def state(self, address: str, after: int, wait: float) -> AgentState:
        """The state as soon as its version differs from `after`, or after `wait` seconds."""
        query = {"after": str(after), "wait": f"{wait:g}"}
        return _state(await self._call("GET", f"{address}/v1/state", query=query, wait=wait))

    async def put_catalog(self, address: str, catalog: Catalog) -> None:
        """Give it the adapters that it may serve; one that has a newer catalog keeps that."""
        body = catalog.model_dump_json(by_alias=True, exclude_none=True).encode()
        await self._call("PUT", f"{address}/v1/catalog", body=body, accepted=(409,))

    async def drain(self, address: str, seconds: float, reason: str) -> AgentState:
        """Let it admit nothing new and finish within so many seconds."""
        body = Drain(deadline=seconds, reason=reason[:1024]).model_dump_json(by_alias=True).encode()
        return _state(await self._call("POST", f"{address}/v1/drain", body=body))

    async def answers(self, url: str) -> bool:
        """Whether the agent says there that all is well; not where it says anything else, or nothing."""
        with contextlib.suppress(AgentError):
            await self._call("GET", url)
            return True
        return False

    async def _call(
        self,
        method: str,
        url: str,
        *,
        query: dict[str, str] | None = None,
        body: bytes | None = None,
        accepted: tuple[int, ...] = (),
        wait: float = 0.0,
    ) -> bytes:
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT + wait, sock_connect=CONNECT_TIMEOUT)
        headers = {"Authorization": f"Bearer {self._present_token()}", "Content-Type": "application/json"}
        try:
            async with self._http.request(
                method, url, params=query, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as answer:
                text = await _read(answer)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise AgentError(f"the pod's agent does not answer: {error or type(error).__name__}") from error
        if answer.status not in (200, 202, 204, *accepted):
            said = " ".join(text[:300].decode(errors="replace").split())
            raise AgentError(f"the pod's agent answered {answer.status} to {method}: {said}{_mend(answer.status)}")
        return text

    def _present_token(self) -> str:
        now = self._ticks()
        if now >= self._token_ends:
            self._token, self._token_ends = self._read_token(), now + TOKEN_KEPT
        return self._token

    def _read_token(self) -> str:
        try:
            return self._token_file.read_text().strip()
        except OSError as error:
            raise AgentError(f"the agents' token {self._token_file} cannot be read: {error.strerror}") from error


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    text = b""
    async for piece in answer.content.iter_any():
        text += piece
        if len(text) > LARGEST:
            raise AgentError(f"the pod's agent answers more than {LARGEST} bytes")
    return text


def _mend(status: int) -> str:
    return "; pod and operator hold different agent tokens: restart the pod" if status in (401, 403) else ""


def _state(text: bytes) -> AgentState:
    try:
        return AgentState.model_validate_json(text)
    except ValidationError as error:
        raise AgentError(f"the state of the pod's agent cannot be read: {error.error_count()} errors") from error
