"""Calls to the agents in the pods, over the proxy's own connection pool, with the token from a file.

The token is read again for every call that is not on the hot path, so that it can be rotated without a restart.
"""

import asyncio
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import orjson
from pydantic import ValidationError
from sheaf_crds.agent_api import AdapterState, AgentState

from sheaf_gateway.proxy.errors import UpstreamError
from sheaf_gateway.proxy.exchange import Endpoint, Timeouts
from sheaf_gateway.proxy.types import Header
from sheaf_gateway.proxy.upstream import Pool

MAX_ANSWER = 64 * 2**20
POLL_WAIT_S = 25.0
_GRACE_S = 10.0
_MAX_TEXT = 1024

T = TypeVar("T", AgentState, AdapterState)


class AgentError(Exception):
    """A call to an agent that did not succeed. `status` is 0 where there was no answer, `code` a word for
    programs."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class AgentClient:
    """Talks to agents by their base URL."""

    def __init__(self, pool: Pool, token_file: Path | None) -> None:
        self._pool = pool
        self._token_file = token_file

    async def state(self, url: str, after: int | None) -> AgentState:
        """The agent's report: at once where it is newer than `after`, otherwise when it changes.

        Raises:
            AgentError: There was no report.
        """
        query = f"?wait={POLL_WAIT_S:g}" + (f"&after={after}" if after is not None else "")
        target = f"/v1/state{query}" if after is not None else "/v1/state"
        body = await self._call(url, "GET", target, POLL_WAIT_S + _GRACE_S)
        return _parsed(AgentState, body)

    async def load(self, url: str, adapter: str, timeout_s: float) -> AdapterState:
        """Have an adapter of the pod's catalog loaded, and wait until it is.

        Raises:
            AgentError: It is not resident afterwards.
        """
        body = await self._call(url, "POST", f"/v1/adapters/{quote(adapter, safe='')}/load", timeout_s)
        state = _parsed(AdapterState, body)
        if state.state != "Resident":
            raise AgentError(503, state.reason or state.state, state.message or f"the adapter is {state.state}")
        return state

    async def _call(self, url: str, method: str, target: str, timeout_s: float) -> bytes:
        try:
            endpoint = Endpoint.parse(url)
            timeouts = Timeouts(first_byte_s=timeout_s, idle_s=_GRACE_S)
            headers = await asyncio.to_thread(self._headers)
            async with self._pool.request(endpoint, method, target, headers, timeouts=timeouts) as response:
                body = await response.read(MAX_ANSWER)
                status = response.status
        except (UpstreamError, ValueError, OSError) as error:
            raise AgentError(0, getattr(error, "kind", "unreachable"), str(error)) from error
        if status != 200:
            raise _refused(status, body)
        return body

    def _headers(self) -> tuple[Header, ...]:
        accept = (b"accept", b"application/json")
        if self._token_file is None:
            return (accept,)
        token = self._token_file.read_text("ascii").strip()
        return (accept, (b"authorization", f"Bearer {token}".encode("ascii")))


def _parsed(kind: type[T], body: bytes) -> T:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise AgentError(0, "bad_answer", f"the agent's answer is not a {kind.__name__}: {error}") from error


def _refused(status: int, body: bytes) -> AgentError:
    try:
        detail = orjson.loads(body)["error"]
        return AgentError(status, str(detail["code"])[:64], str(detail["message"])[:_MAX_TEXT])
    except (ValueError, KeyError, TypeError):
        return AgentError(status, "bad_answer", f"the agent answered {status}")
