"""Keeping up with one kind of object: list once, then watch, and list again only where the server says that the
watch cannot go on.

After the protocol of Kubernetes' API concepts (efficient detection of changes): pages with `limit` and `continue`,
bookmarks to move the resource version of quiet kinds, 410 Gone to start over. A connection that is silent for longer
than the server's bookmarks take is given up and taken up again where it stood. A watch that is cut is no news: the
server is away when it cannot be taken up again.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from random import Random
from typing import Any, Literal, NamedTuple, Protocol

import orjson
import structlog

from sheaf_gateway.fleet import metrics
from sheaf_gateway.fleet.kubernetes.backoff import delay
from sheaf_gateway.fleet.kubernetes.client import ApiError, KubeApi, NonsenseError, SilenceError
from sheaf_gateway.fleet.kubernetes.reading import Raw, UnreadableError, identity
from sheaf_gateway.fleet.snapshot import Kind

log = structlog.get_logger(__name__)

GONE = 410
_BREATHE_EVERY = 64
_MAX_WATCH_FAILURES = 4

ListReason = Literal["first", "expired", "failures", "refresh"]


class Resource(NamedTuple):
    """What is listed and watched: the path of the collection and a label selector."""

    kind: Kind
    path: str
    selector: str = ""


class Rules(NamedTuple):
    """Seconds and sizes of listing and watching. `idle_s` must exceed the server's bookmark interval (a minute)."""

    page: int = 250
    watch_s: float = 180.0
    idle_s: float = 75.0
    refresh_s: float = 1800.0
    max_objects: int = 250_000


class Sink(Protocol):
    """Who is told. Objects are raw; a list is told object by object, then as the set of all names."""

    def changed(self, kind: Kind, raw: Raw) -> None:
        """An object is there, new or not."""

    def gone(self, kind: Kind, raw: Raw) -> None:
        """An object was deleted; `raw` is its last state."""

    def listed(self, kind: Kind, names: frozenset[str]) -> None:
        """These are all objects of the kind."""

    def watching(self, kind: Kind) -> None:
        """The kind is kept up to date from now on."""

    def away(self, kind: Kind, error: ApiError) -> None:
        """The kind cannot be kept up to date for now."""


class Reflector:
    """Follows one resource until cancelled; nothing the server does ends it."""

    def __init__(self, resource: Resource, api: KubeApi, sink: Sink, rules: Rules, random: Random) -> None:
        self._resource = resource
        self._api = api
        self._sink = sink
        self._rules = rules
        self._random = random
        self._version = ""
        self._reason: ListReason = "first"
        self._refresh_at = 0.0
        self._failures = 0
        self._seen = 0
        self._watching = False

    async def run(self) -> None:
        """List and watch for ever."""
        while True:
            try:
                await self._round()
            except ApiError as error:
                await self._failed(error)
            except Exception as error:
                log.exception("reflector_failed", kind=self._resource.kind)
                await self._failed(NonsenseError(0, f"{type(error).__name__}: {error}"))

    async def _round(self) -> None:
        if not self._version:
            await self._list()
        started = time.monotonic()
        with contextlib.suppress(SilenceError):
            await self._watch()
        if time.monotonic() - started < 1.0:
            await asyncio.sleep(delay(1, self._random))
        if time.monotonic() >= self._refresh_at:
            self._start_over("refresh")

    async def _failed(self, error: ApiError) -> None:
        metrics.WATCH_ERRORS.labels(self._resource.kind, str(error.status)).inc()
        self._failures += 1
        if error.status == GONE:
            self._start_over("expired")
        elif (error.status or isinstance(error, NonsenseError)) and self._failures >= _MAX_WATCH_FAILURES:
            self._start_over("failures")
        if self._failures > 1 or not (self._watching or error.status == GONE):
            self._sink.away(self._resource.kind, error)
        self._watching = False
        await asyncio.sleep(delay(self._failures, self._random, error.retry_after))

    def _start_over(self, reason: ListReason) -> None:
        if self._version:
            self._version, self._reason = "", reason

    # Listing.

    async def _list(self) -> None:
        kind = self._resource.kind
        metrics.WATCH_LISTS.labels(kind, self._reason).inc()
        names: set[str] = set()
        query: dict[str, str] = {"limit": str(self._rules.page)}
        while True:
            page = _object(await self._api.get(self._resource.path, self._selected(query)))
            names |= await self._take(page)
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                break
            query["continue"] = str(metadata["continue"])
        self._sink.listed(kind, frozenset(names))
        self._version = str(metadata.get("resourceVersion") or "0")
        self._refresh_at = time.monotonic() + self._rules.refresh_s * self._random.uniform(0.5, 1.5)

    async def _take(self, page: Raw) -> set[str]:
        names = set()
        for raw in page.get("items") or ():
            try:
                name = identity(raw).name
            except UnreadableError:
                continue
            names.add(name)
            self._sink.changed(self._resource.kind, raw)
            await self._breathe()
        return names

    async def _breathe(self) -> None:
        """Let requests through between the objects of a long list or a flood of events."""
        self._seen += 1
        if self._seen % _BREATHE_EVERY == 0:
            await asyncio.sleep(0)

    # Watching.

    async def _watch(self) -> None:
        rules = self._rules
        seconds = rules.watch_s * self._random.uniform(0.7, 1.3)
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(max(1, round(seconds))),
        }
        times = {"idle_s": rules.idle_s, "total_s": seconds + rules.idle_s}
        async with self._api.lines(self._resource.path, self._selected(query), **times) as lines:
            self._watching = True
            self._sink.watching(self._resource.kind)
            async for line in lines:
                self._event(_object(line))
                self._failures = 0
                await self._breathe()
        self._failures = 0

    def _event(self, event: Raw) -> None:
        kind, word, raw = self._resource.kind, event.get("type"), event.get("object")
        if not isinstance(raw, Mapping):
            raise NonsenseError(0, "a watch event without an object")
        if word == "ERROR":
            raise ApiError(_code(raw), str(raw.get("message", "the watch ended with an error")))
        if not isinstance(word, str):
            raise NonsenseError(0, "a watch event without a type")
        metrics.WATCH_EVENTS.labels(kind, word if word in _WORDS else "other").inc()
        if word in ("ADDED", "MODIFIED"):
            self._sink.changed(kind, raw)
        elif word == "DELETED":
            self._sink.gone(kind, raw)
        self._version = _version(raw) or self._version

    def _selected(self, query: Mapping[str, str]) -> Mapping[str, str]:
        return {**query, "labelSelector": self._resource.selector} if self._resource.selector else query


_WORDS = frozenset({"ADDED", "MODIFIED", "DELETED", "BOOKMARK"})


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise NonsenseError(0, f"the API server's answer is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise NonsenseError(0, "the API server's answer is not a JSON object")
    return found


def _version(raw: Raw) -> str:
    metadata = raw.get("metadata")
    return str(metadata.get("resourceVersion") or "") if isinstance(metadata, Mapping) else ""


def _code(raw: Raw) -> int:
    code = raw.get("code")
    return code if isinstance(code, int) else 0
