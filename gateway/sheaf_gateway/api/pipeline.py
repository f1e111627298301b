"""Scripts on a Redis, many at once over few connections.

While a connection waits for its answers, what is asked meanwhile gathers, and goes with the next that is free: a burst
costs a few round trips however large it is, and waits for its turn instead of failing for want of a connection. Only
what Redis itself fails at, or does not answer in time, is its failure; then what has not been sent yet is told so at
once. A script that Redis does not know (any more) is loaded with a second try.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError, RedisError

FAILURES = (RedisError, OSError, TimeoutError)
Argument = str | float | int

_CONNECTIONS = 4
_BATCH = 128
_MAX_ASKED = 10_000


class NotSentError(Exception):
    """It was not sent to Redis: too much waits, or what was sent before it failed."""


class _Asked(msgspec.Struct, eq=False):
    script: AsyncScript
    keys: Sequence[str]
    arguments: Sequence[Argument]
    answer: asyncio.Future[object]


class Pipeline:
    """The connections to one Redis. `timeout_s` bounds the wait for a connection and for each answer, twice that a
    batch."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._client = Redis(connection_pool=self._pool)
        self._asked: deque[_Asked] = deque()
        self._senders: set[asyncio.Task[None]] = set()
        self._sending = 0

    def script(self, text: str) -> AsyncScript:
        """A script that `run` takes."""
        return self._client.register_script(text)

    async def run(self, script: AsyncScript, keys: Sequence[str], arguments: Sequence[Argument]) -> object:
        """What the script returns.

        Raises:
            NotSentError: Redis was not asked.
            FAILURES: Redis does not answer, or says that it failed.
        """
        if len(self._asked) >= _MAX_ASKED:
            raise NotSentError
        asked = _Asked(script, keys, arguments, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        if self._sending < _CONNECTIONS:
            self._sending += 1
            task = asyncio.ensure_future(self._send_all())
            self._senders.add(task)
            task.add_done_callback(self._senders.discard)
        return await asked.answer

    async def close(self) -> None:
        """Let what is under way end, then close every connection."""
        await asyncio.gather(*self._senders, return_exceptions=True)
        await self._client.aclose()
        await self._pool.disconnect()

    async def _send_all(self) -> None:
        try:
            while self._asked:
                batch = [self._asked.popleft() for _ in range(min(_BATCH, len(self._asked)))]
                await self._send(batch)
        finally:
            self._sending -= 1

    async def _send(self, batch: list[_Asked]) -> None:
        try:
            async with asyncio.timeout(2 * self._timeout_s):
                await self._ask(batch)
        except FAILURES as error:
            _fail(batch, error)
            unsent = list(self._asked)
            self._asked.clear()
            _fail(unsent, NotSentError())
        except BaseException:
            _fail(batch, NotSentError())
            raise

    async def _ask(self, batch: list[_Asked]) -> None:
        unknown = _settle(batch, await self._execute(batch))
        if unknown:
            _settle(unknown, await self._execute(unknown, load=True), last=True)

    async def _execute(self, batch: list[_Asked], *, load: bool = False) -> list[object]:
        async with self._client.pipeline(transaction=False) as pipe:
            for text in {asked.script.script for asked in batch} if load else ():
                pipe.script_load(text)
            for asked in batch:
                pipe.evalsha(asked.script.sha, len(asked.keys), *asked.keys, *asked.arguments)
            answers: list[object] = await pipe.execute(raise_on_error=False)
        return answers[-len(batch) :]


def _settle(batch: list[_Asked], answers: list[object], *, last: bool = False) -> list[_Asked]:
    """Give the answers to who waits for them; those whose script was not known, where they may be asked again."""
    unknown = []
    for asked, answer in zip(batch, answers, strict=True):
        if isinstance(answer, NoScriptError) and not last:
            unknown.append(asked)
        elif isinstance(answer, Exception):
            _fail([asked], answer)
        elif not asked.answer.done():
            asked.answer.set_result(answer)
    return unknown


def _fail(batch: list[_Asked], error: Exception) -> None:
    for asked in batch:
        if not asked.answer.done():
            asked.answer.set_exception(error)
