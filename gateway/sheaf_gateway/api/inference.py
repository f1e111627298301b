"""The inference endpoints: from a request to a `Call`, and what every call shares.

Callback style from end to end: a request that is admitted at once and whose adapter is resident costs no
task. Times are read from the monotonic clock, which both event loops keep their timers by; uvloop's own clock
stands still within a turn and counts milliseconds.
"""

import asyncio
import itertools
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace

import msgspec

from sheaf_gateway.admission.admission import Admission, DoorRules
from sheaf_gateway.admission.attainment import Outcome
from sheaf_gateway.admission.ending import Ending, breaks_promise
from sheaf_gateway.api import asking, body, errors
from sheaf_gateway.api.access import AccessLog, Line
from sheaf_gateway.api.asking import Asked, Head
from sheaf_gateway.api.call import Call
from sheaf_gateway.api.capacity import Capacity
from sheaf_gateway.api.errors import ApiError
from sheaf_gateway.api.figure_readers import SharedToken
from sheaf_gateway.api.gathering import Colleagues
from sheaf_gateway.api.ids import RequestIds
from sheaf_gateway.api.keys import KeyRing
from sheaf_gateway.api.mending import Mending
from sheaf_gateway.api.metrics import Metrics
from sheaf_gateway.api.promises import AttainmentBook, TermsBook
from sheaf_gateway.api.records import Record, Records
from sheaf_gateway.api.routes import Route
from sheaf_gateway.api.salting import Salts
from sheaf_gateway.api.shared import SharedLimits
from sheaf_gateway.api.waiting import WaitingRoom
from sheaf_gateway.api.warming import Warming, WarmingRules
from sheaf_gateway.continuation.bounds import MendingRules
from sheaf_gateway.fleet.loading import AdapterLoader
from sheaf_gateway.fleet.store import FleetStore
from sheaf_gateway.fleet.view import Fleet
from sheaf_gateway.proxy.exchange import Endpoint, Timeouts
from sheaf_gateway.proxy.types import Request, Responder
from sheaf_gateway.proxy.upstream import Pool
from sheaf_gateway.routing.form import Form
from sheaf_gateway.routing.prefix import Chains
from sheaf_gateway.routing.router import Router

_MAX_ENDPOINTS = 65_536


class InferenceRules(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the inference path: attempts of a request, requests at once on a pod, levels of JSON, requests held
    for a Model without a ready pod and for how many seconds. `salt_secret` keeps tenants' caches apart (empty: one is
    made up). `stall_s` are the seconds without a byte after which a stream that can be continued is."""

    max_attempts: int = 3
    max_inflight_per_pod: int = 256
    max_depth: int = 64
    access_log: bool = True
    max_held: int = 256
    hold_s: float = 120.0
    salt_secret: bytes = b""
    stall_s: float = 30.0
    warming: WarmingRules = WarmingRules()
    mending: MendingRules = MendingRules()


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
        self.stream_timeouts = replace(timeouts, idle_s=min(timeouts.idle_s, rules.stall_s))
        self.mending = Mending(rules.mending, store, metrics, self.loop)
        self.warming = (
            Warming(
                rules.warming,
                store=store,
                router=router,
                pool=pool,
                loader=loader,
                metrics=metrics,
                records=records,
            )
            if rules.warming.requests
            else None
        )
        self.rules = rules
        self.max_attempts = rules.max_attempts
        self.admission = Admission(DoorRules(max_held=rules.max_held, hold_s=rules.hold_s))
        self.capacity = Capacity(store, router, rules.max_inflight_per_pod)
        self.terms = TermsBook(store.declared)
        self.attainment = AttainmentBook(store.declared)
        self.salts = Salts(rules.salt_secret)
        self.chains = Chains()
        self.shared: SharedLimits | None = None
        self.shared_token = SharedToken(None)
        self.whole = True
        self.colleagues: Colleagues | None = None
        self.forms: Mapping[str, Form] = {}
        self.waiting = WaitingRoom(self.admission, self.loop, self.slots)
        self.ids = RequestIds()
        self.access = AccessLog(self.loop, _to_stderr)
        self._sequence = itertools.count(1)
        self._life = os.urandom(8).hex()
        self._endpoints: dict[str, tuple[Endpoint, bytes]] = {}
        store.listen(self._fleet_changed)

    def serve(self, route: Route, request: Request, responder: Responder) -> None:
        """Answer one request of a route."""
        known = request.known.value
        head = known if isinstance(known, Head) and known.keys is self.keys else None
        request_id = self.ids.take(request.header(b"x-request-id") if head is None else head.given)
        try:
            asked = self._asked(route, request, request_id, head or asking.head_of(request, self.keys))
        except ApiError as error:
            self._refuse(error, route, request_id, responder)
            return
        record = self._record(asked, request_id)
        self.records.add(record)
        Call(self, asked, responder, record).begin()

    def engine(self, url: str) -> tuple[Endpoint, bytes]:
        """The endpoint of an engine's URL and its Host, worked out once."""
        found = self._endpoints.get(url)
        if found is None:
            if len(self._endpoints) >= _MAX_ENDPOINTS:
                self._endpoints.clear()
            endpoint = Endpoint.parse(url)
            found = self._endpoints[url] = endpoint, endpoint.authority
        return found

    def form_of(self, name: str) -> Form | None:
        """How the Model behind a served name renders, where that is known."""
        served = self.store.fleet.served.get(name) if self.forms else None
        return self.forms.get(served.model) if served is not None else None

    def slots(self, model: str) -> int:
        """Requests that the ready pods of a Model take at once."""
        return self.capacity.slots(model, self.now())

    def lease(self, sequence: str) -> str:
        """The name of a call that no other call of any gateway has."""
        return f"{self._life}/{sequence}"

    def call_in(self, model: str) -> None:
        """Let in as many of those who wait for a Model as there is room for."""
        if self.admission.waiting(model):
            self.waiting.call_in(model)

    async def close(self) -> None:
        """Close what inference opened by itself, and write what is left of the access log."""
        self.access.flush()
        if self.warming is not None:
            await self.warming.stop()
        if self.shared is not None:
            await self.shared.close()

    def finished(self, asked: Asked, record: Record, ending: Ending, now: float) -> None:
        """Account for a call that is over."""
        usage, seconds = ending.usage, now - ending.opened_at
        record.total_ms = seconds * 1000.0
        record.prompt_tokens, record.cached_tokens, record.output_tokens = usage.prompt, usage.cached, usage.output
        self.ids.leave(asked.sent_id)
        self._measure(asked, record, ending, seconds)
        if self.rules.access_log:
            self.access.add(_line(asked, record))

    def _asked(self, route: Route, request: Request, request_id: str, head: Head) -> Asked:
        parsed = body.parse(request.body, route.decode, self.rules.max_depth, self.form_of)
        caller, seat = head.caller, head.seat
        if seat is None or seat.turn != self.store.turn or seat.served.name != parsed.model or seat.route is not route:
            seat = head.seat = asking.seat(parsed.model, route, caller, self.store, self.terms, self.salts)
        before = None
        if parsed.previous is not None:
            before = asking.previous(parsed.previous, seat, self.salts.of(caller.tenant), self.store.fleet)
        sent_id, served = self.ids.enter(request_id), seat.served
        continues = parsed.streams and route.continues and self.mending.enabled
        return Asked(
            request,
            route,
            caller,
            served,
            asking.door(str(next(self._sequence)), seat, caller.tenant, parsed, self.slots(served.model)),
            asking.ask(request_id, seat, parsed, self.chains, b"" if before is not None else head.session),
            sent_id,
            b"%bx-request-id: %b\r\n" % (head.lines, sent_id.encode("ascii")),
            seat.salt,
            continues,
            continues and parsed.ids,
            before,
        )

    def _record(self, asked: Asked, request_id: str) -> Record:
        served, ask = asked.served, asked.ask
        return Record(
            request_id, served.name, served.model, served.adapter, asked.caller.tenant, asked.route.path, time.time(),
            ask.prompt_bytes, [], held_by=None if asked.previous is None else asked.previous.pod,
        )  # fmt: skip

    def _refuse(self, error: ApiError, route: Route, request_id: str, responder: Responder) -> None:
        self.metrics.errors.labels(error.code).inc()
        answer = errors.body(error, route.dialect, request_id)
        responder.reply(error.status, errors.headers(error, request_id), answer)
        if self.rules.access_log:
            self.access.add(Line(request_id, route.path, error.status, error.code))

    def _measure(self, asked: Asked, record: Record, ending: Ending, seconds: float) -> None:
        meters, usage = self.metrics.of(record.served), ending.usage
        slo, door = asked.served.promise.name, asked.door
        meters.requested(record.status, seconds)
        if slo or record.ttft_ms is not None:
            outcome = _outcome(record, ending, seconds)
            if outcome.ttft is not None:
                meters.ttft(outcome.ttft)
            if outcome.tpot is not None:
                meters.tpot(outcome.tpot)
            if slo and not (door.batch and door.terms.interactive):
                self._attained(slo, record, outcome)
        if usage.prompt is not None:
            meters.reported(usage.prompt, usage.cached or 0, usage.output or 0)

    def _attained(self, slo: str, record: Record, outcome: Outcome) -> None:
        if record.status < 400 and record.error is None:
            self.attainment.answered(slo, outcome, self.now())
        elif breaks_promise(record.status, record.error):
            self.attainment.failed(slo, self.now())

    def _fleet_changed(self, fleet: Fleet) -> None:
        self.capacity.changed()
        self.terms.keep(self.store.declared.models)
        self.attainment.keep()
        self.router.keep([pod for pods in fleet.pods.values() for pod in pods])
        self.metrics.keep(fleet.served)
        self.admission.keep(frozenset(self.store.declared.models))
        for model in fleet.pods:
            self.call_in(model)


def _outcome(record: Record, ending: Ending, seconds: float) -> Outcome:
    if record.ttft_ms is None:
        return Outcome(e2e=seconds)
    ttft, further = record.ttft_ms / 1000.0, (ending.usage.output or ending.produced) - 1
    tpot = (ending.last_at - ending.opened_at - ttft) / further if further > 0 else None
    return Outcome(ttft, tpot, seconds)


def _line(asked: Asked, record: Record) -> Line:
    attempts = record.attempts
    return Line(
        record.request_id,
        record.path,
        record.status,
        record.error,
        record.served,
        record.tenant,
        asked.caller.name,
        attempts[-1].decision.pod if attempts else None,
        len(attempts),
        _rounded(record.ttft_ms),
        _rounded(record.total_ms),
        record.prompt_tokens,
        record.cached_tokens,
        record.output_tokens,
    )


def _to_stderr(data: bytes) -> None:
    stream = sys.stderr.buffer
    if not stream.write(data):
        raise BlockingIOError
    stream.flush()


def _rounded(value: float | None) -> float | None:
    """To the microsecond; `round` would take as long as all else of a line."""
    return None if value is None else int(value * 1000.0 + 0.5) / 1000.0
