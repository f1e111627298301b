"""The inference endpoints: from a request to a `Call`, and what every call shares.

Callback style from end to end: a request that is admitted at once and whose adapter is resident costs no
task. Times are read from the monotonic clock, which both event loops keep their timers by; uvloop's own clock
stands still within a turn and counts milliseconds.
"""

import asyncio
import itertools
import time

import msgspec
import structlog

from sheaf_gateway.admission.admission import Admission
from sheaf_gateway.admission.terms import Ask as Door
from sheaf_gateway.api import asking, body, errors
from sheaf_gateway.api.asking import Asked
from sheaf_gateway.api.call import Call, Ending
from sheaf_gateway.api.errors import ApiError
from sheaf_gateway.api.ids import RequestIds
from sheaf_gateway.api.keys import KeyRing
from sheaf_gateway.api.metrics import Metrics
from sheaf_gateway.api.records import Record, Records
from sheaf_gateway.api.routes import Route
from sheaf_gateway.api.waiting import WaitingRoom
from sheaf_gateway.fleet.loading import AdapterLoader
from sheaf_gateway.fleet.store import FleetStore
from sheaf_gateway.fleet.view import Fleet
from sheaf_gateway.proxy.exchange import Endpoint, Timeouts
from sheaf_gateway.proxy.types import Request, Responder
from sheaf_gateway.proxy.upstream import Pool
from sheaf_gateway.routing.cost import tokens
from sheaf_gateway.routing.router import Router

log = structlog.get_logger(__name__)

_MAX_ENDPOINTS = 4_096


class InferenceRules(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the inference path: attempts of a request, requests at once on a pod, levels of JSON."""

    max_attempts: int = 3
    max_inflight_per_pod: int = 256
    max_depth: int = 64
    access_log: bool = True


class Inference:
    """What all calls share, and the way in."""

    def __init__(
        self,
        *,
        store: FleetStore,
        router: Router,
        pool: Pool,
        loader: AdapterLoader,
        keys: KeyRing,
        metrics: Metrics,
        records: Records,
        timeouts: Timeouts,
        rules: InferenceRules,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.now = time.monotonic
        self.store = store
        self.router = router
        self.pool = pool
        self.loader = loader
        self.keys = keys
        self.metrics = metrics
        self.records = records
        self.timeouts = timeouts
        self.rules = rules
        self.max_attempts = rules.max_attempts
        self.admission = Admission()
        self.waiting = WaitingRoom(self.admission, self.loop)
        self.ids = RequestIds()
        self._sequence = itertools.count(1)
        self._endpoints: dict[str, Endpoint] = {}
        store.listen(self._fleet_changed)

    def serve(self, route: Route, request: Request, responder: Responder) -> None:
        """Answer one request of a route."""
        request_id = self.ids.take(request.header(b"x-request-id"))
        try:
            asked = self._asked(route, request, request_id)
        except ApiError as error:
            self._refuse(error, route, request_id, responder)
            return
        record = self._record(asked, request_id)
        self.records.add(record)
        Call(self, asked, responder, record).begin()

    def endpoint(self, url: str) -> Endpoint:
        """The endpoint of an engine's URL, parsed once."""
        found = self._endpoints.get(url)
        if found is None:
            if len(self._endpoints) >= _MAX_ENDPOINTS:
                self._endpoints.clear()
            found = self._endpoints[url] = Endpoint.parse(url)
        return found

    def slots(self, model: str) -> int:
        """Requests that the ready pods of a Model take at once."""
        return self.store.fleet.ready.get(model, 0) * self.rules.max_inflight_per_pod

    def finished(self, asked: Asked, record: Record, ending: Ending) -> None:
        """Account for a call that is over, and call in who waits."""
        usage, seconds = ending.usage, self.now() - ending.opened_at
        record.total_ms = seconds * 1000.0
        record.prompt_tokens, record.cached_tokens, record.output_tokens = usage.prompt, usage.cached, usage.output
        self.ids.leave(asked.sent_id)
        if ending.admitted:
            self._release(asked.door, _used_tokens(record, ending), seconds)
        self._measure(record, ending, seconds)
        if self.rules.access_log:
            _log_request(asked, record)

    def _release(self, door: Door, used: float | None, seconds: float) -> None:
        self.admission.release(door, self.now(), used_tokens=used, service_s=seconds)
        if self.admission.waiting(door.model):
            self.waiting.call_in(door.model, self.slots(door.model))

    def _asked(self, route: Route, request: Request, request_id: str) -> Asked:
        caller = self.keys.caller(request.header)
        caller.require("inference")
        asking.check_media(request)
        parsed = body.parse(request.body, route.decode, self.rules.max_depth)
        fleet = self.store.fleet
        served = asking.resolve(fleet, parsed.model, caller, route)
        sent_id = self.ids.enter(request_id)
        sequence, slots = str(next(self._sequence)), self.slots(served.model)
        return Asked(
            request,
            route,
            caller,
            served,
            asking.door(sequence, served, caller, fleet, slots=slots, cost=parsed.tokens()),
            asking.ask(request_id, served, caller, fleet, parsed.prompt),
            sent_id,
            asking.forwarded(request, sent_id),
        )

    def _record(self, asked: Asked, request_id: str) -> Record:
        return Record(
            request_id=request_id,
            served=asked.served.name,
            model=asked.served.model,
            adapter=asked.served.adapter,
            tenant=asked.caller.tenant,
            path=asked.route.path,
            received_at=time.time(),
            prompt_bytes=asked.ask.prompt_bytes,
            attempts=[],
        )

    def _refuse(self, error: ApiError, route: Route, request_id: str, responder: Responder) -> None:
        self.metrics.errors.labels(error.code).inc()
        answer = errors.body(error, route.dialect, request_id)
        responder.reply(error.status, errors.headers(error, request_id), answer)
        if self.rules.access_log:
            log.info("request", request_id=request_id, path=route.path, status=error.status, code=error.code)

    def _measure(self, record: Record, ending: Ending, seconds: float) -> None:
        meters, usage = self.metrics.of(record.served), ending.usage
        meters.requested(record.status)
        meters.duration(seconds)
        if record.ttft_ms is not None:
            ttft = record.ttft_ms / 1000.0
            further = (usage.output or ending.events) - 1
            meters.ttft(ttft)
            if further > 0:
                meters.tpot((ending.last_at - ending.opened_at - ttft) / further)
        if usage.prompt is not None:
            meters.reported(usage.prompt, usage.cached or 0, usage.output or 0)

    def _fleet_changed(self, fleet: Fleet) -> None:
        self.router.keep([pod for pods in fleet.pods.values() for pod in pods])
        self.metrics.keep(fleet.served)
        self.admission.keep(frozenset(fleet.pods))
        for model in fleet.pods:
            if self.admission.waiting(model):
                self.waiting.call_in(model, self.slots(model))


def _used_tokens(record: Record, ending: Ending) -> float | None:
    """What a request is charged: nothing where it failed, what the engine reports, else what was streamed."""
    used = 0 if record.status >= 400 else ending.usage.total()
    if used is None and ending.events:
        return tokens(record.prompt_bytes) + ending.events
    return used


def _log_request(asked: Asked, record: Record) -> None:
    last = record.attempts[-1].decision.pod if record.attempts else None
    log.info(
        "request",
        request_id=record.request_id,
        path=record.path,
        served=record.served,
        tenant=record.tenant,
        key=asked.caller.name,
        status=record.status,
        code=record.error,
        pod=last,
        attempts=len(record.attempts),
        ttft_ms=_rounded(record.ttft_ms),
        total_ms=_rounded(record.total_ms),
        prompt_tokens=record.prompt_tokens,
        cached_tokens=record.cached_tokens,
        output_tokens=record.output_tokens,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
