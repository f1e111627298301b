"""Calls to a pod's agent (wire types: sheaf_crds.agent_api)."""

import contextlib

import httpx
from pydantic import ValidationError
from sheaf_crds.agent_api import AgentState, Catalog, Drain
from sheaf_operator.cluster.protocol import ClusterError

CALL_TIMEOUT = 10.0


class AgentClient:
    """One pod's agent. Every call raises ClusterError where the agent does not answer as it should."""

    def __init__(self, url: str, token: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {token}"},
            timeout=CALL_TIMEOUT,
            trust_env=False,
        )

    async def state(self, after: int, wait: float) -> AgentState:
        """The state as soon as its version differs from `after`, or after `wait` seconds."""
        timeout = CALL_TIMEOUT + wait
        answer = await self._call("GET", "/v1/state", params={"after": after, "wait": wait}, timeout=timeout)
        return _state(answer)

    async def put_catalog(self, catalog: Catalog) -> None:
        """Give it the adapters that it may serve; one that has a newer catalog keeps that."""
        await self._call("PUT", "/v1/catalog", json=catalog.to_wire(), accepted=(409,))

    async def drain(self, seconds: float, reason: str) -> AgentState:
        """Let it admit nothing new and finish within so many seconds."""
        return _state(await self._call("POST", "/v1/drain", json=Drain(deadline=seconds, reason=reason).to_wire()))

    async def is_ready(self) -> bool:
        """Whether the engine is up and the adapters to keep loaded are."""
        return (await self._call("GET", "/readyz", accepted=(503,))).status_code == 200

    async def is_alive(self) -> bool:
        """Whether it answers at all."""
        with contextlib.suppress(ClusterError):
            return (await self._call("GET", "/healthz")).status_code == 200
        return False

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def _call(
        self,
        method: str,
        path: str,
        *,
        accepted: tuple[int, ...] = (),
        json: object = None,
        params: dict[str, float] | None = None,
        timeout: float = CALL_TIMEOUT,  # noqa: ASYNC109 - handed to the HTTP client
    ) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, json=json, params=params, timeout=timeout)
        except httpx.HTTPError as error:
            raise ClusterError(f"the agent does not answer: {error or type(error).__name__}") from error
        if answer.status_code not in (200, 202, 204, *accepted):
            raise ClusterError(f"the agent answered {answer.status_code} to {method} {path}: {answer.text[:300]}")
        return answer


def _state(answer: httpx.Response) -> AgentState:
    try:
        return AgentState.model_validate_json(answer.content)
    except ValidationError as error:
        raise ClusterError(f"the agent's state cannot be read: {error.error_count()} errors") from error
