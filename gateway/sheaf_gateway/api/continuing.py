"""One stream that outlives its pods: what was sent of it, and, when its engine is lost, its rest from another one.

A sink of the attempts after the first (`proxy.exchange.Sink`). What it gets is joined to what was sent and goes through
the call as if the first engine had gone on: billing, metrics and the journal see one stream.

The first attempt after a loss is made at once. Those after it are retries like all others: within the gateway's retry
budget, and each after a longer pause, so that streams which lost every engine neither storm them nor give up early.
Whatever it waits for, the gap that the client sees is bounded: for a pod and an adapter by `times.continuation`, with
turns, which many streams lost at once need, by `_TURNS` times as much; for the first event by `times.stall`.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import structlog

from sheaf_gateway.admission.ending import NOTHING, Usage
from sheaf_gateway.api.records import Attempt
from sheaf_gateway.api.salting import salted
from sheaf_gateway.continuation.joiner import Joiner, SeamError
from sheaf_gateway.continuation.journal import UNREADABLE, Journal
from sheaf_gateway.continuation.notice import Progress
from sheaf_gateway.continuation.plan import Decision, Ending, Refusal, Rest, decide
from sheaf_gateway.continuation.wish import Wish, read_wish
from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.proxy.errors import Saturated, UpstreamError
from sheaf_gateway.proxy.exchange import Exchange
from sheaf_gateway.proxy.response import lined_request_head
from sheaf_gateway.proxy.types import Header
from sheaf_gateway.routing.cost import BYTES_PER_TOKEN

if TYPE_CHECKING:
    from sheaf_gateway.api.asking import Asked
    from sheaf_gateway.api.call import Call
    from sheaf_gateway.api.inference import Inference

log = structlog.get_logger(__name__)

_LOOK_AGAIN_S = 0.1
_MAX_PAUSE_S = 5.0
_AVOID_S = 1.0
_TURNS = 10
_MOVED = "moved"
_ELSEWHERE = frozenset({404, 408, 429})


class Continuing:
    """The continuations of one call."""

    __slots__ = (
        "_asked",
        "_call",
        "_core",
        "_deadline",
        "_fruitless",
        "_joiner",
        "_known",
        "_lost_at",
        "_place",
        "_queued_at",
        "_rest",
        "_starting",
        "_timer",
        "count",
        "journal",
        "pod",
    )

    def __init__(self, core: "Inference", call: "Call", asked: "Asked") -> None:
        self._core = core
        self._call = call
        self._asked = asked
        self._rest: Rest | None = None
        self._joiner: Joiner | None = None
        self._known: Wish | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._place: int | None = None
        self._starting = False
        self._deadline = 0.0
        self._fruitless = 0
        self._lost_at = 0.0
        self._queued_at = 0.0
        self.journal = Journal(core.mending.purse, core.mending.rules.max_journal)
        self.count = 0
        self.pod = call.pod.name
        core.mending.enter(self)

    def watch(self) -> None:
        """The engine has begun to say something: from now on silence is a fault sooner than before."""
        if self._call.exchange is not None:
            self._call.exchange.timeouts = self._core.stream_timeouts

    def take_over(self, reason: str) -> bool:
        """The stream's engine is lost: go on elsewhere. False: the stream cannot be continued."""
        decision = self._decide()
        if isinstance(decision, Refusal):
            self._core.mending.refused(decision.reason)
            self._log("stream_not_continued", reason, decision.reason)
            return False
        self._leave(reason)
        if isinstance(decision, Ending):
            self._end(decision.events)
        else:
            self._adopt(decision)
            self._pause()
        return True

    def notice(self) -> None:
        """The stream will not end before its pod does: move it when it is its turn; until then it goes on."""
        if self._place is None and not self._starting and self._timer is None:
            mending, asked = self._core.mending, self._asked
            self._place = mending.queue(asked.ask.model, lambda: self._in_turn(self._move), batch=asked.door.batch)

    def progress(self) -> Progress:
        """How far the stream is."""
        wish, call = self._wish(), self._call
        return Progress(call.produced(), call.streamed_s(), wish.limit if wish is not None else None)

    def _in_turn(self, begin: Callable[[], None]) -> None:
        """Its turn has come: begin, or end so that the turn is given back."""
        self._stop_timer()
        self._place, self._starting = None, True
        try:
            begin()
        except Exception:
            log.exception("continuation_broke_off", request_id=self._call.record.request_id)
            self._call.break_off("undecided")

    def _move(self) -> None:
        decision = self._decide()
        if isinstance(decision, Rest):
            self._leave(_MOVED)
            self._adopt(decision)
            self._choose()
        else:
            self._started()

    def _leave(self, reason: str) -> None:
        self._log("stream_moves", reason, "")
        self._stop(keep_turn=reason == _MOVED)
        self._call.settle(reason)
        if self._call.relay is not None:
            self._call.relay.forget()

    def _adopt(self, rest: Rest) -> None:
        core, call = self._core, self._call
        self.journal.sent().cut(rest.keep + len(rest.replay))
        self._rest = rest
        self.count += 1
        if not self._fruitless:
            self._lost_at = core.now()
            self._deadline = self._lost_at + core.mending.rules.max_wait_s
        self._fruitless += 1
        call.tried |= {call.pod.name}

    def usage(self) -> Usage:
        """Tokens of a stream that was continued, where no engine reported them."""
        if not self.count or self.journal.full:
            return NOTHING
        sent = self.journal.sent()
        return Usage(len(sent.prompt), len(sent.tokens))

    def close(self) -> None:
        """The call is over, however it went."""
        if self._call.record.error is None and self._call.relay is not None:
            self._core.mending.ended(self._asked.ask.model, self._call.produced())
        self._stop()
        self._core.mending.leave(self)
        self.journal.close()

    # Deciding.

    def _decide(self) -> Decision:
        try:
            return self._decided()
        except Exception:
            log.exception("continuation_undecided", request_id=self._call.record.request_id)
            return Refusal("unreadable")

    def _decided(self) -> Decision:
        mending, call = self._core.mending, self._call
        if call.finished or self.journal.full:
            return Refusal("journal_full")
        if self.count >= mending.rules.max_continuations:
            return Refusal("attempts")
        wish = self._wish()
        if wish is None:
            return Refusal("unreadable")
        facts = mending.facts(self._asked.ask.model)
        return decide(self.journal.sent(), wish, facts, call.body(), self._asked.route.target)

    def _wish(self) -> Wish | None:
        if self._known is None:
            try:
                self._known = read_wish(self._asked.request.body, self._asked.route.target)
            except UNREADABLE:
                return None
        return self._known

    # Waiting for a turn and a pod.

    def _give_up_at(self, deadline: float) -> None:
        """Give up then, unless what is waited for comes before."""
        self._timer = self._core.loop.call_later(max(0.0, deadline - self._core.now()), self._too_late)

    def _too_late(self) -> None:
        self._timer = None
        self._core.mending.refused("too_late")
        self._call.break_off("too_late")

    def _pause(self) -> None:
        if self._fruitless > 1:
            left = max(0.0, self._deadline - self._core.now())
            seconds = min(_LOOK_AGAIN_S * 2.0 ** (self._fruitless - 2), _MAX_PAUSE_S, left)
            self._timer = self._core.loop.call_later(seconds, self._queue)
        else:
            self._queue()

    def _queue(self) -> None:
        self._stop_timer()
        self._queued_at = self._core.now()
        self._give_up_at(self._lost_at + _TURNS * self._core.mending.rules.max_wait_s)
        model, batch = self._asked.ask.model, self._asked.door.batch
        self._place = self._core.mending.queue(model, lambda: self._in_turn(self._begin), batch=batch)

    def _begin(self) -> None:
        """To wait for one's turn is not to wait for a pod."""
        self._deadline += self._core.now() - self._queued_at
        self._choose()

    def _choose(self) -> None:
        core, call = self._core, self._call
        pods, now = core.store.fleet.pods_of(self._asked.ask.model), core.now()
        ask = msgspec.structs.replace(self._asked.ask, prompt_bytes=self._asked.ask.prompt_bytes + self._weight())
        tried = call.tried
        if now - self._lost_at > _AVOID_S and all(pod.name in tried or not pod.ready for pod in pods):
            tried = call.tried = frozenset()
        decision = core.router.decide(ask, pods, now, tried)
        if decision.pod is None:
            core.store.release_all(ask.model)
        if decision.pod is None or not self._may_retry(now):
            self._later()
            return
        call.record.attempts.append(Attempt(decision, now, continues=self.journal.sent().chars))
        call.pod = pods[decision.place]
        core.mending.move(self, call.pod.name)
        if call.pod.holds(ask.adapter, ask.digest):
            self._send()
        else:
            self._load(call.pod)

    def _may_retry(self, now: float) -> bool:
        """Whether an attempt may be made that is not the first one since the stream was lost."""
        return self._fruitless < 2 or (now < self._deadline and self._core.router.budget.take(now))

    def _weight(self) -> int:
        return int(len(self.journal.sent().tokens) * BYTES_PER_TOKEN)

    def _later(self) -> None:
        """There is no pod now: look again until the wait is over."""
        self._started()
        if self._core.now() >= self._deadline:
            self._core.mending.refused("no_pod")
            self._call.break_off("no_pod")
            return
        self._timer = self._core.loop.call_later(_LOOK_AGAIN_S, self._queue)

    def _load(self, pod: Pod) -> None:
        call = self._call
        call.record.attempts[-1].loaded_adapter = True
        call.loading = asyncio.ensure_future(self._core.loader.load(pod, self._asked.served.name))
        call.loading.add_done_callback(self._loaded)
        self._give_up_at(self._deadline)

    def _loaded(self, task: asyncio.Future[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if self._call.finished or self._call.loading is not task:
            return
        self._call.loading = None
        self._stop_timer()
        if error is not None or task.cancelled():
            self._failed("load_failed")
        else:
            self._send()

    # The attempt.

    def _send(self) -> None:
        core, call, rest, asked = self._core, self._call, self._rest, self._asked
        if rest is None:
            return
        endpoint, authority = core.engine(call.pod.engine_url)
        body = salted(rest.body, asked.salt) if asked.salt and not rest.whole else rest.body
        head = lined_request_head("POST", rest.path, authority, asked.lines, len(body))
        wish = self._wish()
        if wish is None:
            return
        self._joiner = Joiner(self.journal.sent(), wish, rest)
        call.ticket = core.router.sent(asked.ask, call.record.attempts[-1].decision, call.pod, core.now())
        timeouts = replace(core.stream_timeouts, first_byte_s=core.stream_timeouts.idle_s)
        call.exchange = core.pool.exchange(endpoint, head, body, self, timeouts=timeouts)
        if not call.responder.writable:
            call.exchange.pause()
            core.router.stopped(call.ticket, core.now(), on=True)

    def on_head(self, status: int, headers: list[Header]) -> None:  # noqa: ARG002
        """See `proxy.exchange.Sink`."""
        if status < 300:
            return
        adapter = self._asked.ask.adapter
        if status == 404 and adapter is not None:
            self._core.store.note_absent(self._call.pod.name, adapter)
        self._call.blame(pod=status >= 500)
        self._failed(f"status_{status}", again=status >= 500 or status in _ELSEWHERE)

    def on_body(self, data: bytes) -> None:
        """See `proxy.exchange.Sink`."""
        call, joiner = self._call, self._joiner
        if joiner is None or call.finished:
            return
        try:
            joined = joiner.feed(data)
        except SeamError as error:
            self._failed(str(error))
            return
        if joined:
            self._begun()
            call.pass_on(joined)

    def on_end(self) -> None:
        """See `proxy.exchange.Sink`."""
        if self._joiner is not None and self._joiner.done:
            self._call.complete()
        else:
            self._failed("ended_early")

    def on_error(self, error: UpstreamError) -> None:
        """See `proxy.exchange.Sink`."""
        self._call.blame(pod=not isinstance(error, Saturated))
        self._failed(error.kind)

    def _begun(self) -> None:
        if not self._starting:
            return
        core, ticket = self._core, self._call.ticket
        self._started()
        self._fruitless = 0
        self._call.tried = frozenset()
        self.watch()
        core.mending.continued(core.now() - self._lost_at)
        if ticket is not None:
            core.router.answered(ticket, core.now(), streamed=False)

    def _failed(self, reason: str, *, again: bool = True) -> None:
        self._stop()
        if not (again and self.take_over(reason)):
            self._call.break_off(reason)

    # Endings.

    def _end(self, events: bytes) -> None:
        call = self._call
        self.count += 1
        if call.relay is not None and events:
            call.relay.feed(events)
        self._core.mending.continued(0.0)
        call.complete()

    def _started(self) -> None:
        if self._starting:
            self._starting = False
            self._core.mending.started(self._asked.ask.model)

    def _stop(self, *, keep_turn: bool = False) -> None:
        """Leave whatever is under way."""
        exchange: Exchange | None = self._call.exchange
        if exchange is not None:
            exchange.cancel()
        if self._call.loading is not None:
            self._call.loading.cancel()
            self._call.loading = None
        self._stop_timer()
        if self._place is not None:
            self._core.mending.give_up(self._asked.ask.model, self._place)
            self._place = None
        if not keep_turn:
            self._started()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _log(self, event: str, reason: str, refusal: str) -> None:
        call = self._call
        told = {"request_id": call.record.request_id, "pod": call.pod.name, "reason": reason}
        log.info(event, **told, **({"refusal": refusal} if refusal else {}))
