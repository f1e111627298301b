"""One inference request from the door to its last byte: a state machine driven by callbacks, the sink of its
own attempts.

Before the first byte has gone to the client, a failed attempt is made again on another pod (see `attempts`). Answers
that are not streams are held until they are whole (up to `MAX_HELD` bytes), so that they can be retried until then and
never arrive cut short. After the first byte of a stream `Continuing` goes on elsewhere where it can; where not, an
error event and a broken connection end it.
"""

from typing import TYPE_CHECKING

import structlog

from sheaf_gateway.admission.ending import NOTHING, Usage
from sheaf_gateway.api import errors, failures
from sheaf_gateway.api.answers import (
    answer_headers,
    answer_lines,
    ends_well,
    fault,
    half_an_error,
    is_answer,
    is_stream,
    may_begin,
)
from sheaf_gateway.api.asking import Asked
from sheaf_gateway.api.attempts import Attempts
from sheaf_gateway.api.continuing import Continuing
from sheaf_gateway.api.ending import counted, ending
from sheaf_gateway.api.entry import Entry
from sheaf_gateway.api.errors import ApiError
from sheaf_gateway.api.failures import GONE
from sheaf_gateway.api.records import Record
from sheaf_gateway.api.response_ids import fresh, named
from sheaf_gateway.api.salting import salted
from sheaf_gateway.api.stream import EventRelay
from sheaf_gateway.api.usage import find_usage, reported
from sheaf_gateway.continuation.chunks import asking_for_ids
from sheaf_gateway.proxy.again import AnswerHead
from sheaf_gateway.proxy.errors import Saturated, UpstreamError
from sheaf_gateway.proxy.relay import content_length
from sheaf_gateway.proxy.response import lined_request_head
from sheaf_gateway.proxy.types import Header, Responder
from sheaf_gateway.routing.silence import LATE_S

if TYPE_CHECKING:
    from sheaf_gateway.api.inference import Inference

log = structlog.get_logger(__name__)

MAX_HELD = 4 * 2**20
_USAGE_TAIL = 8192
_BILL_EVERY = 8
_UNKNOWN_RESPONSE = b'"response_id"'


class Call(Attempts):
    """A request under way."""

    __slots__ = (
        "_bill_at",
        "_entry",
        "_held",
        "_held_size",
        "_last_at",
        "_opened_at",
        "_passing",
        "_response_headers",
        "_status",
        "_streaming",
        "continuing",
        "relay",
        "responder",
    )

    relay: EventRelay | None
    continuing: Continuing | None
    _status: int
    _response_headers: list[Header]
    _streaming: bool
    _passing: bool
    _held: list[bytes]
    _held_size: int

    def __init__(self, core: "Inference", asked: Asked, responder: Responder, record: Record) -> None:
        super().__init__(core, asked, record)
        self.responder = responder
        self._opened_at = core.now()
        self._last_at = self._opened_at
        self._entry = Entry(core, self, asked)
        self._bill_at = _BILL_EVERY
        self.continuing = self.relay = None
        self._status = self._held_size = 0
        self._streaming = self._passing = False

    def begin(self) -> None:
        """Ask admission, then go on, wait or answer."""
        responder = self.responder
        responder.disconnected.on_disconnect(self._client_gone)
        responder.on_pressure(self._press)
        self._entry.begin()

    def enter(self) -> None:
        """Go on: the request was admitted, at once or from the queue."""
        self.record.queued_ms = (self._core.now() - self._opened_at) * 1000.0
        self._core.router.budget.requested()
        self._attempt()

    def _send(self) -> None:
        core, asked = self._core, self._asked
        endpoint, authority = core.engine(self.pod.engine_url)
        body = self.body()
        if asked.continues and not asked.ids:
            body = asking_for_ids(body)
        head = lined_request_head("POST", asked.route.target, authority, asked.lines, len(body))
        self.ticket = core.router.sent(asked.ask, self._decision, self.pod, core.now())
        self.record.attempts[-1].expected_cached = self.ticket.cached
        core.admission.routed(self._entry.door, self.ticket.tokens)
        if core.warming is not None:
            core.warming.saw(asked, self.pod.name)
        self.exchange = core.pool.exchange(endpoint, head, body, self, timeouts=core.timeouts)

    def body(self) -> bytes:
        """The request's body with the tenant's salt, and the id of a response that this pod may keep."""
        asked = self._asked
        body = salted(asked.request.body, asked.salt) if asked.salt else asked.request.body
        return named(body, fresh(self.pod.name, asked.salt)) if asked.route.keeps else body

    def _clear(self) -> None:
        """Begin anew after an attempt of which the client saw nothing."""
        self.ticket = None
        self.exchange = None
        self.relay = None
        self._status = 0
        self._response_headers = []
        self._streaming = False
        self._passing = False
        self._held = []
        self._held_size = 0

    def on_head(self, status: int, headers: list[Header]) -> None:
        """Take the status; a failure of the engine is retried elsewhere, all else is passed on."""
        if status >= 500 and status != 501:
            self._bad(f"status_{status}", failures.engine_status(status))
            return
        self._status = status
        self._response_headers = headers
        self._held = []
        self._streaming = status < 300 and is_stream(headers)
        self._last_at = self._core.now()

    def on_body(self, data: bytes) -> None:
        """Pass a stream on; hold anything else until it is whole."""
        if self._streaming:
            self.pass_on(data)
        elif self._passing:
            self.responder.write(data)
        else:
            self._hold(data)

    def on_end(self) -> None:
        """The answer is whole."""
        if self._streaming:
            if self.relay is None:
                self._bad("bad_response", failures.garbage())
            elif ends_well(self.relay.tail()) or not self._asked.route.continues:
                self.relay.finish()
                self.complete()
            else:
                self._garbled("ended_early")
        elif self._passing:
            self.responder.end()
            self._finish(self._status, NOTHING, "ok")
        else:
            self._reply(b"".join(self._held))

    def on_whole(self, head: AnswerHead, body: bytes) -> None:
        """The whole answer came in one read (`proxy.exchange.WholeSink`); only heads of plain answers have lines."""
        if head.lines and (usage := reported(body)) is not None:
            self._status = head.status
            self._reply_plain(head, body, usage)
            return
        self.on_head(head.status, head.headers)
        if self._streaming:
            ticket = self.ticket
            if body:
                self.on_body(body)
            if self.ticket is ticket:
                self.on_end()
        elif 200 <= self._status < 300 and is_answer(self._response_headers, body):
            self._reply_plain(head, body, find_usage(body))
        elif self._status:
            self._reply(body)

    def _reply_plain(self, head: AnswerHead, body: bytes, usage: Usage) -> None:
        self._answered()
        lines = answer_lines(head, self.record.request_id, self.pod.name, self._decision)
        self.responder.reply_joined(self._status, lines, body)
        self._finish(self._status, usage, "ok")

    def on_error(self, error: UpstreamError) -> None:
        """The attempt failed: retry elsewhere, or end what has begun so that the client knows."""
        self.blame(pod=not isinstance(error, Saturated))
        if self.continuing is not None and self.continuing.take_over(error.kind):
            return
        if self.responder.started:
            self.break_off(error.kind)
        else:
            self._again(error.kind, failures.upstream(error), lost=error)

    def pass_on(self, data: bytes) -> None:
        """Take the stream's next bytes."""
        if self.relay is None:
            data = self._beginning(data)
            if not data:
                return
        relay, now = self.relay or self._first_byte(), self._core.now()
        self._last_at = now
        ticket = self.ticket
        if ticket is not None and (ledger := ticket.ledger) is not None:
            if now - ledger.heard_at > LATE_S:
                self._core.router.heard(ticket, now)
            else:
                ledger.heard_at = now
        if not relay.feed(data, self._last_at):
            self._garbled(relay.wrong)
        elif relay.events >= self._bill_at:
            self._bill(relay.events)

    def _beginning(self, data: bytes) -> bytes:
        """The first bytes of a stream; none where it cannot begin so, or as long as they may be of an error event."""
        if self._held:
            data = b"".join([*self._held, data])
        if not may_begin(data) or ((undecided := half_an_error(data)) and len(data) > MAX_HELD):
            self._bad("bad_response", failures.garbage())
        elif undecided:
            self._held = [data]
        elif fault(data) == 0:
            self._bad("engine_error", failures.engine_status(500))
        else:
            self._held = []
            return data
        return b""

    def streamed_s(self) -> float:
        """Seconds from the first byte of the stream to its last one so far."""
        return self._last_at - self._opened_at - (self.record.ttft_ms or 0.0) / 1000.0

    def complete(self) -> None:
        """The stream is whole, as the client got it."""
        usage = NOTHING if self.relay is None else find_usage(self.relay.tail()[-_USAGE_TAIL:])
        if usage is NOTHING and self.continuing is not None:
            usage = self.continuing.usage()
        self.responder.end()
        self._finish(self._status, usage, "ok")

    def _bad(self, reason: str, error: ApiError) -> None:
        """The attempt came to nothing before the client had a byte of it."""
        if self.exchange is not None:
            self.exchange.cancel()
        self.blame(pod=True)
        self._again(reason, error)

    def _garbled(self, reason: str) -> None:
        """What the engine streams is not the rest of what it began: go on elsewhere, or say so."""
        self.blame(pod=True)
        if self.continuing is not None and self.continuing.take_over(reason):
            return
        if self.exchange is not None:
            self.exchange.cancel()
        self.break_off(reason)

    def _bill(self, events: int) -> None:
        """Charge the tenant for what was streamed so far; an event is a token at least."""
        self._bill_at = events + _BILL_EVERY
        told = self.continuing.journal.about() if self.continuing is not None else 0
        self._core.admission.produced(self._entry.door, float(max(events, told)))

    def produced(self) -> int:
        """Tokens streamed so far, where the engine tells their ids; else events."""
        events = self.relay.events if self.relay is not None else 0
        if self.continuing is None:
            return events
        return self.continuing.journal.tokens() or events

    def _first_byte(self) -> EventRelay:
        now = self._last_at = self._core.now()
        self.record.ttft_ms = (now - self._opened_at) * 1000.0
        if self.ticket is not None:
            self._core.router.answered(self.ticket, now, streamed=True)
        self.responder.start(self._status, self._headers(), length=None)
        if self._asked.continues:
            self.continuing = Continuing(self._core, self, self._asked)
            self.continuing.watch()
        journal = self.continuing.journal if self.continuing is not None else None
        patience = self._core.stream_timeouts.idle_s
        self.relay = EventRelay(self.responder, journal, masks=not self._asked.ids, patience_s=patience)
        return self.relay

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_size += len(data)
        if self._core.now() - self._last_at > self._core.timeouts.first_byte_s:
            self._bad("idle_timeout", failures.late())
        elif self._held_size > MAX_HELD:
            self._answered()
            length = content_length(self._response_headers)
            self.responder.start(self._status, self._headers(), length=length)
            self._passing = True
            for piece in self._held:
                self.responder.write(piece)
            self._held.clear()

    def _answered(self) -> None:
        if self.ticket is not None:
            self._core.router.answered(self.ticket, self._core.now(), streamed=False)

    def _reply(self, body: bytes) -> None:
        adapter = self._asked.ask.adapter
        wrong = failures.unreadable(self._status, readable=is_answer(self._response_headers, body))
        if wrong is not None and wrong.status >= 500:
            self._bad("bad_response", wrong)
            return
        self._answered()
        if wrong is not None:
            self.settle("ok")
            self.fail(wrong)
            return
        previous = self._asked.previous
        if self._status == 404 and previous is not None and _UNKNOWN_RESPONSE in body:
            self.settle("ok")
            self.fail(failures.no_previous_response(previous.response_id))
            return
        if self._status == 404 and adapter is not None and adapter.encode() in body:
            self._core.store.note_absent(self.pod.name, adapter)
            self._again("adapter_gone", failures.adapter_gone(adapter), elsewhere=not self.pod.agent_url)
            return
        self.responder.reply(self._status, self._headers(), body)
        self._finish(self._status, find_usage(body) if self._status < 300 else NOTHING, "ok")

    def break_off(self, kind: str) -> None:
        """End a stream that has begun so that the client knows that it is not whole."""
        self._core.metrics.broken_streams.inc()
        if self.relay is not None:
            told = failures.broken_stream()
            self.responder.write(errors.sse_event(told, self._asked.route.dialect, self.record.request_id))
        self.record.error = "stream_interrupted"
        self._finish(self._status, NOTHING, kind)
        self.responder.abort()

    def _headers(self) -> list[Header]:
        return answer_headers(self._response_headers, self.record.request_id, self.pod.name, self._decision)

    def fail(self, error: ApiError) -> None:
        """Answer with an error and be done."""
        if self.finished:
            return
        self._core.metrics.errors.labels(error.code).inc()
        request_id = self.record.request_id
        body = errors.body(error, self._asked.route.dialect, request_id)
        self.responder.reply(error.status, errors.headers(error, request_id), body)
        self.record.error = error.code
        self._finish(error.status, NOTHING, None)

    def _client_gone(self) -> None:
        if self.finished:
            return
        if self.exchange is not None:
            self.exchange.cancel()
        if self.loading is not None:
            self.loading.cancel()
        self.blame(pod=False)
        self._entry.withdraw()
        self.record.error = "client_gone"
        self._finish(GONE, NOTHING, "client_gone")

    def _press(self, pressed: bool) -> None:  # noqa: FBT001
        if self.exchange is not None:
            (self.exchange.pause if pressed else self.exchange.resume)()
        if self.ticket is not None:
            self._core.router.stopped(self.ticket, self._core.now(), on=pressed)

    def _finish(self, status: int, usage: Usage, outcome: str | None) -> None:
        self.finished = True
        produced = self.produced()
        if self.continuing is not None:
            self.continuing.close()
            self.continuing = None
        if outcome is not None and self.record.attempts:
            self.settle(outcome)
        self.record.status = status
        now, asked, entry = self._core.now(), self._asked, self._entry
        del self._entry
        tells = asked.route.computes and not self._pauses
        over = ending(self.record, usage, produced, self._opened_at, self._last_at, now, tells=tells)
        if asked.ask.session and over.billed and (over.well or over.first_s is not None):
            self._core.router.turned(asked.ask, (self.pod.name, self.pod.epoch), counted(over), now)
        entry.close(over, now)
        self._core.finished(asked, self.record, over, now)
