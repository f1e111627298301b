"""Limits shared by all gateways through Redis: one script and one round trip to charge a request, one to settle it.

The scripts run atomically in Redis and take the time from it, so that gateways' clocks do not matter. Rates are token
buckets of one minute's size, as in `admission.bucket`; what is under way is a set of leases with an end, so that a
gateway that dies leaves nothing behind for longer than a lease. Every key expires by itself once it says what an
absent one says. All keys carry one hash tag, for a script may touch one slot of a cluster only.

While Redis does not answer, nobody waits for it: after one failure it is left alone for `_RETRY_S`, then a single
request tries it again. Meanwhile the limits of this gateway alone hold (`fail_open`), or limited requests are refused.
What ends meanwhile is settled when Redis is back.

A script whose answer did not come in time may have run, or may run yet. So each charge leaves a mark with its lease,
and only who finds the mark settles it: however often a settlement comes, it counts once. A charge without an answer is
settled as one that was never let in; where that comes before the charge, it leaves a mark that stops the charge.
"""

import asyncio
import hashlib
import time
from collections import deque
from typing import cast

import structlog
from redis.commands.core import AsyncScript

from sheaf_gateway.admission.limits import CONCURRENCY_RETRY, Limited, Refusal, ScopedRate
from sheaf_gateway.api.pipeline import FAILURES, Argument, NotSentError, Pipeline

log = structlog.get_logger(__name__)

_RETRY_S = 1.0
_LEASE_S = 900.0
_MARK_S = 3600.0
_SOON_S = 0.01
_MAX_OWED = 10_000
_LIMITS: tuple[Limited, ...] = ("requests_per_minute", "tokens_per_minute", "max_concurrent")

_COMMON = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function level(found, field, cap)
  local value, at = tonumber(found[field] or cap), tonumber(found[3] or now)
  return math.min(cap, value + math.max(0, now - at) * cap / 60000)
end
local function keep(key, requests, rpm, tokens, tpm)
  redis.call('HSET', key, 'r', tostring(requests), 't', tostring(tokens), 'at', now)
  local empty = 0
  if rpm > 0 then empty = math.max(empty, (rpm - requests) / rpm) end
  if tpm > 0 then empty = math.max(empty, (tpm - tokens) / tpm) end
  redis.call('PEXPIRE', key, math.ceil(empty * 60000) + 1000)
end
"""

_CHARGE = (
    _COMMON
    + """
local lease, tokens, lease_ms, mark_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local levels, mark = {}, KEYS[#KEYS]
if redis.call('EXISTS', mark) == 1 then return {0, 0, 0} end
for i = 1, (#KEYS - 1) / 2 do
  local rpm, tpm, most = tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3]), tonumber(ARGV[3 * i + 4])
  local found = redis.call('HMGET', KEYS[2 * i - 1], 'r', 't', 'at')
  local r, t = level(found, 1, rpm), level(found, 2, tpm)
  if most > 0 then
    redis.call('ZREMRANGEBYSCORE', KEYS[2 * i], '-inf', now)
    if redis.call('ZCARD', KEYS[2 * i]) >= most then return {i, 3, 0} end
  end
  if rpm > 0 and r < 1 then return {i, 1, math.ceil((1 - r) / rpm * 60000)} end
  local wanted = math.min(tokens, tpm)
  if tpm > 0 and t < wanted then return {i, 2, math.ceil((wanted - t) / tpm * 60000)} end
  levels[i] = {r, t}
end
for i = 1, (#KEYS - 1) / 2 do
  local rpm, tpm, most = tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3]), tonumber(ARGV[3 * i + 4])
  if rpm > 0 or tpm > 0 then keep(KEYS[2 * i - 1], levels[i][1] - 1, rpm, levels[i][2] - tokens, tpm) end
  if most > 0 then
    redis.call('ZADD', KEYS[2 * i], now + lease_ms, lease)
    redis.call('PEXPIRE', KEYS[2 * i], lease_ms)
  end
end
redis.call('SET', mark, 'charged', 'PX', mark_ms)
return {0, 0, 0}
"""
)

_SETTLE = (
    _COMMON
    + """
local lease, correction, refund, mark_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local mark = KEYS[#KEYS]
if redis.call('GET', mark) ~= 'charged' then
  redis.call('SET', mark, 'over', 'PX', mark_ms)
  return 0
end
redis.call('DEL', mark)
for i = 1, (#KEYS - 1) / 2 do
  local rpm, tpm, most = tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3]), tonumber(ARGV[3 * i + 4])
  if rpm > 0 or tpm > 0 then
    local found = redis.call('HMGET', KEYS[2 * i - 1], 'r', 't', 'at')
    local r, t = math.min(rpm, level(found, 1, rpm) + refund), math.min(tpm, level(found, 2, tpm) - correction)
    keep(KEYS[2 * i - 1], r, rpm, t, tpm)
  end
  if most > 0 then redis.call('ZREM', KEYS[2 * i], lease) end
end
return 0
"""
)


_Debt = tuple[tuple[ScopedRate, ...], list[Argument]]


class LimitsUnavailable(Exception):  # noqa: N818
    """Redis does not answer."""


class _Unanswered(LimitsUnavailable):
    """It was asked and may have done it."""


class SharedLimits:
    """The limits in one Redis. `url` is `redis://`, `rediss://` or `unix://`; it may hold a password: never log it."""

    def __init__(self, url: str, *, fail_open: bool = True, timeout_s: float = 0.25, prefix: str = "sheaf") -> None:
        self.fail_open = fail_open
        self.failures = 0
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._pipeline = Pipeline(url, timeout_s=timeout_s)
        self._charge, self._settle = self._pipeline.script(_CHARGE), self._pipeline.script(_SETTLE)
        self._away_until = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._owed: deque[_Debt] = deque(maxlen=_MAX_OWED)
        self._later: asyncio.TimerHandle | None = None

    async def charge(self, lease: str, scopes: tuple[ScopedRate, ...], tokens: float) -> Refusal | None:
        """Charge a request of `tokens` to all its scopes, or to none and say which limit would be passed.

        Raises:
            LimitsUnavailable: Redis does not answer, or did not a moment ago.
        """
        arguments = [lease, tokens, int(_LEASE_S * 1000), int(_MARK_S * 1000), *_rates(scopes)]
        try:
            place, limit, wait_ms = cast("list[int]", await self._ask(self._charge, scopes, arguments))
        except _Unanswered:
            self._owe(lease, scopes, -tokens, refund=True)
            raise
        if not place:
            return None
        scope, rate = scopes[place - 1]
        name = _LIMITS[limit - 1]
        return Refusal(scope, name, getattr(rate, name), wait_ms / 1000.0 or CONCURRENCY_RETRY)

    def settle(self, lease: str, scopes: tuple[ScopedRate, ...], correction: float, *, refund: bool) -> None:
        """A charged request is over and used `correction` tokens beyond its estimate; `refund`: it was never let in.

        Nobody waits for it.
        """
        self._owe(lease, scopes, correction, refund=refund)
        self._repay()

    async def close(self) -> None:
        """Let what is under way end, then close every connection."""
        self._stop_later()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._stop_later()
        await self._pipeline.close()

    def _owe(self, lease: str, scopes: tuple[ScopedRate, ...], correction: float, *, refund: bool) -> None:
        self._owed.append((scopes, [lease, correction, int(refund), int(_LEASE_S * 1000), *_rates(scopes)]))

    def _stop_later(self) -> None:
        if self._later is not None:
            self._later.cancel()

    def _repay_later(self) -> None:
        self._stop_later()
        self._later = asyncio.get_running_loop().call_later(self._away_until - time.monotonic() + _SOON_S, self._repay)

    def _repay(self) -> None:
        task = asyncio.ensure_future(self._settle_all())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle_all(self) -> None:
        while self._owed:
            debt = self._owed.popleft()
            try:
                await self._ask(self._settle, *debt)
            except LimitsUnavailable:
                self._owed.appendleft(debt)
                return

    async def _ask(self, script: AsyncScript, scopes: tuple[ScopedRate, ...], arguments: list[Argument]) -> object:
        now = time.monotonic()
        if now < self._away_until:
            raise LimitsUnavailable
        probing = self._away_until > 0.0
        if probing:
            self._away_until = now + _RETRY_S
        try:
            answer = await self._pipeline.run(script, self._keys(scopes, str(arguments[0])), arguments)
        except NotSentError:
            raise LimitsUnavailable from None
        except FAILURES as error:
            self._failed(error, time.monotonic())
            raise _Unanswered from None
        if probing:
            log.info("limits_shared_again", owed=len(self._owed))
            self._repay()
        self._away_until = 0.0
        return answer

    def _failed(self, error: Exception, now: float) -> None:
        self.failures += 1
        if self._away_until <= 0.0:
            log.warning("limits_not_shared", error=type(error).__name__, fail_open=self.fail_open)
        self._away_until = now + _RETRY_S
        self._repay_later()

    def _keys(self, scopes: tuple[ScopedRate, ...], lease: str) -> list[str]:
        found = []
        for scope, _ in scopes:
            name = hashlib.sha256(scope.encode()).hexdigest()[:32]
            found += [f"{{{self._prefix}}}:rate:{name}", f"{{{self._prefix}}}:lease:{name}"]
        return [*found, f"{{{self._prefix}}}:mark:{lease}"]


def _rates(scopes: tuple[ScopedRate, ...]) -> list[Argument]:
    return [bound or 0 for _, rate in scopes for bound in (getattr(rate, name) for name in _LIMITS)]


def bounded(scopes: tuple[ScopedRate, ...]) -> tuple[ScopedRate, ...]:
    """Those scopes that bound anything at all."""
    return tuple(scope for scope in scopes if any(getattr(scope[1], name) is not None for name in _LIMITS))
