"""Calls to the agents in the pods, over the proxy's own connection pool, with the token from a file.

The token is read again every second and after every refusal, so that it can be rotated without a restart.
"""

import asyncio
import time
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import orjson
from pydantic import ValidationError
from sheaf_crds.agent_api import AdapterState, AgentState, Vocabulary

from sheaf_gateway.fleet.credible import credible
from sheaf_gateway.proxy.errors import UpstreamError
from sheaf_gateway.proxy.exchange import Endpoint, Timeouts
from sheaf_gateway.proxy.types import Header
from sheaf_gateway.proxy.upstream import Pool, PoolLimits

AGENT_LIMITS = PoolLimits(max_connections=256, max_idle=4, keep_idle_s=60.0, tick_s=1.0)
"""For the pool of agents' connections: an agent keeps an idle one for 75 s, and nothing here is in a hurry."""
MAX_ANSWER = 64 * 2**20
MAX_REPORT = 4 * 2**20
POLL_WAIT_S = 25.0
_CONNECT_S = 1.0
_GRACE_S = 10.0
_VOCABULARY_S = 30.0
_TOKEN_S = 1.0
_MAX_TEXT = 1024
_ACCEPT: Header = (b"accept", b"application/json")

T = TypeVar("T", AgentState, AdapterState, Vocabulary)


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
        self._read_headers: tuple[Header, ...] = (_ACCEPT,)
        self._read_until = 0.0
        self._reading = asyncio.Lock()
        self.reading_s = 0.0

    async def state(self, url: str, after: int | None, wait_s: float = POLL_WAIT_S) -> AgentState:
        """The agent's report: at once where it is not the one of `after`, otherwise when it changes or after
        `wait_s`; its figures within what can be true. `reading_s` is then what reading it took.

        Raises:
            AgentError: There was no report.
        """
        target = f"/v1/state?wait={wait_s:.3g}&after={after}" if after is not None else "/v1/state"
        timeout_s = (wait_s if after is not None else 0.0) + _GRACE_S
        body = await self._call(url, "GET", target, timeout_s, MAX_REPORT)
        began = time.thread_time()
        state = credible(_parsed(AgentState, body))
        self.reading_s = time.thread_time() - began
        return state

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

    async def vocabulary(self, url: str) -> Vocabulary:
        """What the tokens of the pod's model are in bytes.

        Raises:
            AgentError: The agent does not tell it.
        """
        return _parsed(Vocabulary, await self._call(url, "GET", "/v1/vocabulary", _VOCABULARY_S))

    async def _call(self, url: str, method: str, target: str, timeout_s: float, most: int = MAX_ANSWER) -> bytes:
        try:
            endpoint = _endpoint(url)
            timeouts = Timeouts(connect_s=_CONNECT_S, first_byte_s=timeout_s, idle_s=_GRACE_S)
            headers = await self._headers()
            async with self._pool.request(endpoint, method, target, headers, timeouts=timeouts) as response:
                body = await response.read(most)
                status = response.status
        except (UpstreamError, ValueError, OSError) as error:
            raise AgentError(0, getattr(error, "kind", "unreachable"), str(error)) from error
        if status != 200:
            self._read_until = 0.0
            raise _refused(status, body)
        return body

    async def _headers(self) -> tuple[Header, ...]:
        if self._token_file is not None and time.monotonic() >= self._read_until:
            async with self._reading:
                if time.monotonic() >= self._read_until:
                    self._read_headers = await asyncio.to_thread(_with_token, self._token_file)
                    self._read_until = time.monotonic() + _TOKEN_S
        return self._read_headers


@lru_cache(maxsize=16_384)
def _endpoint(url: str) -> Endpoint:
    return Endpoint.parse(url)


def _with_token(path: Path) -> tuple[Header, ...]:
    token = path.read_text("ascii").strip()
    return (_ACCEPT, (b"authorization", f"Bearer {token}".encode("ascii")))


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
