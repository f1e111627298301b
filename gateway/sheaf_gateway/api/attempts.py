"""The attempts of one request: which pod, with the adapter loaded there, and once more elsewhere where one came to
nothing, within the retry budget and `max_attempts`.

Attempts that no engine can have seen do not count, for no engine can have died of them. A generation whose pods are
lost waits for others as a stream does that was lost within: longer each time, until `times.continuation` is over, and
behind the retries of those that have another pod at once. A pod that is kept back while it is warmed is kept back no
longer where there is no other to try.
"""

import asyncio
import zlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import structlog

from sheaf_gateway.api import failures
from sheaf_gateway.api.asking import Asked
from sheaf_gateway.api.errors import ApiError
from sheaf_gateway.api.records import Attempt, Record
from sheaf_gateway.fleet.agents import AgentError
from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.proxy.errors import ConnectFailed, ConnectTimeout, ResetBeforeHead, ResetMidBody, UpstreamError
from sheaf_gateway.proxy.exchange import Exchange
from sheaf_gateway.routing.choose import Decision
from sheaf_gateway.routing.ledger import Ticket

if TYPE_CHECKING:
    from sheaf_gateway.api.inference import Inference

log = structlog.get_logger(__name__)

_LOSSES = (ConnectFailed, ConnectTimeout, ResetBeforeHead, ResetMidBody)
_PAUSE_S = 0.1
_MAX_PAUSE_S = 5.0
_MOST_DOUBLINGS = 6


class Attempts(ABC):
    """What `call.Call` knows of its attempts."""

    __slots__ = (
        "_asked",
        "_core",
        "_decision",
        "_last_error",
        "_patience_ends",
        "_pauses",
        "_unseen",
        "exchange",
        "finished",
        "loading",
        "pod",
        "record",
        "ticket",
        "tried",
    )

    _decision: Decision
    pod: Pod
    ticket: Ticket | None
    exchange: Exchange | None

    def __init__(self, core: "Inference", asked: Asked, record: Record) -> None:
        self._core = core
        self._asked = asked
        self.record = record
        self.finished = False
        self.tried: frozenset[str] = frozenset()
        self._last_error: ApiError | None = None
        self._unseen = self._pauses = 0
        self._patience_ends = 0.0
        self.loading: asyncio.Future[None] | None = None
        self.ticket = self.exchange = None

    @abstractmethod
    def fail(self, error: ApiError) -> None:
        """Answer with an error and be done."""

    @abstractmethod
    def _send(self) -> None:
        """Send the request to the pod."""

    @abstractmethod
    def _clear(self) -> None:
        """Begin anew after an attempt of which the client saw nothing."""

    def _attempt(self) -> None:
        core, ask, previous = self._core, self._asked.ask, self._asked.previous
        pods, now = self._asked.pods(core.store.fleet), core.now()
        if previous is not None and not pods:
            self.fail(failures.no_previous_response(previous.response_id))
            return
        self._decision = decision = core.router.decide(ask, pods, now, self.tried)
        if decision.pod is None:
            self.fail(self._last_error or failures.no_pod(ask.model))
            return
        self.record.attempts.append(Attempt(decision, now))
        self.pod = pod = pods[decision.place]
        if pod.holds(ask.adapter, ask.digest):
            self._send()
        else:
            self._load()

    def _load(self) -> None:
        self.record.attempts[-1].loaded_adapter = True
        started = self._core.now()
        self.loading = asyncio.ensure_future(self._core.loader.load(self.pod, self._asked.served.name))
        self.loading.add_done_callback(lambda task: self._loaded(task, started))

    def _loaded(self, task: asyncio.Future[None], started: float) -> None:
        self.loading = None
        error = None if task.cancelled() else task.exception()
        if self.finished:
            return
        if isinstance(error, AgentError):
            self._again(f"load_{error.code}", failures.load_failed(self._asked.served.name, error))
        elif error is not None or task.cancelled():
            log.error("load_broke_off", request_id=self.record.request_id, exc_info=error)
            self.fail(failures.no_pod(self._asked.ask.model))
        else:
            self._core.router.model(self._asked.ask.model).observe_load((self._core.now() - started) * 1000.0)
            self._send()

    def _again(
        self, reason: str, error: ApiError, *, elsewhere: bool = True, lost: UpstreamError | None = None
    ) -> None:
        """Try once more where that is allowed and there is another pod, else answer with the error; `lost` says that
        the pod did not answer."""
        self.settle(reason)
        self._last_error = error
        if elsewhere:
            self.tried |= {self.pod.name}
        self._unseen += lost is not None and not lost.delivered
        refused = self._refusal_to_retry(patient=self._pauses > 0)
        if refused is None:
            self._core.metrics.retries.labels(failures.retry_label(reason)).inc()
            self._clear()
            self._attempt()
        elif not isinstance(lost, _LOSSES) or refused == "attempts" or not self._may_wait():
            self.fail(error)
        else:
            self._clear()
            self._pause()

    def _refusal_to_retry(self, *, patient: bool = False) -> str | None:
        core = self._core
        if self.finished or len(self.record.attempts) - self._unseen >= core.max_attempts:
            return "attempts"
        if not self._another() and not (core.store.release_all(self._asked.ask.model) and self._another()):
            return "pods"
        if not core.router.budget.take(core.now(), patient=patient):
            core.metrics.retries_denied.inc(not patient)
            return "budget"
        return None

    def _another(self) -> bool:
        pods = self._asked.pods(self._core.store.fleet)
        return any(pod.ready and pod.name not in self.tried for pod in pods)

    def _may_wait(self) -> bool:
        core, asked = self._core, self._asked
        now = core.now()
        if not (core.mending.enabled and asked.route.continues):
            return False
        self._patience_ends = self._patience_ends or now + core.mending.rules.max_wait_s
        return now < self._patience_ends

    def _pause(self) -> None:
        self._pauses += 1
        longest = min(_PAUSE_S * 2.0 ** min(self._pauses - 1, _MOST_DOUBLINGS), _MAX_PAUSE_S)
        seconds = min(longest * self._spread(), self._patience_ends - self._core.now())
        self._core.loop.call_later(max(0.0, seconds), self._look_again)

    def _spread(self) -> float:
        """0.5 to 1, so that those who lost their pods together do not look again together."""
        return 0.5 + zlib.crc32(f"{self._pauses} {self.record.request_id}".encode()) / 2**33

    def _look_again(self) -> None:
        """Any pod will do by now, also one that was lost: it may be back."""
        error = self._last_error
        if self.finished or error is None:
            return
        self.tried = frozenset()
        if self._refusal_to_retry(patient=True) is None:
            self._core.metrics.retries.labels("waited").inc()
            self._attempt()
        elif self._may_wait():
            self._pause()
        else:
            self.fail(error)

    def settle(self, outcome: str) -> None:
        """Close the books of an attempt that is over."""
        self.record.attempts[-1].outcome = outcome
        ticket, self.ticket = self.ticket, None
        if ticket is not None:
            self._core.router.finished(ticket)

    def blame(self, *, pod: bool) -> None:
        """Tell the router that the attempt failed by its pod, or was given up."""
        router, now = self._core.router, self._core.now()
        if self.ticket is None:
            return
        if pod:
            router.failed(self.ticket, now)
        else:
            router.abandoned(self.ticket, now)
