"""Calls to a cloud's metadata service: bounded in bytes and in time, with the session token or the header that the
cloud wants. Proxies and redirects are not followed.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping

import httpx

from sheaf_engine.notices import aws, azure, gcp
from sheaf_engine.notices.clouds import Cloud, Question
from sheaf_engine.notices.values import Answer

PATIENCE = 3.0
CONNECT = 1.0
LARGEST = 2**20
_UNAUTHORIZED = 401
_TOKEN_KEPT = 0.9 * aws.TOKEN_SECONDS


class MetadataError(Exception):
    """The metadata service did not answer; one line for people."""


class MetadataCalls:
    """Asks one metadata service. `machine` is the machine's name, once it is known and where the cloud needs it."""

    def __init__(self, cloud: Cloud, endpoint: str, clock: Callable[[], float]) -> None:
        self._cloud, self._clock = cloud, clock
        self._token, self._token_ends = "", float("-inf")
        self._turn = asyncio.Lock()
        self.machine = ""
        self._http = httpx.AsyncClient(
            base_url=endpoint,
            timeout=httpx.Timeout(None, connect=CONNECT),
            headers={"accept-encoding": "identity"},
            trust_env=False,
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ask(self, question: Question, etag: str, *, first: bool) -> tuple[Answer, str]:
        """The answer and its ETag.

        Args:
            question: what to ask.
            etag: of the answer before, to wait for another one; empty: do not wait.
            first: whether the question has not been answered yet.

        Raises:
            MetadataError: no answer came.
            UnreadableError: the machine's name could not be read.
        """
        if self._cloud.named and not self.machine:
            named, _ = await self._get(azure.NAME_PATH, azure.NAME_QUERY, PATIENCE)
            self.machine = azure.name_of(named)
        if question.wait and etag:
            waiting = {"wait_for_change": "true", "timeout_sec": f"{question.wait:g}", "last_etag": etag}
            return await self._get(question.path, {**question.query, **waiting}, question.wait + PATIENCE)
        return await self._get(question.path, question.query, max(PATIENCE, question.first if first else 0.0))

    async def _get(self, path: str, query: Mapping[str, str], patience: float) -> tuple[Answer, str]:
        headers = await self._headers()
        found = await self._call("GET", path, headers, query, patience)
        if self._cloud.tokens and found[0].status == _UNAUTHORIZED:
            renewed = await self._headers(refused=headers)
            found = await self._call("GET", path, renewed, query, patience)
        return found

    async def _headers(self, refused: Mapping[str, str] | None = None) -> Mapping[str, str]:
        if not self._cloud.tokens:
            return self._cloud.headers
        async with self._turn:
            if time.monotonic() >= self._token_ends or refused == {aws.TOKEN_HEADER: self._token}:
                await self._renew()
            return {aws.TOKEN_HEADER: self._token}

    async def _renew(self) -> None:
        lifetime = {aws.TTL_HEADER: str(aws.TOKEN_SECONDS)}
        answer, _ = await self._call("PUT", aws.TOKEN_PATH, lifetime, {}, PATIENCE)
        token = aws.token_of(answer)
        if not token:
            raise MetadataError(f"no session token: it answered {answer.status}")
        self._token, self._token_ends = token, time.monotonic() + _TOKEN_KEPT

    async def _call(
        self, method: str, path: str, headers: Mapping[str, str], query: Mapping[str, str], patience: float
    ) -> tuple[Answer, str]:
        try:
            async with (
                asyncio.timeout(patience),
                self._http.stream(method, path, headers=dict(headers), params=dict(query)) as response,
            ):
                body = await _read(response)
        except TimeoutError as error:
            raise MetadataError(f"no answer within {patience:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise MetadataError(f"{type(error).__name__} {error}".strip()[:300]) from error
        answer = Answer(response.status_code, body, self._clock(), response.headers.get("date", ""))
        return answer, gcp.etag_of(response.headers.get("etag", ""))


async def _read(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > LARGEST:
            raise MetadataError(f"the answer is larger than {LARGEST} bytes")
    return bytes(body)
