"""Rate and concurrency limits of tenants and keys, kept in this gateway; what others charge counts once they tell.

A scope is a text such as `tenant/gold/chat` or `key/ci`. Scopes come from keys and SLO objects, never from
request bodies; their number is bounded all the same, the least recently used idle ones leave first.

Others may charge a scope before anybody asks for it here, and its rate is not known until then: what they charge in the
last minute is kept by the time at which it was told, and taken from the buckets when the account opens.
"""

from collections import deque
from collections.abc import Iterable
from typing import Literal

import msgspec

from sheaf_gateway.admission.bucket import Bucket
from sheaf_gateway.fleet.view import Rate

Limited = Literal["requests_per_minute", "tokens_per_minute", "max_concurrent"]
ScopedRate = tuple[str, Rate]

CONCURRENCY_RETRY = 1.0

_MAX_HEARD = 10_000
_SPAN_S = 5.0
_SPANS = 12


class Refusal(msgspec.Struct, frozen=True):
    """A limit that would be passed, and the seconds until it would not."""

    scope: str
    limit: Limited
    bound: int
    retry_after: float


class _Account:
    __slots__ = ("charged", "rate", "requests", "running", "started", "tokens")

    def __init__(self, rate: Rate, now: float) -> None:
        self.rate = rate
        self.running = 0
        self.started = 0
        self.charged = 0.0
        self.requests = _bucket(rate.requests_per_minute, now)
        self.tokens = _bucket(rate.tokens_per_minute, now)

    def change(self, rate: Rate, now: float) -> None:
        self.rate = rate
        self.requests = _bucket(rate.requests_per_minute, now, self.requests)
        self.tokens = _bucket(rate.tokens_per_minute, now, self.tokens)

    def start(self, tokens: float, now: float) -> None:
        self.running += 1
        self.started += 1
        self.charged += tokens
        self.spend(1.0, tokens, now)

    def spend(self, requests: float, tokens: float, now: float) -> None:
        if self.requests is not None:
            self.requests.spend(requests, now)
        if self.tokens is not None:
            self.tokens.spend(tokens, now)


class _Told(msgspec.Struct):
    """What others charged within one span of time, the last of it `at`."""

    span: float
    at: float
    requests: float
    tokens: float


class _Heard:
    """What others charged in the last minute to scopes that nobody used here; those longest silent leave first."""

    def __init__(self) -> None:
        self._scopes: dict[str, deque[_Told]] = {}

    def note(self, scope: str, requests: float, tokens: float, now: float) -> None:
        told = self._scopes.pop(scope, None) or deque(maxlen=_SPANS)
        if not told or told[-1].span != now // _SPAN_S:
            told.append(_Told(now // _SPAN_S, now, 0.0, 0.0))
        last = told[-1]
        last.at, last.requests, last.tokens = now, last.requests + requests, last.tokens + tokens
        self._scopes[scope] = told
        self._forget(now)

    def open(self, scope: str, rate: Rate, now: float) -> _Account:
        told = self._scopes.pop(scope, None)
        if told is None:
            return _Account(rate, now)
        account = _Account(rate, told[0].at)
        for each in told:
            account.spend(each.requests, each.tokens, each.at)
        return account

    def _forget(self, now: float) -> None:
        scope, told = next(iter(self._scopes.items()))
        if len(self._scopes) > _MAX_HEARD or told[-1].at < now - _SPAN_S * _SPANS:
            del self._scopes[scope]


class Limits:
    """Accounts of every scope that was used."""

    def __init__(self, max_scopes: int = 100_000) -> None:
        self._max = max_scopes
        self._accounts: dict[str, _Account] = {}
        self._others: dict[str, int] = {}
        self._heard = _Heard()
        self._stirred: set[str] | None = None

    def __len__(self) -> int:
        return len(self._accounts)

    def check(self, scopes: Iterable[ScopedRate], tokens: float, now: float) -> Refusal | None:
        """The first limit that one more request of `tokens` would pass, or None."""
        for scope, rate in scopes:
            refusal = self._refusal(scope, self._account(scope, rate, now), tokens, now)
            if refusal is not None:
                return refusal
        return None

    def take(self, scopes: Iterable[ScopedRate], tokens: float, now: float) -> Refusal | None:
        """Charge a request to all its scopes, or to none and say which limit it would pass."""
        accounts = []
        for scope, rate in scopes:
            account = self._account(scope, rate, now)
            refusal = self._refusal(scope, account, tokens, now)
            if refusal is not None:
                return refusal
            accounts.append(account)
        for account in accounts:
            account.start(tokens, now)
        return None

    def start(self, scopes: Iterable[ScopedRate], tokens: float, now: float) -> None:
        """Charge a request whatever its limits."""
        for scope, rate in scopes:
            self._account(scope, rate, now).start(tokens, now)

    def finish(self, scopes: Iterable[ScopedRate], correction: float, now: float) -> None:
        """Account for its end; `correction` is what it used beyond its estimate, in tokens."""
        for scope, rate in scopes:
            account = self._account(scope, rate, now)
            account.running = max(0, account.running - 1)
            account.charged += correction
            account.spend(0.0, correction, now)

    def tell(self, *, on: bool) -> None:
        """Note from now on which scopes are charged, for `news`; or note nothing any more."""
        self._stirred = set() if on else None

    def news(self) -> list[tuple[str, int, float, int]]:
        """What was charged since the last time: scope, requests and tokens since the beginning, requests under way."""
        stirred = self._stirred or set()
        found = [(scope, self._accounts[scope]) for scope in stirred if scope in self._accounts]
        stirred.clear()
        return [(scope, account.started, account.charged, account.running) for scope, account in found]

    def hear(self, scope: str, requests: float, tokens: float, running: int, now: float) -> None:
        """Another gateway charged a scope so much more, and has so many more (fewer: below 0) under way."""
        under_way = self._others.get(scope, 0) + running
        if under_way > 0:
            self._others[scope] = under_way
        else:
            self._others.pop(scope, None)
        account = self._accounts.get(scope)
        if account is not None:
            account.spend(requests, tokens, now)
        elif requests or tokens:
            self._heard.note(scope, requests, tokens, now)

    def _refusal(self, scope: str, account: _Account, tokens: float, now: float) -> Refusal | None:
        others = self._others.get(scope, 0) if self._others else 0
        return _refusal(scope, account, tokens, now, account.running + others)

    def _account(self, scope: str, rate: Rate, now: float) -> _Account:
        account = self._accounts.pop(scope, None)
        if account is None:
            account = self._heard.open(scope, rate, now)
            self._make_room()
        elif account.rate != rate:
            account.change(rate, now)
        self._accounts[scope] = account
        if self._stirred is not None:
            self._stirred.add(scope)
        return account

    def _make_room(self) -> None:
        if len(self._accounts) < self._max:
            return
        idle = next((scope for scope, account in self._accounts.items() if not account.running), None)
        self._accounts.pop(idle if idle is not None else next(iter(self._accounts)))


def _bucket(per_minute: int | None, now: float, before: Bucket | None = None) -> Bucket | None:
    if per_minute is None:
        return None
    size = float(per_minute), per_minute / 60.0, now
    return Bucket(*size) if before is None else before.resized(*size)


def _refusal(scope: str, account: _Account, tokens: float, now: float, running: int) -> Refusal | None:
    rate = account.rate
    if rate.max_concurrent is not None and running >= rate.max_concurrent:
        return Refusal(scope, "max_concurrent", rate.max_concurrent, CONCURRENCY_RETRY)
    if account.requests is not None and (wait := account.requests.wait(1.0, now)) > 0:
        return Refusal(scope, "requests_per_minute", int(account.requests.capacity), wait)
    if account.tokens is not None and (wait := account.tokens.wait(tokens, now)) > 0:
        return Refusal(scope, "tokens_per_minute", int(account.tokens.capacity), wait)
    return None
