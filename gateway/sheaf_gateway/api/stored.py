"""Responses that engines keep: `GET /v1/responses/ID` and `POST /v1/responses/ID/cancel`, from the pod that keeps it.

They compute nothing, so they pass no admission and weigh on no ledger. An answer is passed on as an inference answer
is: whole JSON objects, whole events, and nothing else of what an engine may say.
"""

import itertools
import re
from typing import TYPE_CHECKING

from sheaf_gateway.api import errors, failures, response_ids
from sheaf_gateway.api.access import Line
from sheaf_gateway.api.answers import is_answer, is_stream, may_begin
from sheaf_gateway.api.asking import forwarded
from sheaf_gateway.api.errors import ApiError
from sheaf_gateway.api.keys import Caller
from sheaf_gateway.api.stream import EventRelay
from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.proxy.errors import UpstreamError
from sheaf_gateway.proxy.exchange import Exchange
from sheaf_gateway.proxy.response import forwardable, lined_request_head
from sheaf_gateway.proxy.types import Header, Request, Responder

if TYPE_CHECKING:
    from sheaf_gateway.api.inference import Inference

PREFIX = "/v1/responses/"
MAX_HELD = 16 * 2**20
_PATH = re.compile(r"/v1/responses/([A-Za-z0-9_-]{1,128})(/cancel)?")
_LOGGED = "/v1/responses/ID"
_ASKED_FOR = frozenset({"stream", "starting_after"})


def serve(core: "Inference", request: Request, responder: Responder) -> None:
    """Answer one request about a response that an engine keeps."""
    request_id = core.ids.take(request.header(b"x-request-id"))
    fetch = Fetch(core, request_id, responder)
    try:
        target, name = _target(request)
        caller = core.keys.caller(request.header)
        caller.require("inference")
        pod = _holder(core, name, caller)
    except ApiError as error:
        fetch.fail(error)
        return
    fetch.begin(request.method, target, forwarded(request), name, pod)


def _target(request: Request) -> tuple[str, str]:
    """What to ask the engine for, and the response's id."""
    found = _PATH.fullmatch(request.path)
    if found is None:
        raise ApiError(404, "not_found", f"There is no endpoint {request.path[:200]}.")
    method = "POST" if found[2] else "GET"
    if request.method != method:
        told = ((b"allow", method.encode()),)
        message = f"{'Cancelling' if found[2] else 'Looking at'} a response takes {method} only; engines delete none."
        raise ApiError(405, "method_not_allowed", message, headers=told)
    kept = "&".join(part for part in request.query.split("&") if part.partition("=")[0] in _ASKED_FOR)
    return (f"{request.path}?{kept}" if kept and not found[2] else request.path), found[1]


def _holder(core: "Inference", name: str, caller: Caller) -> Pod:
    fleet = core.store.fleet
    pods = itertools.chain.from_iterable(fleet.pods.values())
    pod = response_ids.holder(name, core.salts.of(caller.tenant), pods)
    if pod is None or not any(s.model == pod.model and caller.may_use(s.name) for s in fleet.served.values()):
        raise failures.no_response(name)
    return pod


class Fetch:
    """One such request: the sink of its exchange."""

    __slots__ = (
        "_core",
        "_exchange",
        "_headers",
        "_held",
        "_name",
        "_pod",
        "_relay",
        "_request_id",
        "_responder",
        "_size",
        "_status",
    )

    def __init__(self, core: "Inference", request_id: str, responder: Responder) -> None:
        self._core = core
        self._request_id = request_id
        self._responder = responder
        self._exchange: Exchange | None = None
        self._relay: EventRelay | None = None
        self._headers: list[Header] = []
        self._held: list[bytes] = []
        self._status = self._size = 0
        self._name = self._pod = ""

    def begin(self, method: str, target: str, lines: bytes, name: str, pod: Pod) -> None:
        """Ask the pod for the response of that name."""
        self._name, self._pod = name, pod.name
        endpoint, authority = self._core.engine(pod.engine_url)
        head = lined_request_head(method, target, authority, lines, 0)
        self._exchange = self._core.pool.exchange(endpoint, head, b"", self, timeouts=self._core.timeouts)
        self._responder.disconnected.on_disconnect(self._exchange.cancel)
        self._responder.on_pressure(self._press)

    def on_head(self, status: int, headers: list[Header]) -> None:
        """See `proxy.exchange.Sink`."""
        if status >= 500:
            self._stop(failures.engine_status(status))
            return
        self._status, self._headers = status, headers
        if status < 300 and is_stream(headers):
            self._relay = EventRelay(self._responder, patience_s=self._core.timeouts.idle_s)

    def on_body(self, data: bytes) -> None:
        """See `proxy.exchange.Sink`."""
        if self._relay is not None:
            self._stream(self._relay, data)
            return
        self._held.append(data)
        self._size += len(data)
        if self._size > MAX_HELD:
            self._stop(failures.garbage())

    def on_end(self) -> None:
        """See `proxy.exchange.Sink`."""
        if self._relay is not None and self._responder.started:
            self._relay.finish()
            self._responder.end()
            self._log(self._status)
            return
        body = b"".join(self._held)
        wrong = failures.unreadable(self._status, readable=is_answer(self._headers, body))
        if self._status == 404:
            wrong = failures.no_response(self._name)
        if wrong is not None:
            self.fail(wrong)
            return
        self._responder.reply(self._status, self._told(), body)
        self._log(self._status)

    def on_error(self, error: UpstreamError) -> None:
        """See `proxy.exchange.Sink`."""
        if self._responder.started:
            self._break_off()
        else:
            self.fail(failures.upstream(error))

    def fail(self, error: ApiError) -> None:
        """Answer with an error."""
        self._core.metrics.errors.labels(error.code).inc()
        body = errors.body(error, "openai", self._request_id)
        self._responder.reply(error.status, errors.headers(error, self._request_id), body)
        self._log(error.status, error.code)

    def _stream(self, relay: EventRelay, data: bytes) -> None:
        if not self._responder.started:
            if not may_begin(data):
                self._stop(failures.garbage())
                return
            self._responder.start(self._status, self._told(), length=None)
        if not relay.feed(data, self._core.now()):
            self._cancel()
            self._break_off()

    def _stop(self, error: ApiError) -> None:
        self._cancel()
        self.fail(error)

    def _cancel(self) -> None:
        if self._exchange is not None:
            self._exchange.cancel()

    def _break_off(self) -> None:
        self._core.metrics.broken_streams.inc()
        self._responder.write(errors.sse_event(failures.broken_stream(), "openai", self._request_id))
        self._log(self._status, "stream_interrupted")
        self._responder.abort()

    def _told(self) -> list[Header]:
        own = ((b"x-request-id", self._request_id.encode("ascii")), (b"x-sheaf-pod", self._pod.encode("ascii")))
        replaced = {b"content-length", b"date", b"server", *(name for name, _ in own)}
        return [*(header for header in forwardable(self._headers) if header[0] not in replaced), *own]

    def _press(self, pressed: bool) -> None:  # noqa: FBT001
        if self._exchange is not None:
            (self._exchange.pause if pressed else self._exchange.resume)()

    def _log(self, status: int, code: str | None = None) -> None:
        if self._core.rules.access_log:
            self._core.access.add(Line(self._request_id, _LOGGED, status, code, pod=self._pod or None))
